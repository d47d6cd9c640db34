"""Prefixes of one set of channels mixed by one map, many maps at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from transprune.options import ALIGNMENTS
from transprune.tas.mixing import Mixture, mixed


def features(channels, *shape, seed=0):
    return torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def applied(mixture: Mixture, channels: Tensor) -> Tensor:
    """The map of a mixture, applied to a feature map."""
    (found,) = mixed([mixture])
    assert found.shape == mixture.shape
    return torch.einsum("tc,bchw->bthw", torch.diag(found) if found.dim() == 1 else found, channels)


@st.composite
def mixtures(draw, *, is_applied=None):
    """Some prefixes, their weights, and factors in any rows or none."""
    widths = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    rows, factors = None, None
    if draw(st.booleans()):
        number = len(widths) + draw(st.integers(0, 2))
        rows = tuple(draw(st.permutations(range(number)))[: len(widths)])
        factors = torch.randn(number, max(widths) + draw(st.integers(0, 3)), generator=generator, dtype=torch.float64)
    return Mixture(
        widths=widths,
        weights=torch.rand(len(widths), generator=generator, dtype=torch.float64),
        alignment=draw(st.sampled_from(ALIGNMENTS)),
        factors=factors,
        rows=rows,
        is_applied=draw(st.booleans()) if is_applied is None else is_applied,
    )


@given(mixtures(is_applied=False), st.integers(0, 100))
def test_one_map_mixes_like_each_prefix_by_itself(mixture, seed):
    channels = features(max(mixture.widths), 2, 3, seed=seed)
    scales = None if mixture.factors is None else mixture.factors[list(mixture.rows)]
    expected = oracles.mix_prefixes(channels, mixture.widths, mixture.weights, scales, mixture.alignment)
    assert torch.allclose(applied(mixture, channels), expected, atol=1e-6)


@given(mixtures(is_applied=True))
def test_an_applied_mixture_is_the_map_applied_to_ones(mixture):
    (found,) = mixed([mixture])
    scales = None if mixture.factors is None else mixture.factors[list(mixture.rows)]
    ones = torch.ones(1, max(mixture.widths), dtype=torch.float64)
    expected = oracles.mix_prefixes(ones, mixture.widths, mixture.weights, scales, mixture.alignment)[0]
    assert torch.allclose(found, expected, atol=1e-6)


@given(st.lists(mixtures(), min_size=1, max_size=4))
def test_many_mixtures_at_once_are_those_one_by_one(many):
    for found, mixture in zip(mixed(many), many, strict=True):
        assert torch.allclose(found, mixed([mixture])[0], atol=1e-12)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_gradients_of_the_mixture_reach_weights_and_factors_alike_in_both_ways(alignment):
    channels, widths = features(6, 2, 2), (4, 6, 3)
    found, expected = [], []
    for gradients in (found, expected):
        weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
        factors = torch.arange(1.0, 19.0, dtype=torch.float64).view(3, 6).requires_grad_()
        if gradients is found:
            outcome = applied(Mixture(widths=widths, weights=weights, alignment=alignment, factors=factors), channels)
        else:
            outcome = oracles.mix_prefixes(channels, widths, weights, factors, alignment)
        outcome.square().sum().backward()
        gradients += [weights.grad, factors.grad]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[1][0, 4:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_type_of_the_weights_is_kept(alignment, dtype):
    (found,) = mixed([Mixture(widths=(3, 5), weights=torch.ones(2, dtype=dtype), alignment=alignment)])
    assert found.dtype == dtype
