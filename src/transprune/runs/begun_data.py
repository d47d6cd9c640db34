"""What a run's data were when it began: the run keeps to it, whatever becomes of the images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transprune.data import ImageData
from transprune.errors import RunFolderError
from transprune.records import read_record
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder

DATA_FILE = "data.json"
"""Where a run folder holds it; folders of earlier versions have none, and take the data as they are."""

SHOWN = 5
"""So many classes are named in a message."""


@dataclass(frozen=True, kw_only=True)
class BegunData:
    """What decides how a run reads its images, and how many there were."""

    classes: tuple[str, ...]
    """In the order of the labels."""
    image_size: tuple[int, int, int]
    """Channels, rows and columns."""
    mean: tuple[float, ...]
    """Of each channel; pixels count from 0 to 1."""
    std: tuple[float, ...]
    """Of each channel; pixels count from 0 to 1."""
    training_images: int
    test_images: int

    @classmethod
    def of(cls, data: ImageData) -> BegunData:
        """What a data set is now."""
        return cls(
            classes=data.classes,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            training_images=len(data.train),
            test_images=len(data.test),
        )

    @property
    def counts(self) -> str:
        """How many images there are, in words."""
        return f"{self.training_images:,} training and {self.test_images:,} test images"


def read_begun(folder: RunFolder) -> BegunData | None:
    """What the data of the run in a folder were when it began; None if the folder does not say.

    Raises:
        RunFolderError: The file is damaged.
    """
    if not folder.has(DATA_FILE):
        return None
    try:
        return read_record(BegunData, folder.read_json(DATA_FILE))
    except ValueError as error:
        raise RunFolderError(
            f"cannot read '{folder.file(DATA_FILE)}': {error}; expected the file as `transprune run` wrote it"
        ) from error


def begun_in(
    out: str | Path, options: RunOptions, *, overwrite: bool, part_of: RunFolder | None = None
) -> RunFolder | None:
    """The folder that says what the data of a run were when it began; None if it begins now.

    Args:
        out: The folder of the run.
        options: What decides it.
        overwrite: It starts anew.
        part_of: The folder of the frontier that it is a point of.

    Raises:
        RunFolderError: The folder holds a run with another configuration.
    """
    folder = RunFolder(out)
    if not overwrite and folder.has(DATA_FILE):
        folder.check(asdict(options))
        return folder
    return part_of


def as_begun(data: ImageData, begun: BegunData, folder: RunFolder) -> ImageData:
    """The data as the run in a folder reads them: normalised as it was when the run began.

    Raises:
        RunFolderError: The classes are others.
    """
    if data.classes != begun.classes:
        raise RunFolderError(
            f"cannot go on with the run in '{folder.path}': its data have other classes than it began with: "
            f"{_difference(begun.classes, data.classes)}; bring the images back as they were, or start anew with "
            "--overwrite"
        )
    return replace(data, mean=begun.mean, std=begun.std)


def check_training_images(data: ImageData, folder: RunFolder) -> None:
    """Checks that a run learns from as many images as it began with: else it were not that of one run left alone.

    Raises:
        RunFolderError: There are more, or fewer.
    """
    begun = read_begun(folder)
    if begun is not None and len(data.train) != begun.training_images:
        raise RunFolderError(
            f"cannot go on with the training in '{folder.path}': the run began with {begun.training_images:,} training "
            f"images, and there are {len(data.train):,} now; bring the images back as they were, or start anew with "
            "--overwrite"
        )


def _difference(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """How the classes changed, in words."""
    missing, added = [name for name in before if name not in now], [name for name in now if name not in before]
    if missing or added:
        parts = [f"{_listed(names)} {how}" for names, how in ((missing, "missing"), (added, "new")) if names]
        return " and ".join(parts)
    place, first = next((place, name) for place, name in enumerate(now) if name != before[place])
    return f"they stand in another order, the one of label {place} is {first!r} and was {before[place]!r}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
