"""Steps at lower precision, in parts, compiled, channels last; networks inside what prepares them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import transprune
from test_normalisation import in_rows
from test_resume import StopsAfter
from test_searching import Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.errors import OptionError, StoppedError
from transprune.kernels import normalisation
from transprune.kernels.feature_maps import suits_channels_last, use_channels_last
from transprune.options import DistillationOptions
from transprune.reading.networks import unwrapped
from transprune.runtime import processes
from transprune.training.batches import Batch
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit
from transprune.training.update import parts_of

SEARCH = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "architecture_learning_rate": 0.05}


def trained(**options):
    history = []
    network = transprune.train(
        small_network(),
        two_colours(),
        transprune.TrainingOptions(**SHORT, **options),
        setup=Setup(on_epoch=history.append),
    )
    return network, [figures["loss"] for figures in history]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_nearly_as_float32_does(precision):
    network, losses = trained(precision=precision)
    _, expected = trained()
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses != expected
    assert all(value.dtype in (torch.float32, torch.int64) for value in network.state_dict().values())


@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_search_at_lower_precision_learns_nearly_the_same(precision, alignment):
    torch.manual_seed(0)
    model = Residual()
    one, other = (
        transprune.search(
            model,
            two_colours(),
            "macs=0.5",
            transprune.SearchOptions(**SEARCH, precision=each, alignment=alignment),
        )
        for each in ("float32", precision)
    )
    torch.testing.assert_close(one.probabilities.widths, other.probabilities.widths, rtol=0.1, atol=0.02)
    assert not torch.equal(one.probabilities.widths, other.probabilities.widths)


@pytest.mark.parametrize("options", [{"precision": "float16"}, {"precision": "bfloat16"}, {"accumulate": 3}])
def test_training_stopped_after_any_step_goes_on_bit_for_bit(options, tmp_path):
    settings = transprune.TrainingOptions(**SHORT, **options)
    whole = transprune.train(small_network(), two_colours(), settings)
    with pytest.raises(StoppedError):
        transprune.train(small_network(), two_colours(), settings, setup=Setup(checkpoints=StopsAfter(tmp_path, 6)))
    resumed = transprune.train(
        small_network(), two_colours(), settings, setup=Setup(checkpoints=StopsAfter(tmp_path, 1000))
    )
    assert_same_state(whole.state_dict(), resumed.state_dict())


def test_a_search_in_parts_goes_on_bit_for_bit_and_draws_the_same_candidates_for_every_part(tmp_path):
    torch.manual_seed(0)
    model, options = Residual(), transprune.SearchOptions(**SEARCH, accumulate=2, precision="bfloat16")
    whole = transprune.search(model, two_colours(), "macs=0.5", options)
    with pytest.raises(StoppedError):
        transprune.search(model, two_colours(), "macs=0.5", options, setup=Setup(checkpoints=StopsAfter(tmp_path, 3)))
    resumed = transprune.search(
        model, two_colours(), "macs=0.5", options, setup=Setup(checkpoints=StopsAfter(tmp_path, 1000))
    )
    assert torch.equal(whole.probabilities.widths, resumed.probabilities.widths)


def test_parts_of_a_batch_hold_every_sample_once():
    batch = Batch((torch.arange(7.0), {"sizes": list("abcdefg"), "scale": torch.tensor(2.0)}), torch.arange(7))
    parts = parts_of(batch, 3)
    assert torch.cat([part.inputs[0] for part in parts]).tolist() == list(range(7))
    assert [part.inputs[1]["sizes"] for part in parts] == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert all(part.inputs[1]["scale"] == 2 for part in parts)
    assert parts_of(batch, 1) == [batch]
    assert len(parts_of(batch, 100)) == 7


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"accumulate": 0}])
def test_what_no_step_can_be_is_refused(options):
    with pytest.raises(OptionError, match="expected"):
        transprune.TrainingOptions(**options)
    with pytest.raises(OptionError, match="expected"):
        transprune.SearchOptions(**options)


def test_a_compiled_network_trains_alike_under_its_plain_names(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile_(network, backend="aot_eager"))
    teacher = small_network(1)
    options = transprune.DistillationOptions(**SHORT)
    plain = transprune.distill(small_network(), teacher, two_colours(), options)
    compiled = transprune.distill(
        small_network(), teacher, two_colours(), transprune.DistillationOptions(**SHORT, compile=True)
    )
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


class Flat(nn.Module):
    """A forward that channels last cannot follow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3))
        self.norm, self.classifier = nn.BatchNorm2d(4), nn.Linear(16, 2)

    def forward(self, images):
        features = self.norm(self.conv(images))
        return self.classifier(features.view(len(images), -1))


