"""A network is read once: what was read serves every verb and every copy of it, and no other network."""

import copy
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fake_latency import use_fake_backend
from small_networks import plain
from test_any_network import ALL, inputs_of, network_of, space_of
from test_frontier import FAST, NET
from test_latency_budget import FAKE
from test_searching import OPTIONS, Residual
from test_training import SHORT, two_colours
from transprune.cli import main
from transprune.latency.measurement import measure_latency
from transprune.reading import trace
from transprune.reading.inspection import inspect
from transprune.reading.networks import blueprint
from transprune.reading.reading import read
from transprune.searching.search import search
from transprune.shrinking.shrink import kept_entries, shrink
from transprune.shrinking.sort import sort_channels
from transprune.space import SearchSpace
from transprune.tas.supernet import Supernet
from transprune.training.train import TrainingOptions, distill

# How often a network is traced


@pytest.fixture
def traced(monkeypatch):
    """Classes of the networks that were traced, one for each time."""
    found, exported = [], trace._export

    def counted(network, inputs):
        found.append(type(network).__name__)
        return exported(network, inputs)

    monkeypatch.setattr(trace, "_export", counted)
    return found


def run(budget: str, *more: str) -> None:
    Path("net.py").write_text(NET)
    main(["run", "net.py:build", "--budget", budget, "--out", "out", *FAST, *more])


