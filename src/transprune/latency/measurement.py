"""Measures the costs that shapes do not tell: latency, and the size of files.

A latency model times operators in isolation, is fitted to whole networks, and validated on other networks. It is kept
in a cache on disk, so that a machine measures a network only once. What the parts of a file take is fitted to files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.budget import Budget
from transprune.costs import COSTS, FILE_FACTORS, Channels, Cost, FileSize, Layer
from transprune.errors import ExportError, LatencyError, RunFolderError
from transprune.exports.formats import export_program, quantised_onnx
from transprune.exports.runtimes import OnnxRuntime, files_for, find_runtime
from transprune.latency.backends import Backend, Call, make_backend
from transprune.latency.latency_model import Correction, LatencyModel, TimeTable, Validation, fit_correction
from transprune.latency.stopwatch import Advance, as_batch, time_all
from transprune.latency.timed_operators import TimedOperator, operators_of
from transprune.options import LatencyOptions
from transprune.reading.networks import switched, unwrapped
from transprune.reading.reading import Reading, read_for
from transprune.reading.trace import Example, rebatched, sample_axes
from transprune.records import read_record
from transprune.runtime import announce, choose_device, processes, progress_bar, track
from transprune.runtime.files import disk_errors, write_atomically
from transprune.runtime.structures import as_inputs, copied, tensors_in
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace

log = logging.getLogger("transprune.latency")
Point = tuple[TimedOperator, int, int]
"""An operator, its input width and its output width."""


@dataclass(frozen=True, kw_only=True)
class LatencyMeasurement:
    """A latency model and its provenance."""

    model: LatencyModel
    path: Path
    """The file that caches it."""
    seconds: float
    """Time that measuring took; 0 if it was read from the cache."""
    key: Mapping[str, Any]
    """Everything it depends on: hardware, versions, options, network."""


def measure_latency(
    model: nn.Module,
    space: SearchSpace,
    example: Example,
    options: LatencyOptions | None = None,
    *,
    device: torch.device | str | None = None,
) -> LatencyMeasurement:
    """The latency model of a search space on this machine, measured now or read from the cache.

    A cached model is measured again if its error exceeds the bound.

    Args:
        model: The unpruned network; untouched.
        space: The search space that `inspect` read from it.
        example: An input batch, or a tuple of the forward's positional arguments; its first sample is used.
        options: What to measure, and how; None: the defaults.
        device: Where torch computes, with the backend `torch`; None: where the model is.

    Raises:
        ModelError: The model cannot be read.
        SpaceError: The space is not the model's.
        LatencyError: A network cannot be exported for the backend, or the cached model is damaged.
    """
    options = options or LatencyOptions()
    backend = make_backend(options, choose_device(device, model))
    model = unwrapped(model)
    reading = read_for(model, example, space)
    operators = operators_of(reading, space)
    inputs = as_batch(model, example, options.batch_size)
    key = cache_key(backend, options, space, operators, [list(tensor.shape) for tensor in tensors_in(inputs)])
    path = cache_path(key)
    kept = None
    with suppress(RunFolderError):  # a cache that cannot be read is none
        kept = None if options.remeasure else load_model(path, key, space)
    if kept is not None and kept.validation.median <= options.bound:
        log.info("latency: the model measured before is kept in %s", path)
        return LatencyMeasurement(model=kept, path=path, seconds=0.0, key=key)
    started = time.perf_counter()
    found = _Measuring(
        network=model, space=space, reading=reading, inputs=inputs, backend=backend, options=options
    ).model(operators)
    try:
        save_model(path, key, space, found)
    except RunFolderError as error:
        reason = error.__cause__ or error
        log.warning("latencies are measured anew each time: cannot keep them (%s); $XDG_CACHE_HOME says where", reason)
    return LatencyMeasurement(model=found, path=path, seconds=time.perf_counter() - started, key=key)


def trusted_latency(
    model: nn.Module,
    space: SearchSpace,
    example: Example,
    options: LatencyOptions | None = None,
    *,
    device: torch.device | str | None = None,
) -> LatencyMeasurement:
    """`measure_latency`, for a search: fails if the model's error exceeds the bound, twice in a row.

    Once may be a moment in which something else ran on the machine.

    Raises:
        LatencyError: The model's error exceeds the bound, or as in `measure_latency`.
    """
    options = options or LatencyOptions()
    found = measure_latency(model, space, example, options, device=device)
    try:
        found.model.check_trust(options.bound)
    except LatencyError:
        error = found.model.validation.median
        announce(f"latency: off by {100 * error:.0f} % on other networks, so it is measured once more")
        found = measure_latency(model, space, example, replace(options, remeasure=True), device=device)
        found.model.check_trust(options.bound)
    return found


def costs_for(
    budgets: Sequence[Budget],
    model: nn.Module,
    space: SearchSpace,
    example: Example,
    *,
    costs: Mapping[str, Cost] = COSTS,
    latency: LatencyOptions | None = None,
    device: torch.device | str | None = None,
) -> Mapping[str, Cost]:
    """The costs by kind, with those that budgets speak of and that have to be measured; on the first process alone.

    Raises:
        LatencyError: As in `trusted_latency`.
        ExportError: As in `file_size`.
    """
    wanted = {budget.kind for budget in budgets} - set(costs)
    found: dict[str, Cost] = {}
    if "latency" in wanted:
        found["latency"] = processes.from_first(
            lambda: trusted_latency(model, space, example, latency, device=device).model
        )
    if "file" in wanted:
        found["file"] = processes.from_first(lambda: file_size(model, space, example))
    return {**costs, **found}


class _Measuring:
    """One measurement in progress."""

    def __init__(
        self,
        *,
        network: nn.Module,
        space: SearchSpace,
        reading: Reading,
        inputs: Example,
        backend: Backend,
        options: LatencyOptions,
    ) -> None:
        self.network, self.space, self.reading, self.inputs = network, space, reading, inputs
        self.backend, self.options = backend, options

    def model(self, operators: Mapping[Layer, TimedOperator]) -> LatencyModel:
        """Measures operators and networks, fits the correction, and validates the model."""
        grids = {layer: self._grids(layer) for layer in operators}
        points = list(
            dict.fromkeys(
                (operator, inputs, outputs)
                for layer, operator in operators.items()
                for inputs in grids[layer][0]
                for outputs in grids[layer][1]
            )
        )
        fitted = self.space.spread_architectures(self.options.architectures, seed=0)
        held_out = [self.space.random_architecture(seed) for seed in range(self.options.validations)]
        with self.backend.running(), progress_bar("latency", len(points) + len(fitted) + len(held_out)) as progress:

            def advance(what: str) -> Advance:
                return lambda steps: progress.advance(what, steps=steps)

            log.info("latency: timing %d operators and %d networks", len(points), len(fitted) + len(held_out))
            reference = self._reference(points)
            times = dict(zip(points, self._operator_times(points, reference, advance("operators")), strict=True))
            tables = {layer: _table(operator, *grids[layer], times) for layer, operator in operators.items()}
            whole = self._network_times([*fitted, *held_out], reference, advance("whole networks"))
        return self._fitted(tables, fitted, held_out, whole)

    def _fitted(
        self,
        tables: Mapping[Layer, TimeTable],
        fitted: Sequence[Architecture],
        held_out: Sequence[Architecture],
        whole: Sequence[float],
    ) -> LatencyModel:
        batch_size, count = self.options.batch_size, len(fitted)
        correction = fit_correction(self.space, tables, batch_size, fitted, whole[:count])
        measured = tuple(map(round, whole[count:]))
        found = LatencyModel(tables, batch_size, correction, Validation(predicted=(), measured=()))
        predicted = tuple(self.space.cost(found, architecture) for architecture in held_out)
        validation = Validation(predicted=predicted, measured=measured)
        log.info(
            "latency: on %d random architectures the model is off by %.1f %% (median), %.1f %% (worst)",
            len(held_out),
            100 * validation.median,
            100 * validation.worst,
        )
        return LatencyModel(tables, batch_size, correction, validation)

    def _grids(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inputs, outputs = (grid_of(self.space, side, self.options.grid) for side in (layer.inputs, layer.outputs))
        return inputs, outputs

    def _reference(self, points: Sequence[Point]) -> Call:
        """The first operator at its full widths; timed in every turn to tell how fast the machine currently is."""
        operator = points[0][0]
        return self.backend.operator(*[point for point in points if point[0] == operator][-1])

    def _operator_times(self, points: Sequence[Point], reference: Call, advance: Advance) -> list[float]:
        makers: list[Callable[[], Call]] = [partial(self.backend.operator, *point) for point in points]
        return time_all(
            makers, reference=reference, clock=self.backend.clock, repeats=self.options.repeats, advance=advance
        )

    def _network_times(self, architectures: Sequence[Architecture], reference: Call, advance: Advance) -> list[float]:
        def ready(architecture: Architecture) -> Call:
            student = shrink(self.network, architecture, self.inputs, reading=self.reading)
            return self.backend.network(switched(student, training=False), self.inputs)

        makers: list[Callable[[], Call]] = [partial(ready, architecture) for architecture in architectures]
        return time_all(
            makers, reference=reference, clock=self.backend.clock, repeats=2 * self.options.repeats, advance=advance
        )


def _table(
    operator: TimedOperator, inputs: tuple[int, ...], outputs: tuple[int, ...], times: Mapping[Point, float]
) -> TimeTable:
    rows = tuple(tuple(round(times[operator, one, other]) for other in outputs) for one in inputs)
    return TimeTable(operator=operator, inputs=inputs, outputs=outputs, nanoseconds=rows)


def grid_of(space: SearchSpace, channels: Channels, most: int) -> tuple[int, ...]:
    """The widths to measure for channels: all that the candidates allow, or `most` evenly spread ones.

    Args:
        space: The search space.
        channels: Input or output of a layer.
        most: Largest number of widths, at least 2; the smallest and the largest width are always included.
    """
    widths = sorted(_totals(space, channels))
    if len(widths) <= most:
        return tuple(widths)
    return tuple(sorted({widths[round(point * (len(widths) - 1) / (most - 1))] for point in range(most)}))


def _totals(space: SearchSpace, channels: Channels) -> set[int]:
    """All widths that the candidates allow; for a concatenation, only sums in which all parts are cut alike."""
    each = [_part_widths(space, part) for part in channels.parts]
    if len(each) == 1:
        return set(each[0])
    steps = max(map(len, each))
    return {
        sum(widths[round(step * (len(widths) - 1) / max(1, steps - 1))] for widths in each) for step in range(steps)
    }


def _part_widths(space: SearchSpace, part: Channels) -> list[int]:
    if part.source not in space.stage_index:
        return list(space.possible_widths(part))
    stage = space.stages[space.stage_index[part.source]]
    ends = {width * part.repeat for end in stage.outputs for width in _totals(space, end)}
    return sorted(ends)


# --- the size of files

SIZED, TRIED = 6, 2
"""Files that the cost of a file is fitted to, and others that it is tried on."""
INEXACT = 0.01
"""What is said of the size of other files may be off by so much of it."""


def file_size(
    model: nn.Module, space: SearchSpace, example: Example, runtime: str = "onnxruntime", *, int8: bool = False
) -> FileSize:
    """What the file of each network of a search space takes, as a cost; fitted to files that are written now.

    Of none of these it says less than they take: a network within a budget is to have a file within it.

    Args:
        model: The unpruned network; untouched.
        space: The search space that `inspect` read from it.
        example: Inputs of the forward.
        runtime: What reads the file.
        int8: Whether the file is that of 8 bits (`quantise`), which onnxruntime alone has.

    Raises:
        ExportError: The runtime is not installed or has no 8 bits, a network cannot be exported, or the sizes of files
            do not follow from widths and depths.
        ModelError: The model cannot be read.
    """
    network, reader = unwrapped(model), find_runtime(runtime)
    if int8 and not isinstance(reader, OnnxRuntime):
        raise ExportError(f"cannot write 8 bits for {reader.title}: expected onnxruntime")
    reading, axes = read_for(network, example, space), sample_axes(network, as_inputs(example))
    example = as_inputs(example) if axes is None else rebatched(as_inputs(example), 1, axes)

    def size(architecture: Architecture) -> int:
        student = _with_distinct_values(shrink(network, architecture, example, reading=reading))
        program = export_program(student, example)
        files = files_for(reader, student, example, program)
        if int8:  # the ranges of activations do not change the size
            noise = [torch.randn_like(each) if each.is_floating_point() else each for each in tensors_in(example)]
            return len(quantised_onnx(files[".onnx"], [noise]))
        return sum(map(len, files.values()))

    fitted = space.spread_architectures(SIZED, seed=0)
    others = [space.random_architecture(seed) for seed in range(TRIED)]
    sizes = [size(each) for each in track([*fitted, *others], "file", SIZED + TRIED)]
    bearer = next(each.name for each in space.layers if space.is_kept(each.name, space.smallest_architecture()))

    def cost_of(factors: Iterable[float]) -> FileSize:
        each: dict[str, Any] = dict(zip(FILE_FACTORS, map(float, factors), strict=True))
        return FileSize(**each, bearer=bearer, runtime=runtime, int8=int8)

    units = [cost_of(row) for row in np.eye(len(FILE_FACTORS))]
    counts = np.array([[space.cost(unit, each) for unit in units] for each in fitted], dtype=float)
    cost = cost_of(_fitted_above(counts, np.array(sizes[:SIZED], dtype=float)))
    errors = tuple(space.cost(cost, each) / true - 1 for each, true in zip(others, sizes[SIZED:], strict=True))
    if max(map(abs, errors)) > INEXACT:
        raise ExportError(
            f"cannot say what files take: of {TRIED} networks it is off by {100 * max(errors, key=abs):+.1f} %, "
            f"expected at most {100 * INEXACT:g} %; a budget in parameters (params=) says nearly the same"
        )
    return replace(cost, errors=errors)


@torch.no_grad()
def _with_distinct_values(network: nn.Module) -> nn.Module:
    """A copy on the CPU that has no two equal tensors, as those of new norms are: exporters write equal ones once."""
    found, generator = copied(network).cpu(), torch.Generator().manual_seed(0)
    for tensor in found.state_dict().values():
        if tensor.is_floating_point():
            share, shift = torch.rand(2, *tensor.shape, generator=generator)
            tensor.mul_(0.9 + 0.2 * share).add_(0.01 * shift)
    return found


def _fitted_above(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The factors with which no sum is below its size, and all together exceed them least, as shares."""
    from scipy.optimize import linprog

    shares = counts / sizes[:, None]
    found = linprog(shares.sum(0), A_ub=-shares, b_ub=-np.ones(len(sizes)), bounds=(0, None))
    return np.asarray(found.x)


