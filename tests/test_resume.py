"""Training and search stopped after any step and taken up again equal those left alone, bit for bit."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import transprune
from test_searching import Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.data import LoaderData
from transprune.errors import StoppedError
from transprune.options import CheckpointOptions
from transprune.runtime import Checkpoints
from transprune.training.loop import Setup

IMAGES = 28
"""Two batches of 16 and, of each half that a search divides them into, two of 8: in both the last one is smaller."""
OPTIONS = transprune.TrainingOptions(**SHORT | {"epochs": 2})
SEARCH = transprune.SearchOptions(epochs=2, batch_size=8, learning_rate=0.05, architecture_learning_rate=0.05)

FROM_SCORES = replace(SEARCH, start="model", alignment="pad", prior="scores", architecture_learning_rate=None)


class StopsAfter(Checkpoints):
    """Asks to stop after so many steps, as a signal would."""

    def __init__(self, folder, steps):
        super().__init__(folder, CheckpointOptions(checkpoint_minutes=None))
        self.left = steps

    def after_step(self, phase, state):
        self.left -= 1
        if self.left == 0:
            self._request.reason = "SIGTERM"
        super().after_step(phase, state)


class Noisy(Dataset):
    """Samples that draw from every common generator."""

    def __init__(self, samples=24):
        self.inputs = torch.randn(samples, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return self.inputs[place] + float(noise), place % 2


def noisy_data(workers=0):
    def loader(shuffle, generator=None):
        return DataLoader(Noisy(), batch_size=6, shuffle=shuffle, num_workers=workers, generator=generator)

    own = torch.Generator().manual_seed(7)
    return LoaderData(train=loader(True, own), test=loader(False), example=torch.zeros(1, 1, 4, 4))


def with_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))


def train_images(setup=None):
    return transprune.train(small_network(), two_colours(IMAGES), OPTIONS, setup=setup).state_dict()


def train_noisy(setup=None):
    return transprune.train(with_dropout(), noisy_data(), OPTIONS, setup=setup).state_dict()


def distill_images(setup=None):
    options = transprune.DistillationOptions(**SHORT | {"epochs": 2})
    return transprune.distill(
        small_network(1), small_network(2), two_colours(IMAGES), options, setup=setup
    ).state_dict()


def _search(data, setup, options=SEARCH):
    torch.manual_seed(0)
    found = transprune.search(Residual(), data, "macs=0.5", options, setup=setup)
    probabilities = {"widths": found.probabilities.widths, "depths": found.probabilities.depths}
    assert len(found.history) == SEARCH.epochs
    return {**found.weights, **probabilities, **(found.kept.student if found.kept else {})}


def search_images(setup=None):
    return _search(two_colours(IMAGES), setup)


def search_noisy(setup=None):
    return _search(noisy_data(), setup)


def search_images_from_scores(setup=None):
    return _search(two_colours(IMAGES), setup, FROM_SCORES)


def search_noisy_from_scores(setup=None):
    return _search(noisy_data(), setup, FROM_SCORES)


def figures_of(seen):
    return [{key: value for key, value in figures.items() if key != "seconds"} for figures in seen]


PHASES = [(train_images, 6), (train_noisy, 10), (distill_images, 6), (search_images, 6), (search_noisy, 6)]
CASES = [(phase, stop) for phase, steps in PHASES for stop in range(1, steps + 1)]
CASES += [(search_images_from_scores, 2), (search_images_from_scores, 5), (search_noisy_from_scores, 4)]


@pytest.fixture(scope="module")
def left_alone():
    known = {}

    def result(phase):
        if phase not in known:
            seen = []
            known[phase] = phase(Setup(on_epoch=seen.append)), figures_of(seen)
        return known[phase]

    return result


@pytest.mark.parametrize(("phase", "stop"), CASES, ids=[f"{phase.__name__}-{stop}" for phase, stop in CASES])
def test_a_phase_stopped_after_any_step_ends_as_one_left_alone(phase, stop, tmp_path, left_alone):
    expected, expected_figures = left_alone(phase)
    seen = []
    with pytest.raises(StoppedError, match="SIGTERM"):
        phase(Setup(checkpoints=StopsAfter(tmp_path, stop), on_epoch=seen.append))
    torch.manual_seed(99)
    found = phase(Setup(checkpoints=Checkpoints(tmp_path), on_epoch=seen.append))
    assert_same_state(found, expected)
    assert figures_of(seen) == expected_figures