@pytest.mark.parametrize("budget", ["macs=0.5", "macs=0.4,0.7"])
def test_a_whole_run_traces_its_network_once(budget, traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(budget)
    assert Path("out", "frontier.json" if "," in budget else "report.html").is_file()
    assert traced == ["Sequential"]
    main(["export", "out" if "," not in budget else "out/macs-0.4"])
    assert len(traced) == 2


def test_a_plan_traces_its_network_once(traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("macs=0.5", "--plan")
    assert traced == ["Sequential"]


def test_the_python_verbs_trace_a_network_once_between_them(traced, tmp_path, monkeypatch):
    use_fake_backend(monkeypatch, tmp_path)
    torch.manual_seed(0)
    network, data = Residual(), two_colours()
    images = torch.zeros(2, *data.image_size)
    space = inspect(network, images)
    measure_latency(network, space, images, FAKE)
    found = search(network, data, "latency=0.7", replace(OPTIONS, start="model"), space=space, latency=FAKE)
    student = shrink(network, found.architecture, images, reading=found.space.reading)
    distill(student, network, data, TrainingOptions(**SHORT))
    assert traced == ["Residual"]


def test_a_search_without_a_space_traces_once_and_hands_on_what_it_read(traced):
    torch.manual_seed(0)
    network, data = Residual(), two_colours()
    found = search(network, data, "macs=0.5", OPTIONS)
    shrink(network, found.architecture, torch.zeros(1, *data.image_size), reading=found.space.reading)
    assert traced == ["Residual"]


def test_a_head_that_runs_in_training_alone_is_traced_once_more(traced):
    network, inputs = network_of("AuxiliaryHead"), inputs_of("AuxiliaryHead")
    space = inspect(network, inputs)
    shrink(network, space.smallest_architecture(), inputs, reading=space.reading)
    assert traced == ["AuxiliaryHead"] * 2


# Whom a reading serves


@pytest.mark.parametrize("name", ALL)
def test_what_was_read_serves_every_copy_of_a_network_trained_and_with_other_samples(name):
    reading = space_of(name).reading
    network = copy.deepcopy(network_of(name)).train()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    assert read(network, inputs_of(name, 3), reading) is reading


@pytest.mark.parametrize("name", ["plain", "shared", "vision_transformer"])
def test_a_reading_holds_no_weights(name):
    network, held = network_of(name), space_of(name).reading.trace.model
    assert held.state_dict().keys() == network.state_dict().keys()
    assert all(tensor.is_meta for tensor in held.state_dict().values())
    assert len(list(held.parameters())) == len(list(network.parameters()))


@pytest.mark.parametrize("name", ["staged", "IteratedStage", "inception", "vision_transformer"])
def test_every_verb_gives_the_same_with_what_is_known_as_without(name):
    network, inputs, space = network_of(name), inputs_of(name), space_of(name)
    architecture = space.random_architecture(1)
    for verb in (shrink, sort_channels):
        given = (architecture, inputs) if verb is shrink else (inputs,)
        known, anew = verb(network, *given, reading=space.reading), verb(network, *given)
        assert known.state_dict().keys() == anew.state_dict().keys()
        assert all(torch.equal(value, anew.state_dict()[path]) for path, value in known.state_dict().items())
    known, anew = (kept_entries(network, architecture, inputs, reading=each) for each in (space.reading, None))
    assert {path: [axis.tolist() for axis in axes] for path, axes in known.items()} == {
        path: [axis.tolist() for axis in axes] for path, axes in anew.items()
    }


class Scaled(nn.Module):
    """A forward that depends on settings of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale, self.many, self.function = 1.0, {"factors": [1.0, 2.0]}, partial(F.leaky_relu, negative_slope=0.1)
        self.config, self.table = SimpleNamespace(factor=1.0), torch.ones(8)
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, features: Tensor) -> Tensor:
        features = self.function(self.first(features)) * self.scale * self.many["factors"][0] * self.config.factor
        features = self.second(self.drop(features)) * self.table + self.shift
        return self.last(self.third(features.relu()).relu())


def share_a_weight(network: Scaled) -> None:
    network.third.weight = network.second.weight


CHANGES = {
    "number": lambda network: setattr(network, "scale", 2.0),
    "nested number": lambda network: network.many["factors"].__setitem__(0, 3.0),
    "number of an object": lambda network: setattr(network.config, "factor", 2.0),
    "argument": lambda network: setattr(network, "function", partial(F.leaky_relu, negative_slope=0.2)),
    "function": lambda network: setattr(network, "function", F.relu),
    "tensor that is no weight": lambda network: network.table.mul_(2),
    "number of a submodule": lambda network: setattr(network.drop, "p", 0.3),
    "module": lambda network: setattr(network, "drop", nn.AlphaDropout(0.1)),
    "hook": lambda network: network.second.register_forward_hook(lambda *_: None),
    "shape": lambda network: setattr(network, "first", nn.Linear(4, 8, bias=False)),
    "type": lambda network: network.double(),
    "sharing": share_a_weight,
}


@pytest.fixture(scope="module")
def scaled():
    torch.manual_seed(0)
    network = Scaled().eval()
    return network, inspect(network, torch.zeros(2, 4))


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_was_changed_in_more_than_its_weights_is_read_anew(change, scaled):
    network, space = copy.deepcopy(scaled[0]), scaled[1]
    assert space.reading.is_of(network, torch.zeros(2, 4))
    CHANGES[change](network)
    assert not space.reading.is_of(network, torch.zeros(2, 4))


def test_a_student_follows_a_setting_that_was_changed_after_the_network_was_read(scaled):
    network, space, inputs = copy.deepcopy(scaled[0]), scaled[1], torch.randn(3, 4)
    network.scale = 5.0
    student = shrink(network, space.full_architecture(), inputs, reading=space.reading)
    assert torch.equal(student(inputs), network(inputs))
    assert type(student) is Scaled


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 5), torch.zeros(2, 3, 4), torch.zeros(2, 4).double(), (torch.zeros(2, 4),) * 2, torch.tensor(0.0)],
)
def test_an_example_of_another_kind_is_read_anew(example, scaled):
    network, space = scaled
    assert not space.reading.is_of(network, example)
    assert space.reading.is_of(network, (torch.ones(7, 4),))


def test_copies_of_what_torch_makes_up_have_one_blueprint():
    network = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    reading = read(network, torch.zeros(2, 4))
    assert reading.is_of(copy.deepcopy(network), torch.zeros(2, 4))
    recurrent = nn.LSTM(4, 8)
    assert blueprint(copy.deepcopy(recurrent)) == blueprint(recurrent)


# How a reading travels


def test_a_space_from_a_file_or_from_another_process_has_no_reading():
    space = inspect(plain(), torch.zeros(2, 3, 8, 8))
    assert SearchSpace.from_json(space.to_json()) == space
    assert "reading" not in space.to_json()
    for other in (SearchSpace.from_json(space.to_json()), pickle.loads(pickle.dumps(space))):
        assert other == space
        assert other.reading is None
    assert space.reading is not None
    with pytest.raises(ValueError, match="reading is unknown"):
        SearchSpace.from_json(space.to_json() | {"reading": None})


def test_a_supernet_reads_the_network_of_a_space_from_a_file(traced):
    network, images = plain(), torch.zeros(2, 3, 8, 8)
    space = SearchSpace.from_json(inspect(network, images).to_json())
    Supernet(network, space, images)
    assert len(traced) == 2
