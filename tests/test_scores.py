"""Scores: what a candidate costs in output, held against the network that it makes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressible import CASES, made
from transprune import Architecture, inspect, regression, shrink
from transprune.budget import Budget
from transprune.errors import OptionError, SpaceError
from transprune.reading.execution import Program
from transprune.reading.layouts import groups_of
from transprune.reading.reading import read
from transprune.scores.evidence import Evidence, Halves, Reader, distance_of, eliminate, gather_evidence
from transprune.scores.rounds import compress_by_scores, rounds_towards
from transprune.scores.score import Scores, ablation, reconstruction, score, sort_by_scores, taylor
from transprune.shrinking.traced_network import CutRun, sizes_of

MEASURES = {"ablation": ablation, "reconstruction": reconstruction, "taylor": taylor}


def evidence_of(network: nn.Module, samples: Tensor) -> Evidence:
    program, space = Program(read(network, samples)), inspect(network, samples[:2])
    distance = distance_of(regression())
    return gather_evidence(
        network,
        program,
        space,
        samples=Halves(network, program, (samples,)),
        distance=distance,
        centre=space.full_architecture(),
    )


@pytest.mark.parametrize("case", CASES)
def test_a_cut_run_computes_what_the_shrunk_network_does(case: str) -> None:
    network, samples = made(case)
    space, program = inspect(network, samples[:2]), Program(read(network, samples))
    for seed in range(3):
        architecture = space.random_architecture(seed)
        student = shrink(network, architecture, samples[:2])
        found = program.run(CutRun(network, program, sizes_of(architecture, program.reading)), (samples,))
        torch.testing.assert_close(found, student(samples))


@pytest.mark.parametrize("case", CASES)
def test_ablation_is_the_movement_of_a_network_that_was_shrunk(case: str) -> None:
    """Sorted, its readers' fitted weights put in, and cut, by other code."""
    network, samples = made(case)
    evidence = evidence_of(network, samples)
    group = evidence.space.groups[-1]
    width = group.candidates[0]
    architecture = Architecture(widths={**evidence.centre.widths, group.name: width}, depths=evidence.centre.depths)
    fitted = dict(evidence.fitted)
    for layer in evidence.layers.values():
        if group.name in groups_of(layer.inputs):
            fitted |= evidence._fitted_again(layer, sizes_of(architecture, evidence.program.reading))
    scored = score(network, evidence.space, samples, task=regression())
    changed = made(case)[0]
    changed.load_state_dict({**changed.state_dict(), **fitted})
    student = shrink(sort_by_scores(changed, scored, samples[:2]), architecture, samples[:2])
    with torch.no_grad():
        moved = float(F.mse_loss(student(samples[1::2]), network(samples[1::2])))
    assert float(evidence.without_units(group.name, width)) == pytest.approx(moved, rel=1e-3, abs=1e-7)
    assert next(each for each in scored.groups if each.name == group.name).lost[0] == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_dead_channels_cost_nothing_and_go_first(measure: object) -> None:
    network, samples = made("residual")
    dead = [1, 4, 7]
    with torch.no_grad():
        network.first.weight[dead] = 0
        network.first.bias[dead] = -1.0
    space = inspect(network, samples[:2], ratios=(0.5, 0.75, 1.0), only=("first",))
    (found,) = score(network, space, samples, task=regression(), measure=measure).groups  # type: ignore[arg-type]
    assert sorted(found.order[-3:]) == dead
    assert found.sizes == (6, 9, 12)
    assert found.lost[1] - found.lost[2] == pytest.approx(0, abs=1e-5)
    assert found.lost[0] - found.lost[2] > 1e-4


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("case", CASES)
def test_every_candidate_has_a_figure_and_smaller_ones_never_less(case: str, measure: object) -> None:
    network, samples = made(case)
    space = inspect(network, samples[:2])
    found = score(network, space, samples, task=regression(), measure=measure)  # type: ignore[arg-type]
    assert [each.name for each in (*found.groups, *found.stages)] == [choice.name for choice in space.choices]
    for each, choice in zip((*found.groups, *found.stages), space.choices, strict=True):
        assert each.sizes == choice.candidates
        assert len(each.lost) == len(choice.candidates)
        assert list(each.lost) == sorted(each.lost, reverse=True)


