"""Convolutions channels last: what torch's own get wrong is computed in another way."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import transprune
from small_networks import CASES, example
from test_training import two_colours
from transprune.kernels.feature_maps import SoundConvolutions, suits_channels_last


class Watch(TorchDispatchMode):
    """Watches the gradients of convolutions, and refuses those that oneDNN writes past the end of its workspace."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            weight, stride, padding, groups = args[2], args[4], args[5], args[9]
            is_pointwise = tuple(weight.shape[2:]) == (1, 1) and not any(padding) and groups == 1
            assert not (is_pointwise and max(stride) > 1 and weight.shape[1] < 16), (weight.shape, stride)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("arguments", [(None, 2), (None, (2, 1)), (None, 3, 0), (None, [2], "valid")])
@pytest.mark.parametrize("channels", [1, 3, 15])
@pytest.mark.parametrize("shape", [(8, 8), (7, 5)])
def test_strided_pointwise_convolutions_of_few_channels_are_computed_without_a_stride(arguments, channels, shape):
    drawn = torch.Generator().manual_seed(0)
    features = torch.randn(4, channels, *shape, generator=drawn).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(6, channels, 1, 1, generator=drawn)
    plain = [each.double().requires_grad_() for each in (features, weight)]  # which oneDNN does not compute
    sound = [each.clone().requires_grad_() for each in (features, weight)]
    expected = F.conv2d(*plain, *arguments)
    expected.square().sum().backward()
    with SoundConvolutions(), Watch():
        found = F.conv2d(*sound, *arguments)
        found.square().sum().backward()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    for one, other in zip(sound, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 6, 1, 2),
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(3, 6, 3, 2, padding="valid"),
        nn.Conv2d(3, 6, 1, 2, padding=1),
        nn.Conv2d(4, 4, 1, 2, groups=2),
        nn.Conv2d(3, 6, 1, padding="same"),
    ],
)
def test_other_convolutions_stay_as_they_are(convolution):
    features = torch.randn(2, convolution.in_channels, 6, 6)
    with SoundConvolutions():
        found = convolution(features)
    assert torch.equal(found, convolution(features))
    assert list(found.grad_fn._saved_stride) == list(convolution.stride)


@pytest.mark.parametrize("alignment", ["pad", "interpolate"])
def test_a_supernet_takes_no_gradient_that_is_written_past_its_end(alignment):
    model, images = CASES["residual"](), example(4)
    space = transprune.inspect(model, images)
    supernet = transprune.Supernet(model, space, images, alignment=alignment).train()
    with Watch():
        supernet(transprune.ArchitectureParameters(space).sample(1.0), images).square().sum().backward()


def test_the_trial_of_channels_last_takes_no_gradient_that_is_written_past_its_end():
    with Watch():
        assert suits_channels_last(CASES["residual"](), (example(4),))


def test_training_takes_no_gradient_that_is_written_past_its_end():
    network = nn.Sequential(nn.Conv2d(1, 4, 1, 2), nn.Flatten(), nn.Linear(16, 2))
    with Watch():
        transprune.train(network, two_colours(), transprune.TrainingOptions(epochs=1, warm_up_epochs=0))
