"""Eight bits, and latency in every runtime that is installed."""

from unittest import mock

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import transprune
from transprune.errors import ExportError, LatencyError
from transprune.exports.runtimes import RUNTIMES, Loaded
from transprune.latency import performance
from transprune.latency.backends import make_backend
from transprune.latency.performance import most_time
from transprune.options import LatencyOptions, MeasureOptions

INSTALLED = [name for name, runtime in RUNTIMES.items() if runtime.is_installed]


def network():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()


def data_for(model):
    """Images whose classes are what the network answers, so that any change of an answer shows."""
    generator = torch.Generator().manual_seed(0)
    brightness = 4 * torch.rand(192, 1, 1, 1, generator=generator) - 2
    images = brightness + 0.1 * torch.randn(192, 1, 8, 8, generator=generator)
    with torch.no_grad():
        logits = model(images)
        model[-1].bias -= logits.mean(0)  # both classes
        labels = model(images).argmax(1)
    train, test = (TensorDataset(images[part], labels[part]) for part in (slice(0, 128), slice(128, None)))
    return transprune.LoaderData(train=DataLoader(train, 32), test=DataLoader(test, 32), example=images[:1])


def test_eight_bits_are_smaller_and_measured_beside_thirty_two(tmp_path):
    model = network()
    data = data_for(model)
    found = transprune.quantise(model, data, tmp_path / "small.onnx", samples=64, latency=LatencyOptions(repeats=3))
    assert found.before.top1 == 100
    assert 80 < found.after.top1 <= 100
    assert found.before.loss != found.after.loss
    assert (tmp_path / "small.onnx").stat().st_size == found.bytes_after < found.bytes_before
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    images = torch.cat([batch for batch, _ in data.test])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model(images)
    assert 0 < float((torch.from_numpy(logits) - expected).abs().max()) < 0.2 * float(expected.abs().max())
    assert {"top1", "latency_ms", "file_bytes"} <= set(found.to_json()["int8"])


def test_eight_bits_of_several_named_outputs_keep_their_structure(tmp_path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = network()

        def forward(self, images):
            logits = self.inside(images)
            return {"logits": logits, "doubled": 2 * logits}

    named = Named()
    found = transprune.quantise(named, data_for(named.inside), tmp_path / "a.onnx", latency=LatencyOptions(repeats=3))
    assert (found.before.top1, found.after.top1 > 80) == (100, True)


def test_eight_bits_want_an_onnx_name(tmp_path):
    model = network()
    with pytest.raises(ExportError, match=r"expected a name that ends in \.onnx"):
        transprune.quantise(model, data_for(model), tmp_path / "small.pt2")


@pytest.mark.parametrize("name", INSTALLED)
def test_latency_is_measured_in_every_runtime(name):
    options = LatencyOptions(backend=name, repeats=3)
    backend = make_backend(options)
    assert RUNTIMES[name].name in backend.surroundings()
    with backend.running():
        outputs = list(backend.network(network(), (torch.zeros(1, 1, 8, 8),))())
    assert outputs[0].shape == (1, 2)
    found = transprune.measure_latencies({"net": network()}, torch.zeros(1, 1, 8, 8), options)
    assert found["net"].runtime == name
    assert found["net"].latency_ms > 0


@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "onnxruntime"])
def test_a_budget_of_time_is_learned_in_every_runtime(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, example = network(), torch.zeros(1, 1, 8, 8)
    space = transprune.inspect(model, example)
    options = LatencyOptions(backend=name, repeats=3, grid=2, architectures=4, validations=2)
    found = transprune.measure_latency(model, space, example, options)
    assert space.cost(found.model, space.full_architecture()) > 0
    assert found.key[name] == RUNTIMES[name].version


def test_measuring_covers_what_is_installed_and_leaves_out_what_refuses(monkeypatch):
    class Refusing(type(RUNTIMES["onnxruntime"])):
        name, title = "litert", "LiteRT"

        def write(self, program, notes=None):
            raise ExportError("cannot write the network for LiteRT: no such operator")

    monkeypatch.setitem(RUNTIMES, "litert", Refusing())
    options = MeasureOptions(batch_size=2, repeats=5, memory=False)
    with mock.patch.object(performance.log, "warning") as said:
        found = transprune.measure({"net": network()}, torch.zeros(1, 1, 8, 8), options)
    assert {each.runtime for each in found} == {"torch", *INSTALLED} - {"litert"}
    form, *parts = said.call_args.args
    assert "LiteRT is left out: cannot write the network for LiteRT: no such operator" in form % tuple(parts)
    assert "at most; memory is left out" in most_time(1, options)


def test_a_runtime_that_fails_says_so(monkeypatch):
    def fails(feed):
        raise RuntimeError("out of order")

    monkeypatch.setattr(type(RUNTIMES["onnxruntime"]), "load", lambda *_: Loaded(list, fails))
    backend = make_backend(LatencyOptions())
    with pytest.raises(LatencyError, match=r"in onnxruntime: it does not run .*RuntimeError: out of order"):
        backend.network(network(), (torch.zeros(1, 1, 8, 8),))