# --- the cache

FORMAT = 1
_NOT_IN_KEY = ("bound", "remeasure", "checks")
"""Options that do not change what is measured."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The contents of a file besides its format and key."""

    batch_size: int
    tables: tuple[TimeTable, ...]
    layers: tuple[int | None, ...]
    """The index of the table of each layer of the space; None: it has none."""
    correction: Correction
    validation: Validation


def cache_folder() -> Path:
    """`transprune/latency` in the user's cache: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transprune" / "latency"


def cache_key(
    backend: Backend,
    options: LatencyOptions,
    space: SearchSpace,
    operators: Mapping[Layer, TimedOperator],
    input_sizes: list[list[int]],
) -> dict[str, Any]:
    """Everything that a latency model depends on: hardware, versions, options, and the structure of the network."""
    parts = [asdict(operators[layer]) if layer in operators else None for layer in space.layers]
    structure = json.dumps([space.to_json(), parts], sort_keys=True)
    return {
        **{name: value for name, value in asdict(options).items() if name not in _NOT_IN_KEY},
        **backend.surroundings(),
        "input_sizes": input_sizes,
        "network": hashlib.sha256(structure.encode()).hexdigest(),
    }


def cache_path(key: Mapping[str, Any]) -> Path:
    """The file for a key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:24]}.json"


