"""Operations with gradients of their own compute what plain ones do."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.kernels.feature_maps import add_padded, first_entries, weighted_sum

FORMATS = [torch.contiguous_format, torch.channels_last]


def tensor(*shape, memory_format=torch.contiguous_format, seed=0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.contiguous(memory_format=memory_format).requires_grad_()


def padded(features: Tensor, width: int) -> Tensor:
    return F.pad(features, [0, 0] * (features.dim() - 2) + [0, width - features.shape[1]])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("one", "other"), [(3, 5), (5, 3), (4, 4)])
def test_the_narrower_side_of_a_sum_is_padded_by_zeros(one, other, memory_format):
    sides = [tensor(2, width, 3, 2, memory_format=memory_format, seed=width) for width in (one, other)]
    before = [side.detach().clone() for side in sides]
    widest = max(one, other)
    torch.testing.assert_close(add_padded(*sides), padded(sides[0], widest) + padded(sides[1], widest))
    assert torch.autograd.gradcheck(add_padded, sides)
    assert all(torch.equal(side, each) for side, each in zip(sides, before, strict=True))


def test_sums_of_any_rank():
    assert torch.autograd.gradcheck(add_padded, [tensor(2, 3), tensor(2, 5)])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_weighted_sum_is_the_sum_of_what_is_weighted(number, memory_format):
    features = [tensor(2, 4, 3, 2, memory_format=memory_format, seed=seed) for seed in range(number)]
    weights = tensor(number, seed=9)
    expected = sum(weight * each for weight, each in zip(weights, features, strict=True))
    torch.testing.assert_close(weighted_sum(features, weights), expected)
    assert torch.autograd.gradcheck(lambda weights, *features: weighted_sum(features, weights), (weights, *features))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("sizes", [(4, 3, 3, 3), (2, 3, 3, 3), (4, 2, 3, 3), (1, 1, 3, 3)])
def test_the_first_entries_are_a_copy_and_only_they_learn(sizes, memory_format):
    whole = tensor(4, 3, 3, 3, memory_format=memory_format)
    found = first_entries(whole, sizes)
    assert torch.equal(found, whole[tuple(slice(size) for size in sizes)])
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.autograd.gradcheck(lambda tensor: first_entries(tensor, sizes), whole)
    found.sum().backward()
    assert whole.grad.sum() == found.numel()
    assert whole.grad.stride() == whole.stride()
