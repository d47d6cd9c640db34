"""Feature maps of different widths: interpolated or padded channel by channel, and mixed by one matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles
from transprune.numerics.alignment import ALIGNMENTS, align_channels, interpolation_matrix, mixing_matrix, pad_channels

DOUBLE = torch.zeros((), dtype=torch.float64)
WIDTHS = st.integers(1, 40)


def features(channels, *shape, seed=0):
    return torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("width", "outcome"), [(8, [0, 0.5, 1.5, 2, 3, 3.5, 4.5, 5]), (4, [0.5, 1.5, 3.5, 4.5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_six_channels_are_interpolated_as_in_the_papers_code(width, outcome):
    channels = torch.arange(6.0)
    assert (interpolation_matrix(6, width, like=channels) @ channels).tolist() == outcome


@given(source=WIDTHS, target=WIDTHS)
def test_interpolation_equals_the_plain_loop_and_adaptive_pooling(source, target):
    channels = torch.randn(source, dtype=torch.float64)
    found = interpolation_matrix(source, target, like=channels) @ channels
    looped = torch.tensor(oracles.interpolate_channels(channels.tolist(), target), dtype=torch.float64)
    assert torch.allclose(found, looped, atol=1e-6)
    assert torch.allclose(found, F.adaptive_avg_pool1d(channels[None], target)[0], atol=1e-6)


def test_interpolation_is_as_precise_as_its_type():
    rows = interpolation_matrix(7, 3, like=DOUBLE).sum(1)
    assert torch.allclose(rows, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-15)


@given(source=WIDTHS, target=WIDTHS)
def test_every_output_is_a_mean_and_no_input_is_lost(source, target):
    matrix = interpolation_matrix(source, target, like=DOUBLE)
    assert matrix.shape == (target, source)
    assert torch.allclose(matrix.sum(1), torch.ones(target, dtype=torch.float64), atol=1e-6)
    assert (matrix.sum(0) > 0).all()
    if target >= source:
        assert (matrix > 0).sum(1).max() <= 2


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_feature_maps_of_any_rank_are_aligned_channel_by_channel(alignment, shape):
    narrow = features(5, *shape)
    found = align_channels(narrow, 8, alignment)
    assert found.shape == (2, 8, *shape)
    assert torch.allclose(found, oracles.align(narrow, 8, alignment))


def test_padding_keeps_every_channel_in_its_place_and_adds_zeros():
    narrow = features(3, 2, 2)
    padded = pad_channels(narrow, 5)
    assert torch.equal(padded[:, :3], narrow)
    assert not padded[:, 3:].any()


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_nothing_happens_to_channels_that_fit(alignment):
    fitting = features(6, 3, 3)
    assert torch.equal(align_channels(fitting, 6, alignment), fitting)
    assert torch.equal(pad_channels(fitting, 6), fitting)


@given(
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    alignment=st.sampled_from(ALIGNMENTS),
    is_scaled=st.booleans(),
    extra=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_one_matrix_mixes_like_each_prefix_by_itself(widths, alignment, is_scaled, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    widest = max(widths)
    weights = torch.rand(len(widths), generator=generator, dtype=torch.float64)
    scales = torch.randn(len(widths), widest + extra, generator=generator, dtype=torch.float64) if is_scaled else None
    mixed = features(widest, 2, 3, seed=seed)
    matrix = mixing_matrix(widths, weights, scales, alignment)
    assert matrix.shape == ((widest,) if alignment == "pad" else (widest, widest))
    full = torch.diag(matrix) if alignment == "pad" else matrix
    found = torch.einsum("tc,bchw->bthw", full, mixed)
    assert torch.allclose(found, oracles.mix_prefixes(mixed, widths, weights, scales, alignment), atol=1e-6)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_gradients_of_the_mixture_reach_weights_and_scales_alike_in_both_ways(alignment):
    mixed, widths = features(6, 2, 2), [4, 6, 3]
    found, expected = [], []
    for gradients in (found, expected):
        weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
        scales = torch.arange(1.0, 19.0, dtype=torch.float64).view(3, 6).requires_grad_()
        if gradients is found:
            matrix = mixing_matrix(widths, weights, scales, alignment)
            full = torch.diag(matrix) if alignment == "pad" else matrix
            outcome = torch.einsum("tc,bchw->bthw", full, mixed)
        else:
            outcome = oracles.mix_prefixes(mixed, widths, weights, scales, alignment)
        outcome.square().sum().backward()
        gradients += [weights.grad, scales.grad]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[1][0, 4:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_type_of_the_features_is_kept(alignment, dtype):
    assert align_channels(torch.zeros(1, 3, 2, 2, dtype=dtype), 5, alignment).dtype == dtype
    assert mixing_matrix([3, 5], torch.ones(2, dtype=dtype), None, alignment).dtype == dtype


def learns(source, target):
    channels = torch.ones(1, source, 1, 1, requires_grad=True)
    align_channels(channels, target, "interpolate").square().sum().backward()
    return bool(channels.grad.any())


def test_a_first_use_in_inference_mode_leaves_later_training_alone():
    with torch.inference_mode():
        interpolation_matrix(41, 43, like=torch.zeros(()))
    assert learns(41, 43)


def test_a_first_use_under_another_default_device_leaves_later_training_alone():
    with torch.device("meta"):
        interpolation_matrix(41, 47, like=torch.zeros(()))
    assert learns(41, 47)


def test_the_matrix_belongs_to_the_caller():
    interpolation_matrix(4, 5, like=torch.zeros(())).zero_()
    assert interpolation_matrix(4, 5, like=torch.zeros(())).any()
