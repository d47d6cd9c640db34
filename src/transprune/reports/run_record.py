"""The contents of a run folder, ready to be shown; parts that do not exist yet are empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transprune.architecture import Architecture
from transprune.costs import MACS, PARAMS, Layer
from transprune.errors import RunFolderError
from transprune.runtime import RunFolder
from transprune.space import SearchSpace

PHASES = ("teacher", "search", "distill")


@dataclass(frozen=True, kw_only=True)
class WidthRow:
    """One width group before and after."""

    name: str
    full: int
    candidates: tuple[int, ...]
    kept: int | None
    """Width in the derived network; None while no architecture is chosen."""
    stage: str | None
    """The stage whose blocks hold it."""
    is_dropped: bool
    """Whether its block is dropped."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage before and after."""

    name: str
    full: int
    candidates: tuple[int, ...]
    kept: int | None
    """Blocks kept; None while no architecture is chosen."""
    blocks: tuple[int, ...]
    """Positions of those blocks; all while no architecture is chosen."""
    left_out: tuple[str, ...]
    """Paths of the blocks or branches that are dropped."""
    in_branches: bool = False
    """Whether branches are counted, not whole blocks."""


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """One layer in one network."""

    inputs: int
    outputs: int
    macs: int
    params: int


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer with MACs, before and after."""

    name: str
    operator: str
    stage: str | None
    """The stage whose blocks hold it."""
    before: LayerSize
    after: LayerSize | None
    """None while no architecture is chosen."""
    is_dropped: bool
    """Whether its block is dropped."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a report shows."""

    folder: str
    """The path of the run as it was named."""
    files: frozenset[str]
    """The names of the files in it."""
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    architecture: Mapping[str, Any]
    result: Mapping[str, Any]
    measurements: Mapping[str, Any]
    """The measurements of `transprune measure`."""
    int8: Mapping[str, Any]
    """The student in 32 and in 8 bits, of `transprune export --int8`."""
    examples: Mapping[str, Any]
    """Accuracy by class, and pictures on which teacher and student disagree."""
    entries: Sequence[Mapping[str, Any]]
    """The journal."""
    groups: Sequence[WidthRow]
    stages: Sequence[StageRow]
    layers: Sequence[LayerRow]
    """Empty while the space is unknown."""
    is_point: bool
    """Whether the run is a point of a frontier, whose page is in the folder above."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.result or self.architecture or self.groups or any(map(self.epochs, PHASES)))

    @property
    def budgets(self) -> list[Mapping[str, Any]]:
        """What each budget allows and what is used of it; empty while the student is not measured."""
        found = self.result.get("budgets")
        return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []

    @property
    def cost_kinds(self) -> list[str]:
        """The kinds of cost in the budgets, such as "macs"."""
        last = self.epochs("search")[-1:]
        targets = [key.removeprefix("target_") for key in (last[0] if last else {}) if key.startswith("target_")]
        return [str(budget.get("kind", "macs")) for budget in self.budgets] or targets or ["macs"]

    def events(self, event: str) -> list[Mapping[str, Any]]:
        """The journal's records of one kind."""
        return [entry for entry in self.entries if entry.get("event") == event]

    def epochs(self, phase: str) -> list[Mapping[str, Any]]:
        """The epochs of a phase; a later attempt replaces the epochs of an interrupted one."""
        kept: list[Mapping[str, Any]] = []
        for entry in self.events("epoch"):
            if entry.get("phase") == phase and isinstance(entry.get("epoch"), int):
                while kept and kept[-1]["epoch"] >= entry["epoch"]:
                    kept.pop()
                kept.append(entry)
        return kept