def test_scores_survive_json() -> None:
    network, samples = made("residual")
    found = score(network, inspect(network, samples[:2]), samples, task=regression())
    assert Scores.from_json(json.dumps(found.to_json())) == found
    value = json.loads(json.dumps(found.to_json()))
    del value["groups"][0]["lost"]
    with pytest.raises(SpaceError, match=r"cannot read scores: groups\[0\].lost is missing"):
        Scores.from_json(value)


def test_a_derivation_from_scores_gives_up_the_least() -> None:
    network, samples = made("residual")
    space = inspect(network, samples[:2], ratios=(0.25, 0.5, 0.75, 1.0))
    found = score(network, space, samples, task=regression())
    limit = Budget.parse("macs=0.5").limit(space)
    derived = found.derive(space, [limit]).architecture
    assert limit.is_kept(space, derived)
    rows = {each.name: dict(zip(each.sizes, each.lost, strict=True)) for each in found.groups}

    def lost(architecture: Architecture) -> float:
        return sum(rows[name][width] for name, width in architecture.widths.items())

    first, second = space.groups
    others = [Architecture({first.name: a, second.name: b}) for a in first.candidates for b in second.candidates]
    kept = [other for other in others if 0.99 * limit.most <= space.macs(other) <= limit.most]
    within = kept or [other for other in others if limit.is_kept(space, other)]
    assert lost(derived) <= min(map(lost, within)) * 1.001


def test_elimination_leaves_out_what_the_others_stand_in_for() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 5).double()
    inputs[:, 3] = inputs[:, 0] + inputs[:, 1]
    weights = torch.randn(5, 4).double()
    found = eliminate([Reader(inputs.T @ inputs / 500, weights, torch.arange(5))], 5)
    assert found.order[-1] in (0, 1, 3)
    assert found.lost[4] == pytest.approx(0, abs=1e-4)
    for width in range(1, 4):  # the error is that of least squares on what is left
        kept = inputs[:, found.order[:width].copy()]
        wanted = inputs @ weights
        residual = wanted - kept @ torch.linalg.lstsq(kept, wanted).solution
        share = float(residual.square().sum() / wanted.square().sum())
        assert found.lost[width] == pytest.approx(share, rel=1e-2)


def test_inputs_of_no_unit_are_never_left_out() -> None:
    gram = torch.eye(4).double()
    found = eliminate([Reader(gram, torch.ones(4, 2).double(), torch.tensor([-1, 0, 1, -1]))], 2)
    assert sorted(found.order) == [0, 1]
    assert found.lost[0] == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_rounds_keep_the_budget_and_the_model(case: str) -> None:
    network, samples = made(case)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    space = inspect(network, samples[:2])
    limit = Budget.parse("macs=0.5").limit(space)
    found = compress_by_scores(network, space, [limit], samples, task=regression(), approaches=2, repetitions=1)
    assert limit.is_kept(space, found.architecture)
    assert 2 <= len(found.scores) <= 3
    torch.testing.assert_close(found.sorted_model(samples), network(samples), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = shrink(found.sorted_model, found.architecture, samples[:2])
        moved = float(F.mse_loss(found.student(samples), network(samples)))
        assert moved < float(F.mse_loss(plain(samples), network(samples)))
    assert found.moved == pytest.approx(moved, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_rounds_return_the_best_that_was_found_at_the_budget() -> None:
    asked: list[float] = []

    def find(here: int, share: float) -> int:
        asked.append(share)
        return here + 1

    best = rounds_towards(0, find, lambda found: abs(found - 3), approaches=2, repetitions=3)
    assert best.found == 3
    assert asked == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_wrong_measures_and_spaces_are_refused() -> None:
    network, samples = made("residual")
    space = inspect(network, samples[:2])
    with pytest.raises(OptionError, match=r"cannot use the measure .*expected a number for each of the \d+ candidates"):
        score(network, space, samples, task=regression(), measure=lambda _: {"first": [1.0]})
    other, tokens = made("attention")
    with pytest.raises(SpaceError, match="cannot score the candidates of"):
        score(other, space, tokens, task=regression())


def test_own_measures_can_be_used() -> None:
    network, samples = made("residual")
    space = inspect(network, samples[:2])

    def widest(evidence: Evidence) -> dict[str, list[float]]:
        return {group.name: [1 - width / group.width for width in group.candidates] for group in evidence.space.groups}

    found = score(network, space, samples, task=regression(), measure=widest)
    assert found.groups[0].lost[-1] == 0
    assert np.array(found.groups[0].lost).max() < 1
