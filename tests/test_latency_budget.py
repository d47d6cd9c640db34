"""Budgets in latency: read, kept exactly, refused where the model cannot be trusted; from the search to the report."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import small_networks as zoo
from fake_latency import network_time, use_fake_backend
from test_searching import OPTIONS, Residual
from test_training import two_colours
from transprune import compress, runs
from transprune.architecture import Architecture
from transprune.budget import Budget, Limit
from transprune.costs import MACS
from transprune.errors import BudgetError, LatencyError
from transprune.latency import measurement, performance, stopwatch
from transprune.latency.backends import BACKENDS
from transprune.latency.measurement import measure_latency
from transprune.latency.stopwatch import Timekeeper
from transprune.options import LatencyOptions, MeasureOptions, get_preset
from transprune.reading.inspection import inspect
from transprune.runtime import read_journal
from transprune.searching.contenders import SCORES, SEARCHED, contenders
from transprune.searching.search import prior_from_scores, search
from transprune.shrinking.shrink import shrink
from transprune.tas.bilevel import Bilevel
from transprune.tas.derivation import derive_with_proof
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.probabilities import Probabilities, certain
from transprune.training.loop import Setup
from whole_runs import NET

pytestmark = pytest.mark.usefixtures("few_digits")

FAKE = LatencyOptions(backend="fake", repeats=3, architectures=6, validations=5)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    return use_fake_backend(monkeypatch, tmp_path)


# What a budget says


@pytest.mark.parametrize(
    ("text", "nanoseconds", "written"),
    [
        ("latency=4ms", 4e6, "latency=4ms"),
        ("latency=0.25ms", 250_000, "latency=250us"),
        ("latency=800us", 800_000, "latency=800us"),
        ("latency=1s", 1e9, "latency=1s"),
        ("latency=2NS", 2, "latency=2ns"),
    ],
)
def test_an_absolute_latency_is_read_in_its_unit_and_written_in_a_readable_one(text, nanoseconds, written):
    budget = Budget.parse(text)
    assert (budget.amount, budget.is_share) == (nanoseconds, False)
    assert str(budget) == written
    assert Budget.parse(written) == budget


def test_a_latency_of_at_most_one_without_a_unit_is_a_share():
    assert Budget.parse("latency=0.5") == Budget("latency", 0.5, is_share=True)
    assert str(Budget.parse("latency=0.5")) == "latency=0.5"


@pytest.mark.parametrize("text", ["latency=4", "latency=4M", "latency=ms", "macs=4ms", "speed=0.5"])
def test_a_latency_without_its_unit_and_other_nonsense_are_refused(text):
    with pytest.raises(BudgetError, match=r"cannot read the budget .*, latency=4ms"):
        Budget.parse(text)


# What an architecture costs


@pytest.mark.parametrize("name", ["residual", "depthwise", "staged", "depthwise_behind_stage", "linear_stage"])
def test_predicted_latency_is_the_sum_over_kept_layers_and_expected_latency_at_one_hot_is_the_same(name, fake):
    network = zoo.CASES[name]().eval()
    space = inspect(network, zoo.example())
    model = measure_latency(network, space, zoo.example(), FAKE).model
    expected = ExpectedCost(space, model)
    for seed in range(4):
        architecture = space.random_architecture(seed)
        total = sum(
            model.layer_time(
                layer, space.resolve(layer.inputs, architecture), space.resolve(layer.outputs, architecture)
            )
            for layer in space.layers
            if space.is_kept(layer.name, architecture)
        )
        assert space.cost(model, architecture) == total
        assert float(expected(certain(space, architecture))) == total


def test_concatenated_parts_share_out_the_time_of_their_layer(fake):
    class Concatenating(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(3, 24, 1)
            self.last = torch.nn.Conv2d(32, 16, 1)

        def forward(self, images):
            return self.last(torch.cat([self.first(images), self.second(images)], 1))

    network = Concatenating().eval()
    space = inspect(network, zoo.example())
    model = measure_latency(network, space, zoo.example(), FAKE).model
    layer = next(layer for layer in space.layers if layer.name == "last")
    parts = [model.of_part(layer, (row, 0), width, 16) for row, width in enumerate((8, 24))]
    assert sum(parts) == pytest.approx(model.layer_time(layer, 32, 16), abs=1)
    assert parts[0] == pytest.approx(parts[1] / 3, abs=1)
    assert float(ExpectedCost(space, model)(certain(space, space.full_architecture()))) == space.cost(
        model, space.full_architecture()
    )


# The search


def test_a_search_for_a_latency_keeps_it_uses_it_and_the_network_really_takes_that_long(fake):
    torch.manual_seed(0)
    model, data = Residual(), two_colours()
    found = search(model, data, "latency=0.6", OPTIONS, latency=FAKE)
    assert 0.8 * found.target < found.actual <= found.target  # times of this machine have steps
    example = torch.zeros(1, *data.image_size)
    student = shrink(model, found.architecture, example).eval()
    assert network_time(student, (example,)) <= 0.61 * network_time(model.eval(), (example,))
    assert found.history[-1]["target_latency"] == found.target


def test_a_latency_budget_and_another_hold_together(fake):
    torch.manual_seed(0)
    found = search(Residual(), two_colours(), ["latency=0.8", "params=0.5"], OPTIONS, latency=FAKE)
    assert all(spent <= limit.most for spent, limit in zip(found.spent, found.limits, strict=True))


def test_what_a_busy_moment_has_spoilt_is_measured_once_more(monkeypatch, tmp_path, capsys):
    busy = use_fake_backend(monkeypatch, tmp_path, noise=0.9)
    usual = measurement.measure_latency

    def then_idle(*arguments, **named):
        try:
            return usual(*arguments, **named)
        finally:
            busy.noise = 0.0

    monkeypatch.setattr(measurement, "measure_latency", then_idle)
    network = Residual()
    example = torch.zeros(1, *two_colours().image_size)
    found = measurement.trusted_latency(network, inspect(network, example), example, FAKE)
    assert found.model.validation.median < FAKE.bound
    assert "% on other networks, so it is measured once more" in capsys.readouterr().err
    assert usual(network, inspect(network, example), example, FAKE).seconds == 0.0, "the better one is kept"


def test_a_search_does_not_trust_a_model_that_is_too_far_off(monkeypatch, tmp_path):
    use_fake_backend(monkeypatch, tmp_path, noise=0.9)
    with pytest.raises(LatencyError, match="cannot trust the latency model: on 5 random architectures"):
        search(Residual(), two_colours(), "latency=0.6", OPTIONS, latency=FAKE)
    trusting = replace(FAKE, bound=0.999, remeasure=True)
    assert search(Residual(), two_colours(), "latency=0.9", replace(OPTIONS, epochs=1), latency=trusting).actual


RANGE = r"of 0\.\d+ ms: the attainable range .* is \d+\.\d+ ms .* to \d+\.\d+ ms"


@pytest.mark.parametrize(
    ("budget", "message"),
    [("latency=0.001", RANGE), ("latency=1us", RANGE), ("latency=1s", r"the unpruned network has [\d.]+ ms already")],
)
def test_an_unattainable_latency_is_refused_before_training_with_what_is_attainable(budget, message, fake):
    epochs = []
    with pytest.raises(BudgetError, match=message):
        search(Residual(), two_colours(), budget, OPTIONS, latency=FAKE, setup=Setup(on_epoch=epochs.append))
    assert not epochs


# The run


@pytest.fixture
def run(fake, monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "onnxruntime", fake)  # a configuration names a backend that there is
    (tmp_path / "net.py").write_text(NET)
    recipe = get_preset("quick")
    options = runs.RunOptions(
        model=f"{tmp_path / 'net.py'}:build",
        data="digits",
        budget=("latency=0.6",),
        preset="quick",
        teacher=replace(recipe.teacher, epochs=1, warm_up_epochs=0),
        search=replace(recipe.search, epochs=1, warm_up_epochs=0, batch_size=128, prior="none"),
        distill=replace(recipe.distill, epochs=1, warm_up_epochs=0),
        latency=replace(FAKE, backend="onnxruntime"),
    )
    return runs.prepare(options, tmp_path / "run", device="cpu")


def test_a_run_measures_searches_and_reports_in_milliseconds(run, fake, monkeypatch, capsys):
    folder = run.folder
    with runs.logging_to(run):
        for step in (runs.teach_step, runs.search_step, runs.distill_step, runs.evaluate_step):
            step(run)
        runs.report_step(run)
    runs.show_results(folder)
    (entry,) = [entry for entry in read_journal(folder.file("journal.jsonl")) if entry["event"] == "latency"]
    assert entry["measured_for"]["cpu"] == "an abacus"
    assert len(entry["predicted"]) == len(entry["measured"]) == FAKE.validations
    assert entry["median_error"] < 0.01
    result = folder.read_json("result.json")
    (budget,) = result["budgets"]
    assert budget["kind"] == "latency"
    assert 0.8 * budget["target"] < budget["actual"] == result["student"]["latency"] <= budget["target"]
    where = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch_size": 1}
    assert result["teacher"].items() >= where.items()
    assert result["student"]["latency_ms"] == pytest.approx(result["student"]["latency"] / 1e6, rel=0.05)
    shown = capsys.readouterr().out
    assert re.search(r"budget kept: measured \d\.\d{4,5} ms of \d\.\d{4,5} ms", shown)
    assert "in onnxruntime on cpu, 1 thread, batch 1" in shown
    page = folder.file("report.html").read_text(encoding="utf-8").replace("&nbsp;", " ")
    assert re.search(r"measured \d\.\d{4,5} ms of at most \d\.\d{4,5} ms \(latency=0\.6\)", page)
    assert "Latency over the search" in page
    assert "Latency in onnxruntime on cpu, 1 thread, batch 1" in page
    assert re.search(r"latency \d\.\d{4,5} ms, \d\.\d\d × budget", folder.file("run.log").read_text(encoding="utf-8"))

    timed, kept = fake.runs, folder.read_json("latency.json")
    run.close()
    again = runs.open_run(folder.path)
    assert again.costs["latency"] == run.costs["latency"]
    assert fake.runs == timed
    assert kept["median_error"] == entry["median_error"]

    monkeypatch.setattr(performance._Subject, "peak_memory", lambda *_: None)
    content = runs.measure_step(again, MeasureOptions(batch_size=2, repeats=5, seconds=0.1))
    assert folder.read_json("measurements.json") == content
    runs.show_measurements(content)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("  ")[1:4] == ["network", "median (ms)", "quartiles (ms)"]
    assert max(map(len, lines)) <= 80


# The clock has the last word


LATE = 1.25
"""How much longer what is chosen takes than the figures show that the model is fitted to."""


@pytest.fixture
def late(fake, monkeypatch):
    """Lists what is timed, each network but the unpruned one late."""
    usual, timed = stopwatch.measure_latencies, []

    def slower(networks, *arguments, **named):
        first, other = networks
        timed.extend([networks["chosen"]] if other == "chosen" else [])
        found = usual(networks, *arguments, **named)
        return {first: found[first], other: replace(found[other], latency_ms=LATE * found[other].latency_ms)}

    monkeypatch.setattr(stopwatch, "measure_latencies", slower)
    return timed


def share_by_the_clock(network: nn.Module, architecture: Architecture) -> float:
    example = torch.zeros(1, *two_colours().image_size)
    student = shrink(network, architecture, example).eval()
    return LATE * network_time(student, (example,)) / network_time(network.eval(), (example,))


@pytest.mark.parametrize("prior", ["none", "scores"])
def test_a_search_keeps_its_budget_by_the_clock_where_the_model_says_too_little(prior, late):
    torch.manual_seed(0)
    network, options = Residual(), replace(OPTIONS, start="model", alignment="pad", prior=prior)
    found = search(network, two_colours(), "latency=0.8", options, latency=FAKE)
    assert share_by_the_clock(network, found.architecture) <= 0.816
    assert len(late) >= 2
    assert found.actual <= found.target
    if prior == "scores":
        assert found.history[-1]["target_latency"] < found.target, "it aims at what keeps the budget"
    believed = search(network, two_colours(), "latency=0.8", options, latency=replace(FAKE, checks=0))
    assert share_by_the_clock(network, believed.architecture) > 0.816


def test_a_compression_keeps_its_budget_by_the_clock_from_earlier_scores_too(late):
    torch.manual_seed(0)
    network, samples = Residual().eval(), torch.randn(32, 1, 4, 4)
    found = compress(network, samples, "latency=0.8", latency=FAKE)
    assert share_by_the_clock(network, found.architecture) <= 0.816
    assert (found.within[0].most, len(found.scores)) < (found.limits[0].most, 2)
    again = compress(network, samples, "latency=0.8", latency=FAKE, scores=found)
    assert share_by_the_clock(network, again.architecture) <= 0.816
    count = len(late)
    costs = {"latency": found.limits[0].cost}
    believed = compress(network, samples, "latency=0.8", costs=costs, scores=found)
    assert share_by_the_clock(network, believed.architecture) > 0.816
    assert len(late) == count, "nobody says how that model was measured"


class Predicted(type(MACS)):
    """A prediction of time: as many nanoseconds as MACs."""

    kind = name = "latency"


@pytest.fixture
def wide():
    """A space with many widths, its unpruned network's time, and what is derived of it within limits."""
    network = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 2, 3))
    space = inspect(network, torch.zeros(1, 1, 9, 9))
    even = Probabilities.of(
        space, {each.name: [1 / len(each.candidates)] * len(each.candidates) for each in (*space.groups, *space.stages)}
    )
    full = space.cost(Predicted(), space.full_architecture())
    return space, full, lambda limits: derive_with_proof(space, even, limits)


