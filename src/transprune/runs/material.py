"""What a run is made of: gathered and checked before anything is written, and kept as it was at the start."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from transprune.budget import Budget, limits_of, points
from transprune.costs import COSTS, Cost
from transprune.data import ImageData, halves_of, load_data
from transprune.errors import DataError, ModelError, OptionError, RunFolderError
from transprune.latency.measurement import LatencyMeasurement, trusted_latency
from transprune.models.by_name import build_model
from transprune.models.weights import Weights, classes_in, load_weights
from transprune.reading.inspection import inspect
from transprune.reading.reading import Reading
from transprune.records import read_record
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, processes, seeded
from transprune.runtime.structures import outline
from transprune.space import SearchSpace
from transprune.tas.derivation import check_attainable
from transprune.training.tasks import each_logits


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a run works with."""

    options: RunOptions
    data: ImageData
    model: nn.Module
    """The unpruned network with new weights."""
    weights: Weights | None
    """What fits of the file of `--weights`; None if none is given."""
    space: SearchSpace
    budgets: tuple[Budget, ...]
    """Each once, of all points of a frontier."""
    latency: LatencyMeasurement | None
    """How fast the network's operators are; None where no budget speaks of it."""

    @property
    def reading(self) -> Reading:
        """What was read from the network."""
        found: Reading = self.space.reading  # `inspect` made the space
        return found

    @property
    def costs(self) -> Mapping[str, Cost]:
        """How each kind of cost is counted."""
        return COSTS if self.latency is None else {**COSTS, "latency": self.latency.model}


def collect(
    options: RunOptions,
    device: torch.device,
    *,
    begun_in: RunFolder | None = None,
    reading: Reading | None = None,
) -> Material:
    """Reads data, network and weights, and checks all that can be checked before training.

    Args:
        options: What decides the run.
        device: Where latency is measured, if a budget speaks of it.
        begun_in: The folder that says what the data were when the run began; None: it begins now.
        reading: What is known of the network already.

    Raises:
        TranspruneError: Model, data, weights, budget or options cannot be used, or the classes are not those that the
            run began with.
    """
    if options.compress is not None:
        _check_trained(options)
    budgets = tuple(Budget.parse(text) for text in dict.fromkeys(itertools.chain(*points(options.budget))))
    data = data_of(options, begun_in)
    if options.compress is None:
        _check_images(options, data)
    else:
        from transprune.scores.compress import check_enough

        check_enough(len(data.train))
    model = model_of(options, data)
    weights = weights_of(options, model)
    example = torch.zeros(1, *data.image_size)
    space = inspect(
        model,
        example,
        dimensions=options.dimensions,
        keep=options.keep,
        only=options.only,
        divisor=options.divisor,
        reading=reading,
    )
    _check_logits(model, example, len(data.classes))
    measured = None
    is_measuring = processes.is_first()  # the others get the measurement, and what was checked against it
    if is_measuring and any(budget.kind == "latency" for budget in budgets):
        measured = trusted_latency(model, space, example, options.latency, device=device)
    found = Material(
        options=options, data=data, model=model, weights=weights, space=space, budgets=budgets, latency=measured
    )
    if is_measuring:
        for point in points(options.budget):
            check_attainable(space, limits_of(point, space, found.costs))
    return found


def _check_trained(options: RunOptions) -> None:
    """Checks that there is a trained network to make smaller without training.

    Raises:
        OptionError: There are no weights of it, or only some.
    """
    if options.weights is None or options.weights_partial:
        found = "only a part of its weights is given" if options.weights else "no weights of it are given"
        raise OptionError(
            f"cannot compress {options.model!r}: {found}; expected a network that is trained, since nothing is trained "
            "here (--weights FILE); `transprune run` trains it first"
        )


def _check_images(options: RunOptions, data: ImageData) -> None:
    """Checks that there is something to tell apart, and that a search can divide the training images.

    Raises:
        DataError: There is a single class, or there are too few images.
    """
    if len(data.classes) < 2:
        raise DataError(
            f"cannot learn from {options.data!r}: its only class is {data.classes[0]!r}; expected at least 2 classes, "
            "each with images of its own"
        )
    halves_of(data.train.labels, fraction=options.search.weights_share, seed=options.seed)


def data_of(options: RunOptions, begun_in: RunFolder | None = None) -> ImageData:
    """The data set that the options name, as it was read when the run began.

    Args:
        options: What decides the run.
        begun_in: The folder that says how that was; None: it begins now.

    Raises:
        RunFolderError: The classes are not those that the run began with.
    """
    begun = None if begun_in is None else read_begun(begun_in)
    image_size = options.image_size if begun is None else begun.image_size
    data = load_data(
        options.data,
        image_size=image_size,
        augmentation=options.augment,
        download=options.download,
        mean=options.mean,
        std=options.std,
    )
    if not data.is_labelled:
        if options.compress is None:
            data.require_labels("train")
        data = replace(data, classes=_classes_of(options, data) if begun is None else begun.classes)
    return data if begun_in is None or begun is None else as_begun(data, begun, begun_in)


def _classes_of(options: RunOptions, data: ImageData) -> tuple[str, ...]:
    """The classes of images without labels: as many as the weights tell apart, numbered."""

    def build(classes: int) -> nn.Module:
        with seeded(options.seed, "model"):
            return build_model(options.model, classes=classes, image_channels=data.image_size[0])

    count = None if options.weights is None else classes_in(options.weights, build)
    if count is None:  # the network has as many outputs as it always has
        count = _outputs_of(build(2), torch.zeros(1, *data.image_size))
    return tuple(map(str, range(count)))


def _outputs_of(model: nn.Module, example: Tensor) -> int:
    with torch.no_grad():
        logits = each_logits(model.eval()(example))
    return logits[0].shape[1] if logits and isinstance(logits[0], Tensor) and logits[0].dim() > 1 else 2


def model_of(options: RunOptions, data: ImageData) -> nn.Module:
    """The network that the options name, for the data's images and classes, with new weights."""
    with seeded(options.seed, "model"):
        return build_model(options.model, classes=len(data.classes), image_channels=data.image_size[0])


def weights_of(options: RunOptions, model: nn.Module) -> Weights | None:
    """What fits of the weights that the options name."""
    if options.weights is not None:
        return load_weights(options.weights, model, partial=options.weights_partial)
    if options.weights_partial:
        raise OptionError("cannot use --weights-partial alone: expected a file to take what fits from (--weights FILE)")
    return None


def _check_logits(model: nn.Module, example: Tensor, classes: int) -> None:
    """Checks that a model in training gives logits [batch, classes], and of auxiliary heads at most the same.

    Raises:
        ModelError: It does not.
    """
    network = copy.deepcopy(model).train()
    with torch.no_grad():
        outputs = network(torch.cat([example, example]))
    found = each_logits(outputs)
    if not found or any(not isinstance(one, Tensor) or list(one.shape) != [2, classes] for one in found):
        raise ModelError(
            f"cannot train the model {type(model).__name__}: of 2 images its forward gives {outline(outputs)}, "
            f"expected the logits [2, {classes}] of the data's {classes} classes; let its function take the number of "
            f"classes (`classes` or `num_classes`)"
        )


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
