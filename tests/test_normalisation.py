"""Normalising and mixing at once equals batch norm and then a linear map, in all its gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.numerics.normalisation import normalise_and_mix

SHAPES = [(6, 3), (5, 3, 7), (4, 3, 4, 6), (3, 5, 3, 3), (2, 3, 2, 3, 2), (1, 2, 1, 2), (8, 200, 2, 2)]
FORMATS = [torch.contiguous_format, torch.channels_last]
EPSILON = 1e-3


def slowly(features: Tensor, mixture: Tensor, shift: Tensor) -> Tensor:
    """Batch norm without scale and shift, then the map."""
    normalised = F.batch_norm(features, None, None, training=True, eps=EPSILON)
    matrix = torch.diag(mixture) if mixture.dim() == 1 else mixture
    return torch.einsum("tc,bc...->bt...", matrix, normalised) + shift.view(-1, *[1] * (features.dim() - 2))


def quickly(features: Tensor, mixture: Tensor, shift: Tensor) -> Tensor:
    return normalise_and_mix(features, mixture, shift, EPSILON)


def arguments(shape, memory_format, outputs, dtype=torch.float64):
    """Features, a mixture (a diagonal where `outputs` is None) and a shift, all to be learned."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    sizes = [(channels,), (channels,)] if outputs is None else [(outputs, channels), (outputs,)]
    features, *rest = (torch.randn(size, generator=generator, dtype=dtype) for size in (shape, *sizes))
    features = (2 * features + 1).contiguous(memory_format=memory_format if len(shape) == 4 else FORMATS[0])
    return [features.requires_grad_(), *(each.requires_grad_() for each in rest)]


every_case = pytest.mark.parametrize(
    ("shape", "memory_format"), [(s, f) for s in SHAPES for f in FORMATS if len(s) == 4 or f is FORMATS[0]]
)


@every_case
@pytest.mark.parametrize("outputs", [None, 4])
def test_output_and_gradients_equal_batch_norm_and_a_linear_map(shape, memory_format, outputs):
    given = arguments(shape, memory_format, outputs)
    found, expected = quickly(*given), slowly(*given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(each, given, direction) for each in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_case
@pytest.mark.parametrize("outputs", [None, 4])
def test_gradients_equal_finite_differences(shape, memory_format, outputs):
    if shape[1] < 10:
        assert torch.autograd.gradcheck(quickly, arguments(shape, memory_format, outputs))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("outputs", [None, 4])
def test_the_memory_format_of_the_features_is_kept(memory_format, outputs):
    given = arguments((4, 3, 4, 6), memory_format, outputs)
    outcome = quickly(*given)
    assert outcome.is_contiguous(memory_format=memory_format)
    gradient = torch.autograd.grad(outcome, given[0], torch.ones(outcome.shape, dtype=outcome.dtype))[0]
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("outputs", [None, 4])
def test_a_large_mean_costs_no_more_precision_than_in_batch_norm(outputs):
    given = arguments((8, 3, 8, 8), torch.channels_last, outputs, dtype=torch.float32)
    shifted = [given[0].detach() + 100, *given[1:]]
    exact = slowly(*(each.double() for each in shifted))
    error, usual = ((each(*shifted) - exact).abs().max().item() for each in (quickly, slowly))
    assert error < 10 * usual + 1e-6


def test_features_that_need_no_gradient_get_none():
    features, mixture, shift = arguments((4, 3, 4, 6), torch.channels_last, 4)
    quickly(features.detach(), mixture, shift).sum().backward()
    assert features.grad is None
    assert mixture.grad is not None
