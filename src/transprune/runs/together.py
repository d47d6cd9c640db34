"""One run in several processes, on one machine or several.

All processes take the same steps at the same time. The run folder is that of the first; each other has a folder of its
own with what the first one's held at the beginning, and forgets it at the end. So nothing but the first writes, and no
disk need be shared.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transprune.runtime import RUN_FILES, RunFolder, processes

if TYPE_CHECKING:
    from transprune.runs.run import Run


def opened_by_all(path: str | Path, opened: Callable[[str | Path], Run]) -> Run:
    """A run in all processes; only one's if there are no others.

    Args:
        path: The run folder of the first process.
        opened: Opens the run in a folder.

    Raises:
        TranspruneError: What `opened` raises in the first process, or that it failed there.
    """
    if processes.count() == 1:
        return opened(path)
    if processes.is_first():
        runs: list[Run] = []

        def first() -> dict[str, bytes]:
            with processes.alone():
                runs.append(opened(path))
            return _contents(runs[0].folder)

        processes.from_first(first)
        runs[0].decide(
            f"{processes.count()} processes share the work",
            "torchrun started them; each learns from its share of every batch, and the first writes",
            processes=processes.count(),
        )
        return runs[0]
    contents = processes.from_first(dict[str, bytes])
    folder = tempfile.TemporaryDirectory(prefix="transprune-")
    for name, content in contents.items():
        Path(folder.name, name).write_bytes(content)
    run = opened(folder.name)
    weakref.finalize(run, folder.cleanup)
    return run


def _contents(folder: RunFolder) -> dict[str, bytes]:
    """The files that later steps read."""
    return {name: folder.file(name).read_bytes() for name in RUN_FILES if name != "run.log" and folder.has(name)}