def part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested table, or an empty one."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number, or None: journals write the others as text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def series(epochs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The epochs that have a finite value, and the values."""
    points = [(int(entry["epoch"]), number(entry.get(key))) for entry in epochs]
    found = [(epoch, value) for epoch, value in points if value is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def read_record(run_dir: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        RunFolderError: The folder is missing or not a run, a file is malformed, or there is nothing to report yet.
    """
    folder = RunFolder.open(run_dir)
    try:
        record = _read(folder)
        is_empty = record.is_empty
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"cannot report on the run folder '{run_dir}': space.json, architecture.json, result.json or "
            f"journal.jsonl does not have the expected form ({type(error).__name__}: {error}); "
            f"repeat the run with --overwrite"
        ) from error
    if is_empty:
        raise RunFolderError(
            f"cannot report on the run folder '{run_dir}': no step has left a result there yet (found no epoch in "
            f"journal.jsonl, no space.json, no architecture.json and no result.json); "
            f"run `transprune run` or `transprune search` for it first"
        )
    return record


def _read(folder: RunFolder) -> RunRecord:
    space, architecture, result = (
        folder.read_json(name) if folder.has(name) else {}
        for name in ("space.json", "architecture.json", "result.json")
    )
    environment = folder.read_json("environment.json") if folder.has("environment.json") else {}
    return RunRecord(
        folder=str(folder.path),
        files=frozenset(file.name for file in folder.path.iterdir()),
        config=folder.config,
        config_text=folder.file("config.toml").read_text(encoding="utf-8"),
        environment=environment or part(result, "environment"),
        architecture=architecture,
        result=result,
        measurements=folder.read_json("measurements.json") if folder.has("measurements.json") else {},
        int8=folder.read_json("int8.json") if folder.has("int8.json") else {},
        examples=folder.read_json("examples.json") if folder.has("examples.json") else {},
        entries=folder.read_journal(),
        groups=[_width_row(group, space, architecture) for group in space.get("groups", [])],
        stages=[_stage_row(stage, architecture) for stage in space.get("stages", [])],
        layers=_layer_rows(space, architecture) if space.get("layers") else [],
        is_point=(folder.path.resolve().parent / "config.toml").is_file(),
    )


def _width_row(group: Mapping[str, Any], space: Mapping[str, Any], architecture: Mapping[str, Any]) -> WidthRow:
    name, full = str(group["name"]), int(group["width"])
    places = _places(name, space)
    return WidthRow(
        name=name,
        full=full,
        candidates=tuple(group["candidates"]),
        kept=int(architecture.get("widths", {}).get(name, full)) if architecture else None,
        stage=places[0][0]["name"] if places else None,
        is_dropped=bool(places) and all(place not in _kept(stage, architecture) for stage, place in places),
    )


def _stage_row(stage: Mapping[str, Any], architecture: Mapping[str, Any]) -> StageRow:
    name, full = str(stage["name"]), int(stage["depth"])
    blocks = tuple(sorted(_kept(stage, architecture)))
    kept = len(blocks) if architecture else None
    return StageRow(
        name=name,
        full=full,
        candidates=tuple(stage["candidates"]),
        kept=kept,
        blocks=blocks,
        left_out=tuple(path for place, path in enumerate(stage["blocks"]) if place not in blocks),
        in_branches=bool(stage.get("parts")),
    )


def _kept(stage: Mapping[str, Any], architecture: Mapping[str, Any]) -> set[int]:
    """Positions of the blocks that are kept of a stage."""
    named = architecture.get("blocks", {}).get(stage["name"])
    if named is not None:
        return {place for place, path in enumerate(stage["blocks"]) if path in named}
    depth = int(architecture.get("depths", {}).get(stage["name"], stage["depth"]))
    return set(range(min(depth, len(stage["blocks"]))))  # a damaged file may say any depth


def _layer_rows(space_json: Mapping[str, Any], architecture_json: Mapping[str, Any]) -> list[LayerRow]:
    """The layers with MACs before or after."""
    space = SearchSpace.from_json(space_json)
    full = space.full_architecture()
    chosen = Architecture.from_json(architecture_json) if architecture_json else None
    rows = [_layer_row(space, layer, full, chosen) for layer in space.layers]
    return [row for row in rows if row.before.macs or (row.after and row.after.macs)]


def _layer_row(space: SearchSpace, layer: Layer, full: Architecture, chosen: Architecture | None) -> LayerRow:
    block = space.block_of(layer.name)
    return LayerRow(
        name=layer.name,
        operator=layer.operator,
        stage=block[0].name if block else None,
        before=_layer_size(space, layer, full),
        after=_layer_size(space, layer, chosen) if chosen else None,
        is_dropped=chosen is not None and not space.is_kept(layer.name, chosen),
    )


def _layer_size(space: SearchSpace, layer: Layer, architecture: Architecture) -> LayerSize:
    return LayerSize(
        inputs=space.resolve(layer.inputs, architecture),
        outputs=space.resolve(layer.outputs, architecture),
        macs=space.layer_cost(MACS, layer, architecture),
        params=space.layer_cost(PARAMS, layer, architecture),
    )


def _places(group: str, space: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], int]]:
    """The stage that holds a group, and the positions of its blocks there (from 0); several branches may need one."""
    return [
        (stage, position)
        for stage in space.get("stages", [])
        for position, part in enumerate(stage.get("parts") or [[block] for block in stage["blocks"]])
        if any(group == path or group.startswith((f"{path}.", f"{path}:")) for path in part)
    ]