def fit_of(network, teacher=None, **options):
    return Fit(
        *(network, teacher, two_colours(), DistillationOptions(**SHORT, **options), classification()),
        setup=Setup(phase="teacher"),
    )


def test_convolutions_learn_channels_last_and_end_as_they_began():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    fit = fit_of(network)
    last, plain = {"memory_format": torch.channels_last}, {"memory_format": torch.contiguous_format}
    assert fit.network[1].weight.is_contiguous(**last)
    assert not fit.network[1].weight.is_contiguous(**plain)
    assert network[1].weight.is_contiguous(**plain), "the caller's network is untouched"
    fit.run()
    assert all(parameter.is_contiguous(**plain) for parameter in fit.finished().parameters())


def test_a_forward_that_channels_last_cannot_follow_keeps_the_usual_layout():
    assert not suits_channels_last(Flat(), (torch.zeros(1, 1, 4, 4),))
    assert not suits_channels_last(nn.Linear(4, 2), (torch.zeros(1, 4),)), "nothing to gain"
    assert suits_channels_last(small_network(), (torch.zeros(1, 1, 4, 4),))
    fit = fit_of(Flat())
    fit.run()
    changed = copy.deepcopy(fit.network)
    use_channels_last(changed)
    with pytest.raises(RuntimeError, match="view"):
        changed(torch.zeros(2, 1, 4, 4))


def deep_network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    return nn.Sequential(*layers)


def test_norms_of_a_network_in_training_are_computed_in_rows_and_learn_the_same(monkeypatch):
    monkeypatch.setattr(normalisation, "PIXELS", 1)
    calls = in_rows(monkeypatch)
    fast, plain = fit_of(deep_network()), fit_of(deep_network())
    plain.update.has_fast_norms = False
    plain.run()
    assert calls == []
    fast.run()
    assert len(calls) == fast.epochs * fast.steps_an_epoch
    torch.testing.assert_close(fast.network.state_dict(), plain.network.state_dict(), rtol=1e-3, atol=1e-5)
    assert not fit_of(deep_network(), compile=True).update.has_fast_norms


@pytest.mark.parametrize(("sync_norms", "parts"), [(True, 2), (False, 4)])
def test_where_norms_meet_all_processes_compute_as_many_parts(sync_norms, parts, monkeypatch):
    fit = fit_of(deep_network(), accumulate=4, sync_norms=sync_norms)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gathered", lambda samples: [samples, 2])
    assert fit.update._count(Batch((torch.zeros(5, 1, 4, 4),), None)) == parts


