"""The latency model: its tables, what it says of architectures, how it is learned, kept, and trusted or not."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import small_networks as zoo
from fake_latency import CALL, DISPATCH, REORDER, alone, network_time, use_fake_backend
from transprune.errors import LatencyError, OptionError, SpaceError
from transprune.exports.runtimes import RUNTIMES
from transprune.latency import measurement
from transprune.latency.backends import BACKENDS, Deployed, make_backend
from transprune.latency.latency_model import Correction, LatencyModel, TimeTable, Validation
from transprune.latency.measurement import grid_of, measure_latency
from transprune.latency.stopwatch import low_quantile, take_turns, time_all
from transprune.latency.timed_operators import TimedOperator, operators_of
from transprune.models.resnet import resnet
from transprune.options import LatencyOptions
from transprune.reading.inspection import inspect
from transprune.reading.reading import read
from transprune.shrinking.shrink import shrink

FAKE = LatencyOptions(backend="fake", repeats=3, architectures=6, validations=5)
PRODUCT = TimedOperator(kind="product", has_bias=True)
INSTALLED = [name for name in BACKENDS if name == "torch" or RUNTIMES[name].is_installed]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    return use_fake_backend(monkeypatch, tmp_path)


def table(rows, inputs, outputs):
    return TimeTable(operator=PRODUCT, inputs=inputs, outputs=outputs, nanoseconds=rows)


# Tables

GRIDS = st.lists(st.integers(1, 60), min_size=1, max_size=5, unique=True).map(lambda grid: tuple(sorted(grid)))


@st.composite
def tables(draw):
    inputs, outputs = draw(GRIDS), draw(GRIDS)
    steps = [[draw(st.integers(0, 1000)) for _ in outputs] for _ in inputs]
    rising = [
        [sum(sum(row[: n + 1]) for row in steps[: m + 1]) for n in range(len(outputs))] for m in range(len(inputs))
    ]
    return table(tuple(map(tuple, rising)), inputs, outputs)


@given(tables())
def test_interpolation_is_exact_where_it_was_measured(measured):
    for row, one in enumerate(measured.inputs):
        for column, other in enumerate(measured.outputs):
            assert measured.time(one, other) == measured.nanoseconds[row][column]


@given(tables(), st.integers(0, 70), st.integers(0, 70), st.integers(1, 5))
def test_interpolation_of_rising_times_never_falls(measured, one, other, more):
    assert measured.time(one + more, other) >= measured.time(one, other) - 1e-6
    assert measured.time(one, other + more) >= measured.time(one, other) - 1e-6


def test_between_four_measured_points_times_are_bilinear():
    measured = table(((10, 20), (30, 80)), (4, 8), (4, 8))
    assert measured.time(6, 4) == 20
    assert measured.time(4, 5) == 12.5
    assert measured.time(6, 6) == (10 + 20 + 30 + 80) / 4


def test_a_grid_holds_every_candidate_or_as_many_as_allowed_with_both_ends():
    space = inspect(zoo.plain(), zoo.example(), ratios=(0.25, 0.5, 0.75, 1.0))
    group, layer = next(
        (group, layer) for group in space.groups for layer in space.layers if layer.outputs.source == group.name
    )
    assert grid_of(space, layer.outputs, 8) == group.candidates
    assert grid_of(space, layer.outputs, 2) == (group.candidates[0], group.candidates[-1])


# Timing


def test_times_are_those_of_each_call_however_many_take_turns():
    now = 0

    def takes(nanoseconds):
        def run():
            nonlocal now
            now += nanoseconds

        return run

    times = take_turns([takes(5), takes(70)], clock=lambda: now, repeats=4)
    assert times == [[5] * 4, [70] * 4]
    durations = list(range(1, 200))
    found = time_all(
        [lambda each=each: takes(each) for each in durations], reference=takes(50), clock=lambda: now, repeats=3
    )
    assert found == durations


def test_a_machine_that_gets_slower_changes_no_time():
    now, runs = 0, 0

    def takes(nanoseconds):
        def run():
            nonlocal now, runs
            now, runs = now + nanoseconds * (1 if runs < 196 else 3), runs + 1  # slower from the second lot on

        return run

    found = time_all([lambda: takes(100)] * 96, reference=takes(60), clock=lambda: now, repeats=3)
    assert found[0] == found[-1]


def test_a_few_disturbances_change_no_time():
    assert low_quantile([10, 10, 10, 500, 900]) == 10


# The model


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "staged", "flattened", "grouped", "shared"])
def test_a_model_of_a_computed_machine_is_exact(name, fake):
    network = zoo.CASES[name]().eval()
    space = inspect(network, zoo.example())
    model = measure_latency(network, space, zoo.example(), FAKE).model
    for seed in range(5):
        architecture = space.random_architecture(seed)
        student = shrink(network, architecture, zoo.example()).eval()
        measured = network_time(student, (zoo.example(1),))
        assert space.cost(model, architecture) == pytest.approx(measured, rel=0.01)
    assert model.validation.median < 0.01


def test_the_correction_finds_what_operators_pay_only_alone(fake):
    network = resnet(20, image_channels=3).eval()
    space = inspect(network, zoo.example())
    found = measure_latency(network, space, zoo.example(), FAKE).model.correction
    assert found.scale == pytest.approx(1, abs=0.02)
    assert found.traffic == pytest.approx(-REORDER, abs=0.2)
    assert found.dispatch == pytest.approx(DISPATCH - CALL, abs=200)


def test_identical_operators_are_measured_once(fake):
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    space = inspect(network, zoo.example())
    operators = operators_of(read(network, zoo.example()), space)
    assert len(operators) == 6
    assert len(set(operators.values())) == 3


def test_an_operator_takes_its_norm_and_its_activation_along():
    network = zoo.depthwise().eval()
    operators = operators_of(read(network, zoo.example()), inspect(network, zoo.example()))
    first, *_, last = operators.values()
    assert (first.kind, first.has_norm, first.activation) == ("conv", True, "relu6")
    assert (last.kind, last.has_norm, last.activation) == ("product", False, None)
    assert any(each.groups == 0 and each.groups_at(6) == 6 for each in operators.values())


def test_a_projection_takes_time_only_where_its_widths_differ(fake):
    network = zoo.residual().eval()
    space = inspect(network, zoo.example())
    model = measure_latency(network, space, zoo.example(), FAKE).model
    layer = next(layer for layer in model.tables if layer.operator == "projection")
    assert model.layer_time(layer, 8, 8) == 0
    assert model.layer_time(layer, 8, 4) > 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "is_blocked"),
    [(16, 16, True), (9, 32, True), (20, 44, True), (19, 32, False), (32, 19, False), (16, 12, False)],
)
def test_an_output_is_handed_on_in_blocks_between_convolutions_that_both_have_them(inputs, outputs, is_blocked):
    one = (1, 1)
    operator = TimedOperator(kind="conv", extent=(5, 4), kernel=one, stride=one, padding=(0, 0), dilation=one)
    assert operator.handed_on(2, inputs, outputs) == (2 * outputs * 20 if is_blocked else 0)
    assert PRODUCT.handed_on(2, inputs, outputs) == 0


def test_a_space_of_another_model_is_refused():
    with pytest.raises(SpaceError, match="is none of this model"):
        operators_of(read(zoo.plain(), zoo.example()), inspect(zoo.residual(), zoo.example()))


def test_no_layer_takes_less_than_nothing():
    model = LatencyModel({}, 1, Correction(), Validation(predicted=(1,), measured=(1,)))
    space = inspect(zoo.plain(), zoo.example())
    layer = next(layer for layer in space.layers if layer.operator == "conv")
    assert model.layer_time(layer, 3, 8) == 0
    tables = {layer: table(((100,),), (3,), (8,))}
    assert replace(model, tables=tables, correction=Correction(dispatch=-1e9)).layer_time(layer, 3, 8) == 0


# What is kept


def kept_files(tmp_path):
    return sorted((tmp_path / "transprune" / "latency").iterdir())


def test_what_was_measured_is_kept_and_not_measured_again(fake, tmp_path):
    network = zoo.residual().eval()
    space = inspect(network, zoo.example())
    first = measure_latency(network, space, zoo.example(), FAKE)
    runs = fake.runs
    again = measure_latency(network, space, zoo.example(), replace(FAKE, bound=0.1))
    assert again.model == first.model
    assert fake.runs == runs
    assert again.seconds == 0 < first.seconds
    assert kept_files(tmp_path) == [first.path]
    measure_latency(network, space, zoo.example(), replace(FAKE, remeasure=True))
    assert fake.runs > runs


def test_other_hardware_options_inputs_or_networks_are_measured_anew(monkeypatch, fake, tmp_path):
    network = zoo.residual().eval()
    space = inspect(network, zoo.example())
    measure_latency(network, space, zoo.example(), FAKE)
    measure_latency(network, space, zoo.example(), replace(FAKE, threads=2))
    measure_latency(network, space, zoo.example(), replace(FAKE, batch_size=2))
    measure_latency(network, inspect(network, zoo.example(), divisor=4), zoo.example(), FAKE)
    larger = torch.zeros(1, 3, 16, 16)
    measure_latency(network, inspect(network, larger), larger, FAKE)
    use_fake_backend(monkeypatch, tmp_path, machine="another abacus")
    measure_latency(network, space, zoo.example(), FAKE)
    assert len(kept_files(tmp_path)) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: {**value, "format": 99}, "its format is 99, expected 1"),
        (lambda value: {**value, "tables": "none"}, "tables is 'none', expected a list"),
        (lambda value: {**value, "layers": [99] * len(value["layers"])}, "tuple index out of range"),
        (lambda value: {**value, "key": {}}, "it is of another network, machine or option"),
        (lambda value: [], "list indices"),
    ],
)
def test_a_kept_model_that_cannot_be_read_is_refused(change, message, fake):
    network = zoo.plain().eval()
    space = inspect(network, zoo.example())
    path = measure_latency(network, space, zoo.example(), FAKE).path
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(LatencyError, match=rf"cannot read the latency model .*{message}.*; remove that file"):
        measure_latency(network, space, zoo.example(), FAKE)
    path.write_text("{")
    with pytest.raises(LatencyError, match="cannot read the latency model"):
        measure_latency(network, space, zoo.example(), FAKE)


# Trust


def test_a_model_that_is_too_far_off_is_not_trusted_and_measured_again(monkeypatch, tmp_path):
    fake = use_fake_backend(monkeypatch, tmp_path, noise=0.9)
    network = zoo.plain().eval()
    space = inspect(network, zoo.example())
    model = measure_latency(network, space, zoo.example(), FAKE).model
    with pytest.raises(LatencyError, match=r"on 5 random architectures its median error is .* at most 15\.0 %; stop"):
        model.check_trust(FAKE.bound)
    model.check_trust(0.99)
    runs = fake.runs
    measure_latency(network, space, zoo.example(), FAKE)
    assert fake.runs > runs


def test_errors_are_shares_of_what_was_measured():
    validation = Validation(predicted=(90, 100, 150), measured=(100, 100, 100))
    assert validation.errors == (0.1, 0.0, 0.5)
    assert (validation.median, validation.worst) == (0.1, 0.5)


# Options and backends


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"threads": 0}, "threads=0: expected at least 1"),
        ({"grid": 1}, "grid=1: expected at least 2"),
        ({"bound": 1.5}, r"bound=1.5: expected a share in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    with pytest.raises(OptionError, match=message):
        LatencyOptions(**option)


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        OptionError, match="expected one of onnxruntime, openvino, litert, executorch, torch; did you mean 'torch'"
    ):
        make_backend(LatencyOptions(backend="torhc"))


OPERATORS = {
    "conv": TimedOperator(
        kind="conv", extent=(6, 5), kernel=(3, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 1), has_bias=True
    ),
    "norm": TimedOperator(
        kind="conv",
        extent=(6,),
        kernel=(3,),
        stride=(1,),
        padding=(0,),
        dilation=(2,),
        has_norm=True,
        activation="relu6",
    ),
    "depthwise": TimedOperator(
        kind="conv",
        extent=(4, 4),
        kernel=(3, 3),
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
        groups=0,
        activation="silu",
    ),
    "transposed": TimedOperator(
        kind="transposed", extent=(4, 4), kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), has_bias=True
    ),
    "grouped transposed": TimedOperator(
        kind="transposed", extent=(5, 4), kernel=(3, 3), stride=(2, 2), padding=(1, 0), dilation=(1, 1), groups=2
    ),
    "linear": TimedOperator(kind="product", has_bias=True, activation="gelu"),
    "tokens": TimedOperator(kind="product", positions=7, has_bias=True, activation="hardswish"),
    "attention": TimedOperator(kind="product", positions=7, has_weights=False),
}


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_runs_in_every_backend_on_what_it_says_it_reads(backend, name):
    operator = OPERATORS[name]
    inputs = 1 if name == "depthwise" else 6
    made = make_backend(LatencyOptions(backend=backend, batch_size=2))
    with made.running():
        output = made.operator(operator, inputs, 4)
        found = output()
    result = found[0] if isinstance(found, list) else found
    read = (
        2 * operator.positions * inputs
        if operator.kind == "product"
        else torch.zeros(operator.input_shape(2, inputs, 4)).numel()
    )
    assert operator.traffic(2, inputs, 4) == read + result.size if isinstance(found, list) else read + result.numel()


def test_a_cache_that_cannot_be_written_is_said_and_not_needed(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(measurement.log, "warning", lambda text, reason: said.append(text % reason))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    network = zoo.residual().eval()
    space = inspect(network, zoo.example(), ratios=(0.5, 1.0))
    options = LatencyOptions(backend="torch", repeats=3, architectures=4, validations=1)
    assert measure_latency(network, space, zoo.example(), options).model.tables
    [warning] = said
    assert f"Not a directory: '{tmp_path / 'file'}" in warning
    assert "$XDG_CACHE_HOME says where" in warning


def test_measuring_in_onnxruntime_gives_a_model_of_every_layer(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = zoo.residual().eval()
    space = inspect(network, zoo.example(), ratios=(0.5, 1.0))
    options = LatencyOptions(repeats=3, architectures=4, validations=2)
    found = measure_latency(network, space, zoo.example(), options)
    assert set(found.model.tables) == {
        layer for layer in space.layers if layer.operator in ("conv", "linear", "projection", "depthwise")
    }
    assert len(found.model.validation.measured) == 2
    assert min(found.model.validation.measured) > 0
    assert space.cost(found.model, space.full_architecture()) > 0
    assert found.path.is_file()


def test_a_network_that_the_older_exporter_cannot_write_is_written_by_the_newer_one(monkeypatch):
    export = torch.onnx.export

    def newer_only(*args, dynamo, **named):
        if not dynamo:
            raise TypeError("no such exporter any more")
        return export(*args, dynamo=dynamo, **named)

    monkeypatch.setattr(torch.onnx, "export", newer_only)
    backend = Deployed(LatencyOptions(), torch.device("cpu"))
    [logits] = backend.network(zoo.plain().eval(), (zoo.example(1),))()
    assert logits.shape == (1, zoo.CLASSES)


def test_alone_an_operator_takes_longer_than_its_kernel():
    assert alone(PRODUCT, 1, 8, 8) > CALL
