"""Settings and helpers that all tests share."""

import pytest
import torch
from hypothesis import settings
from torch import nn

from transprune.reading import inspection
from transprune.reading.reading import Reading
from transprune.reading.trace import Example
from transprune.shrinking import shrink, sort
from transprune.tas import supernet

settings.register_profile("transprune", deadline=None)  # no test asserts on a time
settings.load_profile("transprune")

HEART = {
    "alignment",
    "axes",
    "budget",
    "derivation",
    "expected_cost",
    "golden",
    "mixtures",
    "penalty",
    "sampling",
    "space",
}
"""Files that `make quick` runs: the formulas of the paper, reading, costs, and the architecture that keeps a budget."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in HEART:
            item.add_marker(pytest.mark.heart)


@pytest.fixture(autouse=True)
def _few_threads():
    """Two threads: what a small machine has, so that results do not depend on where the tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


READINGS: list[tuple[nn.Module, tuple[tuple[int, ...], ...], Reading]] = []


@pytest.fixture
def read_once(monkeypatch):
    """Every verb reads its model anew; here a model is read once for inputs of one shape. Gives `inspect`."""
    read = inspection.read

    def read_known(model: nn.Module, example: Example) -> Reading:
        inputs = example if isinstance(example, tuple) else (example,)
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        for known, known_shapes, reading in READINGS:
            if known is model and known_shapes == shapes:
                return reading
        READINGS.append((model, shapes, read(model, example)))
        return READINGS[-1][2]

    for module in (inspection, shrink, sort, supernet):
        monkeypatch.setattr(module, "read", read_known)
    return inspection.inspect


@pytest.fixture(scope="module", autouse=True)
def _readings_of_a_file():
    """Models and their readings are forgotten after each file."""
    yield
    READINGS.clear()