def save_model(path: Path, key: Mapping[str, Any], space: SearchSpace, model: LatencyModel) -> None:
    """Writes a model atomically.

    Raises:
        RunFolderError: The file cannot be written.
    """
    with disk_errors("make the folder", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(model_json(key, space, model)) + "\n").encode())


def model_json(key: Mapping[str, Any], space: SearchSpace, model: LatencyModel) -> dict[str, Any]:
    """A model as plain values for `json.dumps`."""
    tables = list(dict.fromkeys(model.tables.values()))
    kept = _Kept(
        batch_size=model.batch_size,
        tables=tuple(tables),
        layers=tuple(tables.index(model.tables[layer]) if layer in model.tables else None for layer in space.layers),
        correction=model.correction,
        validation=model.validation,
    )
    return {"format": FORMAT, "key": dict(key), "median_error": model.validation.median, **asdict(kept)}


def load_model(path: Path, key: Mapping[str, Any] | None, space: SearchSpace) -> LatencyModel | None:
    """Reads a model; None if there is no file.

    Args:
        path: The file.
        key: The key that the model must have; None: any.
        space: The space whose layers the model is for.

    Raises:
        LatencyError: The file is damaged or of a newer format, or the model is for another key or space.
        RunFolderError: The file cannot be read.
    """
    with disk_errors("read", path):
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, expected {FORMAT}")
        if key is not None and value["key"] != json.loads(json.dumps(key)):
            raise ValueError("it is of another network, machine or option")
        kept = read_record(_Kept, {item.name: value[item.name] for item in fields(_Kept) if item.name in value})
        tables = {
            layer: kept.tables[index]
            for layer, index in zip(space.layers, kept.layers, strict=True)
            if index is not None
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LatencyError(
            f"cannot read the latency model '{path}': {error}; remove that file, and it is measured again"
        ) from error
    return LatencyModel(tables, kept.batch_size, kept.correction, kept.validation)
