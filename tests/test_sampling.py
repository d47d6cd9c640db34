"""The paper's sampling: which candidates are drawn, how they are weighed, and where the gradients go."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

import oracles
from transprune.errors import OptionError
from transprune.tas.sampling import draw_candidates, masked_log_softmax, normalised_entropy, perturb

LOGITS = (0.0, 1.0, -1.0, 2.0, 0.5)
TRIALS = 20_000
TEMPERATURES = st.floats(0.01, 20)


def all_real(logits):
    return torch.ones(logits.shape, dtype=torch.bool)


def many_draws(logits, temperature, *, seed=0, **options):
    """Independent draws for one row of logits, a row each."""
    rows = torch.tensor(logits).expand(TRIALS, -1)
    generator = torch.Generator().manual_seed(seed)
    return draw_candidates(rows, all_real(rows), temperature=temperature, generator=generator, **options)


def first_counts(indices, candidates):
    return np.bincount(np.asarray(indices)[:, 0], minlength=candidates)


@st.composite
def choices(draw, *, samples_at_most=None):
    """Logits, which entries are candidates (the first few of every row), and how many to draw."""
    logits = draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.floats(-30, 30, width=32))
    )
    columns = logits.shape[1]
    counts = draw(st.lists(st.integers(1, columns), min_size=len(logits), max_size=len(logits)))
    is_candidate = torch.arange(columns) < torch.tensor(counts)[:, None]
    return torch.from_numpy(logits), is_candidate, draw(st.integers(1, samples_at_most or columns))


@given(choices(), TEMPERATURES, st.integers(0, 1_000))
def test_no_candidate_is_drawn_twice_and_none_that_does_not_exist(case, temperature, seed):
    logits, is_candidate, samples = case
    generator = torch.Generator().manual_seed(seed)
    draw = draw_candidates(logits, is_candidate, temperature=temperature, samples=samples, generator=generator)
    assert draw.indices.shape == draw.weights.shape == (len(logits), samples)
    for indices, weights, row in zip(draw.indices.tolist(), draw.weights, is_candidate, strict=True):
        there_are = int(row.sum())
        real = [index for index in indices if row[index]]
        assert len(set(indices)) == len(indices)
        assert len(real) == min(samples, there_are)
        assert all(weight == 0 for index, weight in zip(indices, weights, strict=True) if not row[index])


@given(choices(), TEMPERATURES)
def test_mixing_weights_are_shares_that_sum_to_one(case, temperature):
    logits, is_candidate, samples = case
    draw = draw_candidates(logits, is_candidate, temperature=temperature, samples=samples)
    assert (draw.weights >= 0).all()
    assert torch.allclose(draw.weights.sum(1), torch.ones(len(logits)), atol=1e-6)


@given(choices(), TEMPERATURES)
def test_without_a_number_of_samples_every_candidate_is_mixed(case, temperature):
    logits, is_candidate, _ = case
    draw = draw_candidates(logits, is_candidate, temperature=temperature, samples=None)
    assert draw.indices.tolist() == [list(range(logits.shape[1]))] * len(logits)
    assert torch.allclose(draw.weights.sum(1), torch.ones(len(logits)), atol=1e-6)
    assert (draw.weights[~is_candidate] == 0).all()


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_settled_logits_still_give_two_different_candidates(temperature):
    draw = many_draws((100.0, 0.0, 0.0, -100.0), temperature)
    assert (draw.indices[:, 0] != draw.indices[:, 1]).all()
    assert (draw.indices == 0).any(1).all()
    assert torch.allclose(draw.weights.sum(1), torch.ones(TRIALS))


def test_rows_with_one_candidate_use_it_alone():
    is_candidate = torch.tensor([[True, False, False]] * 500)
    draw = draw_candidates(torch.zeros(500, 3), is_candidate, temperature=1.0)
    picked = draw.indices[draw.weights > 0]
    assert (picked == 0).all()
    assert len(picked) == 500
    assert (draw.indices[:, 0] == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_pairs_are_drawn_as_often_as_in_a_simulation_of_the_paper(temperature):
    cells = len(LOGITS) ** 2
    drawn = many_draws(LOGITS, temperature).indices.numpy() @ [len(LOGITS), 1]
    simulated = oracles.simulate_draws(LOGITS, temperature, 4 * TRIALS, seed=1)[0] @ [len(LOGITS), 1]
    counts = np.stack([np.bincount(pairs, minlength=cells) for pairs in (drawn, simulated)])
    counts = counts[:, counts.sum(0) >= 20]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_weights_are_distributed_as_in_a_simulation_of_the_paper(temperature):
    drawn = many_draws(LOGITS, temperature)
    indices, weights = oracles.simulate_draws(LOGITS, temperature, TRIALS, seed=2)
    for first in range(len(LOGITS)):
        ours = drawn.weights[drawn.indices[:, 0] == first, 0].numpy()
        theirs = weights[indices[:, 0] == first, 0]
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_equal_logits_are_drawn_alike_at_any_temperature():
    for temperature in (0.1, 1.0, 10.0):
        counts = first_counts(many_draws((3.0,) * 4, temperature).indices, 4)
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("samples", [2, None])
def test_towards_temperature_zero_weights_are_one_hot_at_the_rate_of_the_softmax(samples):
    draw = many_draws(LOGITS, 1e-3, samples=samples)
    assert (draw.weights.max(1).values > 0.99).float().mean() > 0.99
    heaviest = draw.indices.gather(1, draw.weights.argmax(1, keepdim=True))
    expected = TRIALS * torch.tensor(LOGITS, dtype=torch.float64).softmax(0).numpy()
    assert stats.chisquare(first_counts(heaviest, len(LOGITS)), expected).pvalue > 1e-3


def test_towards_temperature_zero_the_first_draw_follows_the_softmax():
    expected = TRIALS * torch.tensor(LOGITS, dtype=torch.float64).softmax(0).numpy()
    counts = first_counts(many_draws(LOGITS, 1e-3).indices, len(LOGITS))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_at_high_temperature_all_candidates_are_drawn_and_weighed_alike():
    draw = many_draws(LOGITS, 1e4)
    assert (draw.weights - 0.5).abs().max() < 0.01
    assert stats.chisquare(first_counts(draw.indices, len(LOGITS))).pvalue > 1e-3


def test_rows_are_drawn_independently():
    logits = torch.zeros(2, 2).expand(TRIALS // 2, 2, 2).reshape(TRIALS, 2)
    first = draw_candidates(logits, all_real(logits), temperature=1.0, samples=1).indices.view(-1, 2)
    assert abs((first[:, 0] == first[:, 1]).double().mean() - 0.5) < 0.02


@given(choices(samples_at_most=2), st.floats(0.5, 5))
def test_the_gradient_reaches_exactly_the_drawn_candidates(case, temperature):
    logits, is_candidate, _ = case
    logits = (logits / 10).double().requires_grad_()
    draw = draw_candidates(logits, is_candidate, temperature=temperature)
    draw.weights[:, 0].sum().backward()
    expected = torch.zeros_like(logits)
    if logits.shape[1] > 1:
        slope = (draw.weights[:, :1] * draw.weights[:, 1:2] / temperature).detach()
        expected.scatter_(1, draw.indices[:, :1], slope)
        expected.scatter_(1, draw.indices[:, 1:2], -slope)
    assert torch.allclose(logits.grad, expected, atol=1e-9)


def test_with_all_candidates_the_gradient_reaches_all_of_them_and_no_others():
    logits = torch.zeros(1, 4, requires_grad=True)
    draw = draw_candidates(logits, torch.tensor([[True, True, True, False]]), temperature=1.0, samples=None)
    draw.weights[0, 0].backward()
    assert (logits.grad[0, :3] != 0).all()
    assert logits.grad[0, 3] == 0


def test_a_generator_makes_draws_repeat_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    first, again, other = (many_draws(LOGITS, 1.0, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.indices, other.indices)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_choose_gives_nothing(shape):
    logits = torch.zeros(shape)
    draw = draw_candidates(logits, all_real(logits), temperature=1.0)
    assert len(draw.indices) == len(draw.weights) == shape[0]
    assert draw.indices.dtype == torch.int64


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(OptionError, match=f"cannot sample: found sampling temperature {temperature}"):
        many_draws(LOGITS, temperature)


@pytest.mark.parametrize("samples", [0, -1])
def test_fewer_than_one_sample_is_refused(samples):
    with pytest.raises(OptionError, match=f"{samples} samples; expected both above zero"):
        many_draws(LOGITS, 1.0, samples=samples)


def test_log_probabilities_ignore_what_is_no_candidate():
    logits = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]])
    found = masked_log_softmax(logits, torch.tensor([[True, True, False], [True, True, True]]))
    assert torch.allclose(found[0, :2].exp(), torch.from_numpy(oracles.softmax(np.array([1.0, 2.0]))).float())
    assert found[0, 2] == -torch.inf
    assert torch.allclose(found[1].exp(), torch.full((3,), 1 / 3))


def test_the_noise_is_standard_gumbel_and_divided_by_the_temperature_too():
    start = torch.full((TRIALS,), -1.5)
    noisy = perturb(start, 2.0, torch.Generator().manual_seed(0))
    assert stats.kstest((2 * noisy + 1.5).numpy(), "gumbel_r").pvalue > 1e-3


def test_entropy_is_one_when_undecided_and_zero_when_settled():
    is_candidate = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False], [True, False, False, False]])
    probabilities = torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(normalised_entropy(probabilities, is_candidate), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    half = normalised_entropy(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), is_candidate[:1])
    assert half.item() == pytest.approx(0.5)
