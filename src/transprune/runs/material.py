"""What a run is made of, gathered and checked before anything is trained or written."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from transprune.budget import Budget, limits_of, points
from transprune.costs import COSTS, Cost
from transprune.data import ImageData, halves_of, load_data
from transprune.errors import DataError, ModelError, OptionError
from transprune.latency.measurement import LatencyMeasurement, trusted_latency
from transprune.models.by_name import build_model
from transprune.models.weights import Weights, classes_in, load_weights
from transprune.reading.inspection import inspect
from transprune.reading.reading import Reading
from transprune.runs.begun_data import as_begun, read_begun
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, processes, seeded
from transprune.runtime.structures import outline
from transprune.scores.compress import check_enough
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
