"""Feature maps of different widths: interpolated or padded channel by channel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles
from transprune.options import ALIGNMENTS
from transprune.tas.mixing import align_channels, interpolation_matrix, pad_channels

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_type_of_the_features_is_kept(alignment, dtype):
    assert align_channels(torch.zeros(1, 3, 2, 2, dtype=dtype), 5, alignment).dtype == dtype


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


def test_a_matrix_that_is_written_over_is_no_other_ones():
    interpolation_matrix(3, 5, like=torch.zeros(1, dtype=torch.float64)).zero_()
    assert interpolation_matrix(3, 5, like=torch.zeros(1, dtype=torch.float64)).any()
