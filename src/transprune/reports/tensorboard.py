"""A tracker that writes a run for TensorBoard: `tensorboard --logdir RUN/tensorboard`.

Each phase is a TensorBoard run, so that curves of the same name share a chart; the run `run` has the texts. All of it
is derived from the journal, and a phase is rewritten when it resumes, so that no point appears twice.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transprune.errors import OptionError
from transprune.records import to_toml
from transprune.reports.figures import short_names
from transprune.runtime import is_epoch, read_journal
from transprune.runtime.files import StrPath

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NO_SCALARS = ("epoch", "epochs")
RESULTS = ("top1", "macs", "params", "latency_ms", "runtime", "device", "threads", "batch_size", "file_bytes")
"""Figures of the table of teacher and student."""


def require_tensorboard() -> None:
    """Checks that TensorBoard's package is installed.

    Raises:
        OptionError: It is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise OptionError(
            "cannot write for TensorBoard (--tensorboard): the package tensorboard is not installed; "
            "pip install 'transprune[tensorboard]'"
        )


class TensorBoardTracker:
    """Writes the records of a journal to RUN/tensorboard.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: StrPath) -> None:
        require_tensorboard()
        self._folder = Path(folder, "tensorboard")
        self._journal = Path(folder, "journal.jsonl")
        self._writers: dict[str, SummaryWriter] = {}
        self._decisions = 0
        self._replayed: Sequence[Mapping[str, Any]] | None = None

    def __call__(self, entry: Mapping[str, Any]) -> None:
        if self._replayed is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._replayed = read_journal(self._journal)
            self._show(self._replayed)
        elif entry in self._replayed:
            return
        elif entry["event"] == "phase" and entry["status"] == "begin":
            self._rewrite(entry["phase"])
        else:
            self._show([entry])

    def _rewrite(self, phase: str) -> None:
        """Rewrites a phase from the journal, from which epochs that will run again have been removed."""
        writer = self._writers.pop(phase, None)
        if writer is not None:
            writer.close()
        shutil.rmtree(self._folder / phase, ignore_errors=True)
        self._show([entry for entry in read_journal(self._journal) if is_epoch(entry, phase)])

    def _show(self, entries: Sequence[Mapping[str, Any]]) -> None:
        latest = {entry["event"]: entry for entry in entries if entry["event"] in ("configuration", "result")}
        for event, entry in latest.items():
            text = _result(entry) if event == "result" else f"```toml\n{to_toml(_fields(entry))}```"
            self._writer("run").add_text(event, text, walltime=_time(entry))
        for entry in entries:
            if entry["event"] == "epoch":
                self._show_epoch(entry)
            elif entry["event"] == "decision":
                self._decisions += 1
                self._writer("run").add_text(
                    "decisions", f"{entry['what']}: {entry['why']}", self._decisions, _time(entry)
                )
        for writer in self._writers.values():
            writer.flush()

    def _show_epoch(self, entry: Mapping[str, Any]) -> None:
        writer, epoch, time = self._writer(entry["phase"]), entry["epoch"], _time(entry)
        for name, value in scalars(entry).items():
            writer.add_scalar(name, value, epoch, time)
        for kind in ("width", "depth"):
            rows = entry.get(f"{kind}_probabilities")
            if rows:
                picture = heat_map(rows)
                writer.add_image(f"probabilities/{kind}", picture, epoch, time, dataformats="HWC")

    def _writer(self, part: str) -> SummaryWriter:
        if part not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[part] = SummaryWriter(str(self._folder / part))
        return self._writers[part]


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch, and expected and actual costs as shares of each budget."""
    figures = {
        name: float(value)
        for name, value in entry.items()
        if name not in NO_SCALARS and (isinstance(value, int | float) or value in ("nan", "inf", "-inf"))
    }
    for name in [name for name in figures if name.startswith("target_")]:
        kind = name.removeprefix("target_")
        for what in ("expected", "actual"):
            figures[f"share_of_budget/{what}_{kind}"] = figures[f"{what}_{kind}"] / figures[name]
    return figures


def heat_map(rows: Mapping[str, Sequence[float]]) -> np.ndarray:
    """An image [pixels, pixels, 3] with a labelled row of probabilities for each choice, smallest candidate first."""
    most = max(map(len, rows.values()))
    cells = np.full((len(rows), most), np.nan)
    for place, row in enumerate(rows.values()):
        cells[place, : len(row)] = row
    figure = Figure(figsize=(6, 1 + 0.2 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cells, aspect="auto", vmin=0, vmax=1, interpolation="none")
    axes.set_yticks(range(len(rows)), short_names(list(rows)), size=7)
    axes.set(xlabel="candidate, from the smallest to the full size", xticks=range(most))
    axes.set_xticklabels([str(number + 1) for number in range(most)], size=7)
    figure.colorbar(image, ax=axes, label="probability")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("time", "event")}


def _result(entry: Mapping[str, Any]) -> str:
    """Teacher and student as a table in Markdown."""
    rows = [(name, entry["teacher"][name], entry["student"][name]) for name in RESULTS if name in entry["student"]]
    return "\n".join(["| | teacher | student |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def _time(entry: Mapping[str, Any]) -> float:
    """The time of a record, in seconds since 1970."""
    return datetime.fromisoformat(entry["time"]).timestamp()
