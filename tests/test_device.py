"""What has a device, on the one of `--device`: by default the CPU; on a GPU `pytest -m device --device cuda`.

Sums differ in their last digits between devices, so figures of one are held against those of the other to a tolerance.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import transprune
from any_networks import ANY
from test_training import small_network, two_colours
from transprune.data import make_loader
from transprune.latency.stopwatch import measure_latencies
from transprune.options import LatencyOptions
from transprune.reading.inspection import inspect
from transprune.runtime import choose_device
from transprune.tas.bilevel import Bilevel
from transprune.tas.sampling import ArchitectureParameters
from transprune.tas.supernet import Supernet

pytestmark = pytest.mark.device
TRAINING = transprune.TrainingOptions(epochs=4, batch_size=16, learning_rate=0.05, warm_up_epochs=1)
DISTILLATION = transprune.DistillationOptions(epochs=2, batch_size=16, learning_rate=0.01, warm_up_epochs=0)
SEARCH = transprune.SearchOptions(
    epochs=2, batch_size=16, warm_up_epochs=0, start="model", prior="scores", distillation=0.5
)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""TF32 and sums of another order."""


def place(value):
    return next(value.parameters()).device.type


@pytest.fixture
def setup(device):
    return transprune.Setup(device=device, progress=False)


def test_a_network_stays_where_it_is_and_is_untouched(device):
    network, data = small_network().to(device), two_colours()
    before = copy.deepcopy(network.state_dict())
    assert choose_device(None, network).type == torch.device(device).type
    trained = transprune.train(network, data, TRAINING, setup=transprune.Setup(progress=False))
    assert place(trained) == torch.device(device).type
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert transprune.evaluate(trained, data).top1 == 100.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_distillation_learns_in_each_precision(device, precision, setup):
    data = two_colours()
    teacher = transprune.train(small_network(), data, TRAINING, setup=setup)
    options = transprune.DistillationOptions(
        epochs=4, batch_size=16, learning_rate=0.05, warm_up_epochs=1, precision=precision
    )
    student = transprune.distill(small_network(1), teacher, data, options, setup=setup)
    assert place(student) == torch.device(device).type
    assert transprune.evaluate(student, data, device=device).top1 == 100.0


def test_batches_are_the_same_on_every_device(device):
    data = two_colours()
    here, there = (
        [images.cpu() for images, _ in make_loader(data.train, data, batch_size=16, train=True, seed=0, device=each)]
        for each in ("cpu", device)
    )
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


NETWORKS = {name: ANY[name].make for name in ("dense", "shuffled", "channel_attention")}


@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_supernet_gives_on_every_device_what_it_gives_on_the_cpu(device, name, alignment):
    torch.manual_seed(0)
    network, images = NETWORKS[name]().eval(), torch.randn(4, 3, 8, 8)
    space = inspect(network, images[:1])
    parameters = ArchitectureParameters(space)
    drawn = [
        parameters.sample(1.0, generator=torch.Generator().manual_seed(7), device=each) for each in ("cpu", device)
    ]
    given, gradients = [], []
    for selection, each in zip(drawn, ("cpu", device), strict=True):
        supernet = Supernet(network, space, images[:1], alignment=alignment).to(each).train()
        outputs = supernet(selection, images.to(each))
        outputs.square().mean().backward()
        given.append(outputs.detach().cpu())
        gradients.append(max(float(one.grad.norm()) for one in supernet.parameters() if one.grad is not None))
    torch.testing.assert_close(*given, **CLOSE)
    assert math.isclose(*gradients, rel_tol=1e-2)


def test_a_search_from_scores_ends_within_the_budget_and_hands_on_a_student_there(device, setup):
    data = two_colours()
    teacher = transprune.train(small_network(), data, TRAINING, setup=setup)
    found = transprune.search(teacher, data, "macs=0.5", SEARCH, setup=setup)
    assert found.actual <= found.target
    assert place(found.student) == torch.device(device).type
    student = transprune.distill(found.student, teacher, data, DISTILLATION, setup=setup)
    assert place(student) == torch.device(device).type
    images = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(student(images.to(device)).cpu(), student.cpu()(images), **CLOSE)


