"""The recipes, and that the page about them says what they are."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from torch import nn

from transprune.errors import OptionError
from transprune.options import (
    PRESETS,
    CompressOptions,
    DistillationOptions,
    LatencyOptions,
    MeasureOptions,
    SearchOptions,
    TrainingOptions,
    get_preset,
)
from transprune.training.update import settled

PAGE = (Path(__file__).parent.parent / "docs" / "presets.md").read_text()
ROWS = [
    [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", PAGE, flags=re.MULTILINE)
]
PARTS = ("teacher", "search", "distill")


def setting(preset, path):
    part, _, name = path.rpartition(".")
    return getattr(getattr(PRESETS[preset], part) if part else PRESETS[preset], name)


def documented():
    """Option → what the page says of the two presets of the paper."""
    return {row[0].strip("`"): {"paper-cifar": row[3], "paper-imagenet": row[4]} for row in ROWS if row[0][0:1] == "`"}


def test_the_page_lists_every_option_of_the_papers_presets_with_its_value():
    options = {f"{part}.{item.name}" for part in PARTS for item in fields(getattr(PRESETS["paper-cifar"], part))}
    assert documented().keys() == options | {"student", "augment"}
    for option, values in documented().items():
        for preset, value in values.items():
            assert str(setting(preset, option)) == value, (preset, option)


def test_the_overview_has_every_preset_with_its_epochs_and_rates():
    overview = {row[0]: dict(zip(ROWS[0][1:], row[1:], strict=True)) for row in ROWS if len(row) == len(ROWS[0])}
    assert set(ROWS[0][1:]) == set(PRESETS)
    for name, preset in PRESETS.items():
        for part, label in (("teacher", "teacher"), ("search", "search"), ("distill", "distillation")):
            options = getattr(preset, part)
            assert overview[f"{label} epochs, batch"][name] == f"{options.epochs}, {options.batch_size}"
        search = preset.search
        for part, label in ((preset.distill, "student"), (preset.search, "supernet")):
            by_sgd = settled(part, nn.BatchNorm2d(1)).learning_rate
            assert float(overview[f"learning rate of the {label}, by SGD"][name]) == by_sgd
            assert overview["optimizer"][name] == (part.optimizer or "by the network")
        assert overview["alignment"][name] == search.alignment
        assert overview["depths mixed"][name] == str(search.depth_samples or "all")
        rate = search.architecture_learning_rate
        assert overview["learning rate of the architecture"][name] == ("by the steps" if rate is None else str(rate))
        assert float(overview["weight decay of the architecture"][name]) == search.architecture_weight_decay
        is_scored = search.prior == "scores"
        assert overview["trial of each contender, epochs"][name] == (f"{search.trial_epochs}" if is_scored else "–")
        sharpened = overview["probabilities sharpened to the power"][name]
        assert sharpened == (f"{search.sharpening:g}" if search.sharpening != 1 else "–")
        assert overview["begins with"][name] == {"none": "nothing", "scores": "scores"}[search.prior]
        starts = {"scratch": "new weights", "model": "teacher"}
        assert overview["search starts from"][name] == starts[search.start]
        assert overview["student starts from"][name] == {**starts, "repaired": "what was kept"}[preset.student]


def epochs_of_full_training(preset):
    """What a preset costs, by the rule of thumb that the page states."""
    search = preset.search.epochs * preset.search.weights_share * 2
    trials = 4 * preset.search.trial_epochs * preset.search.weights_share
    return preset.teacher.epochs + search + (trials + preset.distill.epochs) * (1 / 2 + 1 / 3)


def test_the_costs_that_the_page_states_follow_from_its_rule():
    stated = re.search(r"epoch\): quick about (.*?)\.\n", PAGE, flags=re.DOTALL).group(1)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", stated)]
    for preset, number in zip(PRESETS.values(), numbers, strict=True):
        assert number == pytest.approx(epochs_of_full_training(preset), rel=0.06)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match=r"cannot use the preset 'papercifar': .*did you mean 'paper-cifar'"):
        get_preset("papercifar")


OPTIONS = (TrainingOptions, DistillationOptions, SearchOptions, LatencyOptions, CompressOptions, MeasureOptions)


@pytest.mark.parametrize(
    ("options", "name"),
    [(kind, each.name) for kind in OPTIONS for each in fields(kind) if "float" in str(each.type) and each.init],
)
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -1.0])
def test_numbers_without_meaning_are_refused(options, name, number):
    options(**{name: getattr(options(), name)})
    with pytest.raises(OptionError, match=name):
        options(**{name: number if name != "architecture_betas" else (number, 0.999)})
