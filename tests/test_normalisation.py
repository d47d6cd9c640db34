"""Normalising and mixing at once equals batch norm and then a linear map, in all its gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.kernels import normalisation
from transprune.kernels.normalisation import fast_norms, joint_norms, normalise_and_mix

SHAPES = [(6, 3), (5, 3, 7), (4, 3, 4, 6), (3, 5, 3, 3), (2, 3, 2, 3, 2), (1, 2, 1, 2), (8, 200, 2, 2), (4, 1, 6, 8)]
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


@pytest.fixture(autouse=True)
def in_rows_however_small(monkeypatch):
    monkeypatch.setattr(normalisation, "PIXELS", 1)


every_case = pytest.mark.parametrize(
    ("shape", "memory_format"), [(s, f) for s in SHAPES for f in FORMATS if len(s) == 4 or f is FORMATS[0]]
)


@every_case
@pytest.mark.parametrize("outputs", [None, 4])
@pytest.mark.parametrize("direction_format", FORMATS)
def test_output_and_gradients_equal_batch_norm_and_a_linear_map(shape, memory_format, outputs, direction_format):
    given = arguments(shape, memory_format, outputs)
    found, expected = quickly(*given), slowly(*given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if direction.dim() == 4:  # what comes behind may hand back a gradient in another format
        direction = direction.contiguous(memory_format=direction_format)
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


def norm_of(channels: int, dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=dtype)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=torch.Generator().manual_seed(channels))
    return norm.train()


def in_rows(monkeypatch) -> list[int]:
    """The channels of every batch norm that is computed in rows from now on."""
    calls, usual = [], normalisation._NormaliseAndMix.apply
    monkeypatch.setattr(
        normalisation._NormaliseAndMix, "apply", lambda x, *more: calls.append(x.shape[1]) or usual(x, *more)
    )
    return calls


@pytest.mark.parametrize("channels", [1, 3, 11, 23, 45, 100])
def test_a_norm_in_rows_gives_what_torch_gives(channels, monkeypatch):
    calls = in_rows(monkeypatch)
    features = torch.randn(4, channels, 6, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last) * 2 + 1
    direction = torch.randn_like(features)
    results = []
    for enabled in (True, False):
        norm, given = norm_of(channels, torch.float64), features.clone().requires_grad_()
        for _ in range(2):  # a second batch moves the running statistics again
            with fast_norms(enabled=enabled):
                outcome = norm(given)
        outcome.backward(direction)
        results.append([outcome, given.grad, *(parameter.grad for parameter in norm.parameters()), *norm.buffers()])
    assert calls == [channels] * 2, "once for each batch, and not in the other network"
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_norms_that_torch_computes_as_fast_are_left_to_it(monkeypatch):
    monkeypatch.setattr(normalisation, "PIXELS", 9)
    calls = in_rows(monkeypatch)
    last = torch.channels_last

    def run(features: Tensor, *, training: bool = True) -> Tensor:
        mean, variance, one = (torch.ones(features.shape[1]) for _ in range(3))
        with fast_norms():
            return F.batch_norm(features, mean, variance, one, one, training)

    run(torch.randn(2, 32, 4, 4).contiguous(memory_format=last))  # registers are full
    run(torch.randn(2, 3, 2, 2).contiguous(memory_format=last))  # few pixels
    run(torch.randn(2, 3, 4, 4))  # the usual format
    run(torch.randn(2, 3, 4, 4).contiguous(memory_format=last).bfloat16())
    run(torch.randn(2, 3, 4, 4).contiguous(memory_format=last), training=False)
    assert calls == []
    run(torch.randn(2, 3, 4, 4).contiguous(memory_format=last))
    assert calls == [3]


def test_norms_over_all_processes_stay_so(monkeypatch):
    calls = in_rows(monkeypatch)
    features = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with joint_norms(), fast_norms():
        norm_of(3, torch.float32)(features)
    assert calls == []