class Recomputing(nn.Module):
    """Keeps no activations of its middle layers, but computes them again in the backward."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 1)
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=0.0), nn.ReLU())
        self.last = nn.Linear(16, 2)
        self.settings = settings

    def forward(self, images):
        features = self.first(images)
        recomputes = self.settings and torch.is_grad_enabled()
        features = checkpoint(self.middle, features, **self.settings) if recomputes else self.middle(features)
        return self.last(features.flatten(1))


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_activations_that_are_computed_again_pass_through_the_same_norms(is_reentrant, monkeypatch):
    monkeypatch.setattr(normalisation, "PIXELS", 1)
    plain, recomputing = fit_of(Recomputing()), fit_of(Recomputing(use_reentrant=is_reentrant))
    plain.run()
    recomputing.run()
    for name, parameter in plain.network.named_parameters():
        torch.testing.assert_close(recomputing.network.get_parameter(name), parameter)


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 2)

    def forward(self, images):
        features = self.second(torch.relu(self.norm(self.conv(images))))
        return self.last(features.float().mean((2, 3)))


def test_a_forward_that_casts_is_searched_at_lower_precision():
    options = transprune.SearchOptions(**SEARCH | {"epochs": 1}, precision="bfloat16")
    found = transprune.search(Casting(), two_colours(), "macs=0.6", options)
    assert found.actual <= found.target


SPOILT = (torch.ones(8, 4), torch.full((8, 4), float("inf")), torch.ones(8, 4))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_is_left_out_at_any_precision_and_its_layer_named(precision, capsys):
    batches = [(images, torch.zeros(8, dtype=torch.int64)) for images in SPOILT]
    data = transprune.LoaderData(train=batches, test=batches[:1], example=torch.zeros(1, 4))
    options = transprune.TrainingOptions(epochs=1, warm_up_epochs=0, precision=precision)
    history = []
    transprune.train(
        nn.Sequential(nn.Linear(4, 2)),
        data,
        options,
        setup=Setup(on_divergence="skip", on_epoch=history.append),
    )
    assert history[0]["skipped"] == 1
    assert "the output of the layer '0' is the first that is not finite" in capsys.readouterr().err


@pytest.mark.parametrize(("network", "is_last"), [(Flat, False), (deep_network, True)])
def test_a_teacher_answers_channels_last_if_it_can(network, is_last):
    seen, teacher = [], network()
    last_of = [module for module in teacher.modules() if isinstance(module, nn.Conv2d)][-1]
    last_of.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    fit = fit_of(small_network(), teacher)
    seen.clear()
    fit.step(next(iter(fit.batches)))
    assert [outputs.is_contiguous(memory_format=torch.channels_last) for outputs in seen] == [is_last]
    assert last_of.weight.is_contiguous(), "the caller's network is untouched"


class Prepared(nn.Module):
    """What Lightning Fabric makes of a network."""

    def __init__(self, network):
        super().__init__()
        self._forward_module = network

    def forward(self, *inputs):
        return self._forward_module(*inputs)


@pytest.mark.parametrize("wrap", [nn.DataParallel, Prepared, lambda network: torch.compile(network, backend="eager")])
def test_a_prepared_network_is_worked_on_under_its_plain_names(wrap):
    torch.manual_seed(0)
    network = Residual()
    prepared, example = wrap(network), torch.zeros(1, 1, 4, 4)
    assert unwrapped(prepared) is network
    space = transprune.inspect(prepared, example)
    assert space == transprune.inspect(network, example)
    options = transprune.SearchOptions(**SEARCH | {"epochs": 1})
    found = transprune.search(prepared, two_colours(), "macs=0.5", options)
    student = transprune.shrink(prepared, found.architecture, example)
    assert isinstance(student, Residual)
    options = transprune.DistillationOptions(epochs=1, batch_size=16, warm_up_epochs=0)
    names = list(transprune.distill(wrap(student), prepared, two_colours(), options).state_dict())
    assert names == list(student.state_dict())


def test_a_forward_that_accelerate_replaced_is_taken_off():
    network = Residual()
    network._original_forward, network.forward = network.forward, lambda images: pytest.fail("replaced")
    plain = unwrapped(network)
    assert plain(torch.zeros(2, 1, 4, 4)).shape == (2, 2)
    assert "forward" in vars(network), "the caller's network is untouched"
    assert plain.state_dict().keys() == network.state_dict().keys()
    assert all(one is other for one, other in zip(plain.parameters(), network.parameters(), strict=True))


def test_a_network_that_only_has_a_part_named_module_is_no_wrapper():
    network = nn.Sequential()
    network.add_module("module", nn.Linear(4, 2))
    assert unwrapped(network) is network
