"""No step on a device makes the host wait for it, told without such a device.

Tensors of torch's device `meta` have no values: whatever wants one of them fails. What comes from the host must not
wait for its arrival, which shows in its call.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import transprune
from any_networks import ANY
from small_networks import CASES, CLASSES
from test_training import SHORT, small_network
from transprune.budget import Limit
from transprune.costs import MACS
from transprune.data import ImageData, MemorySplit
from transprune.reading.inspection import inspect
from transprune.tas import bilevel
from transprune.tas.bilevel import Bilevel
from transprune.training import faults, train, update
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit

DEVICE = torch.device("meta")
EVERYTHING = transprune.Augmentation(flip=True, pad=2, lighting=0.1)
READS = ("_local_scalar_dense", "is_nonzero", "equal.default", "nonzero", "masked_select", "unique")
"""What needs values or gives sizes that depend on them, in the names of operators."""


class Watch(TorchDispatchMode):
    """Notes what a host would wait for: values of the device, and copies to or from it that wait for their arrival."""

    def __init__(self, *, answers=False):
        super().__init__()
        self.waits, self.answers = [], answers

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(operator)
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        is_there = any(each.device == DEVICE for each in tensors)
        if is_there and any(read in name for read in READS):
            self.waits.append(name)
        if "_to_copy" in name and kwargs.get("device", tensors[0].device) != tensors[0].device:
            is_back = is_there and kwargs["device"].type == "cpu"
            if is_back or not kwargs.get("non_blocking"):
                self.waits.append(f"{name} {'from' if is_back else 'to'} the device")
            if is_back:
                return torch.zeros_like(tensors[0], device="cpu")
        return operator(*args, **kwargs)


class OnItsWay:
    """Stands for a flag on its way from a CUDA device."""

    read = 0

    def __init__(self, flag):
        assert flag.device == DEVICE

    def arrived(self):
        type(self).read += 1
        return True


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """What `meta` cannot do and CUDA can."""
    monkeypatch.setattr(update, "autocast", lambda precision, device: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)
    monkeypatch.setattr(faults, "_OnItsWay", OnItsWay)
    for module in (bilevel, train):  # the loss of the very first batch is looked at
        monkeypatch.setattr(module, "check_first_loss", lambda loss, phase: None)
    monkeypatch.setattr(OnItsWay, "read", 0)


def images(channels=1, classes=2, side=4):
    split = MemorySplit(torch.zeros(32, channels, side, side, dtype=torch.uint8), torch.arange(32) % classes)
    return ImageData(
        name="dark",
        train=split,
        test=split,
        classes=tuple("abcdefghij"[:classes]),
        image_size=(channels, side, side),
        mean=(0.5,) * channels,
        std=(0.3,) * channels,
        augmentation=EVERYTHING,
    )


@pytest.mark.parametrize("teacher", [None, small_network()])
def test_no_step_of_a_training_or_distillation_waits(teacher):
    options = transprune.DistillationOptions(**SHORT, accumulate=2)
    fit = Fit(
        small_network(),
        teacher,
        images(),
        options,
        classification(),
        setup=Setup(device=DEVICE, phase="teacher"),
    )
    with Watch() as watch:
        for batch in fit._batches:
            fit.step(batch)
    assert watch.waits == []
    assert OnItsWay.read == 1, "of two steps, the first is judged in the second"


ODD = ("u_net", "one_dimensional", "three_dimensional", "TextNetwork", "TwoInputs", "TwoOutputs", "AuxiliaryHead")
"""Networks that are no plain classifiers of images."""
NETWORKS = CASES | {name: case.make for name, case in ANY.items() if name not in ODD}


@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_the_weights_waits_for_nothing_and_one_of_the_architecture_for_its_gradients_alone(name, alignment):
    network, data = NETWORKS[name](), images(channels=3, classes=CLASSES, side=8)
    space = inspect(network, torch.zeros(1, *data.image_size), ratios=(0.5, 0.75, 1.0))
    options = transprune.SearchOptions(epochs=3, batch_size=8, alignment=alignment)
    limits = [Limit(MACS, space.macs(space.full_architecture()) // 2)]
    searching = Bilevel(network, data, options, space=space, limits=limits, setup=Setup(device=DEVICE))
    batches = iter(searching.weight_batches), iter(searching.architecture_batches)
    for temperature in (5.0, 0.01):  # undecided, and settled, where few candidates are left
        with Watch() as watch:
            searching.step_weights(next(batches[0]), temperature)
        assert watch.waits == []
        with Watch() as watch:
            searching.step_architecture(next(batches[1]), temperature)
        assert set(watch.waits) == {"aten._to_copy.default from the device"}
        assert len(watch.waits) <= 3, "the gradients of widths, depths and penalty"
