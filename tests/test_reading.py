"""A network is read once: what was read serves every verb and every copy, and no network that is another."""

import pytest
import torch

from small_networks import plain
from test_searching import OPTIONS
from test_training import SHORT, two_colours
from transprune.reading import trace
from transprune.reading.inspection import inspect
from transprune.shrinking.shrink import shrink
from transprune.tas.search import search
from transprune.training.train import distill


@pytest.fixture
def traces(monkeypatch):
    """The classes of the networks that were traced."""
    found, exported = [], trace._exported

    def counted(network, inputs):
        found.append(type(network).__name__)
        return exported(network, inputs)

    monkeypatch.setattr(trace, "_exported", counted)
    return found


def test_the_python_verbs_trace_a_network_once_all_together(traces):
    data = two_colours()
    torch.manual_seed(0)
    network, images = plain(channels=1), torch.zeros(2, *data.image_size)
    space = inspect(network, images)
    found = search(network, data, "macs=0.5", OPTIONS, space=space)
    student = shrink(network, found.architecture, images, reading=found.space.reading)
    distill(student, network, data, SHORT)
    assert traces == ["Sequential"]
