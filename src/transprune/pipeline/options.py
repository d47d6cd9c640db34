"""What decides a run, and what happens when something happens to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transprune.analysis.inspection import Dimensions
from transprune.data import AugmentationName
from transprune.errors import RunFolderError
from transprune.latency.options import LatencyOptions
from transprune.presets import StudentStart
from transprune.records import read_record
from transprune.runtime import CheckpointOptions
from transprune.training.bilevel import SearchOptions
from transprune.training.divergence import Policy
from transprune.training.fitting import DistillationOptions, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Everything that decides a run; what `config.toml` holds."""

    model: str
    data: str
    budget: tuple[str, ...]
    """All of them hold; one that names several amounts makes the run a frontier (`transprune.pipeline.frontier`)."""
    preset: str
    seed: int = 0
    weights: str | None = None
    weights_partial: bool = False
    image_size: tuple[int, int, int] | None = None
    augment: AugmentationName = "standard"
    download: bool = False
    dimensions: Dimensions = "both"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    divisor: int = 1
    student: StudentStart = "scratch"
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    """How latency is measured, where a budget speaks of it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> RunOptions:
        """Reads what `asdict` gave to `config.toml`.

        Raises:
            RunFolderError: A key is unknown or missing, or a value is of another type or out of range.
        """
        try:
            return read_record(cls, with_nones(cls, config))
        except (ValueError, TypeError) as error:
            raise RunFolderError(
                f"cannot read '{folder / 'config.toml'}': {error}; expected the file as `transprune run` wrote it"
            ) from error


def with_nones(kind: Any, values: Any) -> Any:
    """TOML has no None: a missing field that may be None is None, in every table that is there."""
    if not isinstance(values, Mapping):
        return values
    hints = get_type_hints(kind)
    tables = {name: with_nones(hints[name], table) for name, table in values.items() if is_dataclass(hints.get(name))}
    may_be_none = [name for name, hint in hints.items() if type(None) in get_args(hint)]
    return {**dict.fromkeys(may_be_none), **values, **tables}


@dataclass(frozen=True, kw_only=True)
class Safety(CheckpointOptions):
    """What happens when something happens; it decides nothing about the result of a run that is left alone."""

    on_divergence: Policy = "stop"
    """What to do about a loss or a gradient that is not finite: stop, or skip the step."""