@pytest.mark.parametrize(("late", "rounds"), [(1.0, 1), (1.015, 1), (1.12, 2), (1.8, 2)])
def test_the_next_is_derived_within_what_the_clock_leaves(late, rounds, wide):
    space, full, derive = wide
    timed, noted = [], []

    def clock(architecture):
        timed.append(architecture)
        return late * space.cost(Predicted(), architecture) / full

    limits = [Limit(MACS, int(0.9 * full)), Limit(Predicted(), full // 2)]
    found, within = Timekeeper(clock, on_check=noted.append).settled("it", space, limits, derive)
    assert clock(found.architecture) <= 0.51
    assert [each["is_kept"] for each in noted] == [False] * (rounds - 1) + [True]
    assert noted[-1]["predicted"] == pytest.approx(noted[-1]["measured"] / late)
    assert (within[0], within[1].most == limits[1].most) == (limits[0], rounds == 1)
    known = {Architecture.from_json(each["architecture"]): each["measured"] for each in noted}
    again = Timekeeper(lambda _: pytest.fail("it is known"), known=known).settled("it", space, limits, derive)
    assert (again[0].architecture, again[1]) == (found.architecture, within)


def test_what_cannot_be_kept_by_the_clock_is_said(wide, capsys):
    space, full, derive = wide
    limits = [Limit(Predicted(), full // 2)]
    one, never = space.random_architecture(0), lambda _: pytest.fail("it need not be timed")
    assert [Timekeeper(never, known={one: share}).keeps(space, limits, one) for share in (0.51, 0.52)] == [True, False]
    assert Timekeeper(never).keeps(space, limits, one), "it was not timed"
    slower = iter([0.6, 0.58, 0.57, 0.56, 0.55])
    found, within = Timekeeper(lambda _: next(slower)).settled("it", space, limits, derive)
    assert next(slower) == 0.55, "four checks"
    assert space.cost(Predicted(), found.architecture) <= within[0].most < limits[0].most
    assert "it still takes longer than the budget allows, after 4 checks by the clock" in capsys.readouterr().err
    found, within = Timekeeper(lambda _: 100.0).settled("it", space, limits, derive)
    assert within == tuple(limits)
    assert "it takes longer than the budget allows, and nothing less" in capsys.readouterr().err
    with pytest.raises(BudgetError):
        Timekeeper(lambda _: 0.5).settled("it", space, [Limit(Predicted(), 1)], derive)
    other = [Limit(MACS, full // 2)]
    assert Timekeeper(lambda _: pytest.fail("no time is asked for")).settled("it", space, other, derive)[1] == tuple(
        other
    )


def test_a_run_that_goes_on_keeps_what_was_measured(run, late, monkeypatch):
    folder = run.folder
    with runs.logging_to(run):
        runs.teach_step(run)
        usual, shares = stopwatch.measure_latencies, []

        def broken(*arguments, **named):
            if shares:
                raise KeyboardInterrupt
            shares.append(usual(*arguments, **named))
            return shares[-1]

        with monkeypatch.context() as patched:
            patched.setattr(stopwatch, "measure_latencies", broken)
            with pytest.raises(KeyboardInterrupt):
                runs.search_step(run)
    run.close()
    assert len(late) == 1
    with runs.open_run(folder.path) as again, runs.logging_to(again):
        runs.search_step(again)
        noted = [entry for entry in read_journal(folder.file("journal.jsonl")) if entry["event"] == "latency_check"]
        assert [each["is_kept"] for each in noted] == [False, True]
        assert len(late) == 2, "the first was not measured again"
        assert folder.read_json("architecture.json").items() >= noted[-1]["architecture"].items()
        runs.distill_step(again)
        runs.evaluate_step(again)
    runs.show_results(folder)
    (budget,) = folder.read_json("result.json")["budgets"]
    times = [folder.read_json("result.json")[name] for name in ("student", "teacher")]
    shares = [each["latency_ms"] for each in times]
    assert budget["measured"] == pytest.approx(times[1]["latency"] * shares[0] / shares[1], abs=1)


def test_a_contender_that_is_too_slow_by_the_clock_is_not_compared():
    torch.manual_seed(0)
    network, data = Residual(), two_colours()
    options = replace(OPTIONS, epochs=1, start="model", alignment="pad", prior="scores")
    space = inspect(network, torch.zeros(1, *data.image_size))
    limits = [Limit(Predicted(), space.macs(space.full_architecture()) // 2)]
    prior = prior_from_scores(network, data, options, space=space, limits=limits)
    bilevel = Bilevel(network, data, options, space=space, limits=limits, prior=prior)
    smallest = space.smallest_architecture()

    def compared(*slow):
        keeper = Timekeeper(lambda _: 0.5, checks=0, known=dict.fromkeys(slow, 0.52))
        return {each.name: each.architecture for each in contenders(bilevel, smallest, limits, keeper)}

    every = compared()
    assert {SEARCHED, SCORES} < set(every)
    assert set(compared(prior.architecture)) == {name for name in every if every[name] != prior.architecture}
    assert compared(*every.values()) == every, "one has to be taken"