def test_compression_without_training_is_near_that_of_the_cpu(device):
    data = two_colours()
    teacher = transprune.train(small_network(), data, TRAINING, setup=transprune.Setup(progress=False))
    moved = [
        transprune.compress(copy.deepcopy(teacher).to(each), data, "macs=0.6", samples=32).moved
        for each in ("cpu", device)
    ]
    assert math.isclose(*moved, rel_tol=0.05, abs_tol=1e-3)


def test_a_search_that_is_stopped_goes_on_there(device, tmp_path):
    data, network = two_colours(), small_network()
    whole = transprune.search(network, data, "macs=0.5", SEARCH, setup=transprune.Setup(device=device, progress=False))

    def stop(figures):
        raise KeyboardInterrupt

    keep = transprune.Checkpoints(tmp_path)
    first = transprune.Setup(device=device, progress=False, checkpoints=keep, on_epoch=stop)
    with pytest.raises(KeyboardInterrupt):
        transprune.search(network, data, "macs=0.5", SEARCH, setup=first)
    again = transprune.Setup(device=device, progress=False, checkpoints=keep)
    resumed = transprune.search(network, data, "macs=0.5", SEARCH, setup=again)
    assert [each["epoch"] for each in resumed.history] == [1, 2]
    assert math.isclose(resumed.entropy, whole.entropy, rel_tol=0.05)


def test_what_is_exported_from_there_gives_what_the_network_gives(device, tmp_path):
    network = small_network().to(device).eval()
    transprune.export(network, torch.zeros(1, 1, 4, 4), tmp_path / "network.onnx")
    assert place(network) == torch.device(device).type
    images = torch.randn(2, 1, 4, 4)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), network(images.to(device)).detach().cpu(), **CLOSE)


def test_latencies_there_say_where_they_were_taken(device):
    options = LatencyOptions(backend="torch", repeats=20, threads=1, batch_size=2)
    network = small_network().eval()
    found = measure_latencies({"small": network}, torch.zeros(1, 1, 4, 4), options, device=device)["small"]
    assert found.runtime == "torch"
    assert found.device.startswith(torch.device(device).type)
    assert 0 < found.lower_ms <= found.latency_ms <= found.upper_ms


def on_cuda(device):
    if torch.device(device).type != "cuda":
        pytest.skip("only CUDA lets the host run ahead; test_waiting.py tells the same without a device")


def test_no_step_of_the_weights_waits_for_cuda(device):
    on_cuda(device)
    data, network = two_colours(), small_network()
    space = inspect(network, torch.zeros(1, 1, 4, 4))
    options = transprune.SearchOptions(epochs=4, batch_size=16, warm_up_epochs=0)
    limits = [transprune.Budget.parse("macs=0.5").limit(space)]
    search = Bilevel(network, data, options, space=space, limits=limits, setup=transprune.Setup(device=device))
    batches = iter(search.weight_batches)
    search.step_weights(next(batches), 5.0)  # what is looked at only once
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        search.step_weights(batch, 5.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_that_runs_out_on_cuda_is_said(device):
    on_cuda(device)
    network = small_network()
    network[4].register_forward_pre_hook(lambda *_: torch.empty(1 << 50, device=device))
    with pytest.raises(transprune.errors.ResourceError, match="memory"):
        transprune.train(network, two_colours(), TRAINING, setup=transprune.Setup(device=device, progress=False))


def test_the_same_seed_gives_the_same_figures_there(device, setup):
    losses = []
    for _ in range(2):
        seen = []
        transprune.train(
            small_network(),
            two_colours(),
            TRAINING,
            setup=transprune.Setup(device=device, progress=False, on_epoch=seen.append),
        )
        losses.append(seen[-1]["loss"])
    assert math.isclose(*losses, rel_tol=1e-3)


def test_a_network_in_channels_last_is_trained_as_it_is(device, setup):
    network = small_network().to(memory_format=torch.channels_last)
    trained = transprune.train(network, two_colours(), TRAINING, setup=setup)
    images = torch.randn(2, 1, 4, 4, device=device)
    assert F.softmax(trained(images), 1).sum().item() == pytest.approx(2.0)
