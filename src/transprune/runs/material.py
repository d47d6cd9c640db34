"""The material of a run (data, network, weights, space), checked before anything is written; and its first data."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from transprune.budget import Budget, limits_of, points
from transprune.costs import Cost, FileSize, with_kinds
from transprune.data import ImageData, LoaderData, Split, halves_of, load_data
from transprune.data.encoded_images import sample_places
from transprune.data.scenes import is_scenes, load_scenes
from transprune.data.sources import NAMED_STATISTICS, normalised
from transprune.data.texts import is_texts, load_texts
from transprune.errors import DataError, ModelError, OptionError, RunFolderError, expected_one_of
from transprune.latency.measurement import LatencyMeasurement, file_size, trusted_latency
from transprune.models.by_name import PRETRAINED, build_model, is_trained_yolo, pretrained, published_preprocessing
from transprune.models.hugging_face import Origin, is_hugging_face
from transprune.models.weights import Weights, classes_in, fit_weights, read_tensors
from transprune.options import DEFAULT_PRESET, Removable
from transprune.reading.inspection import CONFIGURATION, inspect, ties_of
from transprune.reading.networks import switched
from transprune.reading.reading import Reading
from transprune.reading.trace import Example
from transprune.records import read_record
from transprune.reports.words import named
from transprune.runs.run_options import RunOptions, preset_options
from transprune.runtime import RunFolder, UserFunction, announce, processes, seeded
from transprune.runtime.structures import copied, outline
from transprune.space import SearchSpace
from transprune.tas.derivation import check_attainable
from transprune.training.batches import Batch, Data, as_data, example_of, feed, is_pair
from transprune.training.detection import detection, inputs_of_part, resize_to
from transprune.training.evaluation import answers, evaluate_batches, evaluation_mode
from transprune.training.parts import Part, part_of
from transprune.training.tasks import READY, Task, classification, each_logits

if TYPE_CHECKING:
    from transprune.runs.run import Run

_log = logging.getLogger("transprune.run")


IN_PYTHON = "python:"
"""Begins the names of networks, data and tasks that a run was given as objects."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a run is given in Python, rather than by name."""

    model: nn.Module
    data: Data
    task: Task
    space: SearchSpace | None = None
    """What may be chosen; None: all that `inspect` finds."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a run works with."""

    options: RunOptions
    data: Data
    task: Task
    model: nn.Module
    """The unpruned network with new weights."""
    weights: Weights | None
    """The weights in the file of `--weights` that fit; None if no file is given."""
    space: SearchSpace
    budgets: tuple[Budget, ...]
    """The distinct budgets of all points of a frontier."""
    latency: LatencyMeasurement | None
    """The latency model; None without a latency budget."""
    file: FileSize | None
    """What the exported file takes; None without a budget of it."""

    @property
    def reading(self) -> Reading:
        """The reading of the network."""
        found: Reading = self.space.reading  # never None, since `inspect` made the space
        return found

    @property
    def costs(self) -> Mapping[str, Cost]:
        """How each kind of cost is counted."""
        measured: list[Cost] = [] if self.latency is None else [self.latency.model]
        return with_kinds([*measured, *([self.file] if self.file else [])])


def known_file_size(folder: RunFolder | None) -> FileSize | None:
    """What the exported file takes, as the run in a folder has found; None where it asks for no such budget.

    Raises:
        RunFolderError: The record is damaged.
    """
    return None if folder is None else _recorded(FileSize, folder, FILE_SIZE)


def _removable(options: RunOptions, begun_in: RunFolder | None) -> Removable:
    """What a run may leave out: what it has begun with, or what its options say."""
    if begun_in is not None and begun_in.has("space.json"):
        begun = SearchSpace.from_json(begun_in.read_json("space.json"))
        return "branches" if any(stage.parts for stage in begun.stages) else "blocks"
    if ties_of(options.tie) == CONFIGURATION:
        return "blocks"
    return options.search.removable if options.compress is None else "branches"


def collect(
    options: RunOptions,
    device: torch.device,
    *,
    begun_in: RunFolder | None = None,
    reading: Reading | None = None,
    given: Given | None = None,
) -> Material:
    """Reads data, network and weights, and checks everything that can be checked before training.

    Args:
        options: The options that decide the result of the run.
        device: Where latency is measured, if there is a latency budget.
        begun_in: The folder with the `BegunData` of the run; None: it begins now.
        reading: The reading of the network, if there is one already.
        given: Network, data and task, where they are not named.

    Raises:
        TranspruneError: Model, data, weights, budget or options cannot be used, or the classes differ from those that
            the run began with.
    """
    if options.compress is not None:
        _check_trained(options)
    budgets = tuple(Budget.parse(text) for text in dict.fromkeys(itertools.chain(*points(options.budget))))
    announce(f"data: reading {named(options.data)}")
    if given is None and options.task == DETECTION:
        given = detector_of(options)
    task = task_of(options) if given is None else given.task
    data = data_of(options, begun_in) if given is None else given.data
    if isinstance(data, ImageData):
        _check_images(options, data)
    announce(f"model: reading {named(options.model)}")
    model = model_of(options, data) if given is None else given.model
    weights = weights_of(options, model, data)
    if begun_in is None and given is None and isinstance(data, ImageData):
        data = _as_configured(options, data, model)
    example = example_of(data)
    space = given.space if given is not None else None
    if space is None:
        space = inspect(
            model,
            example,
            dimensions=options.dimensions,
            keep=options.keep,
            only=options.only,
            tie=ties_of(options.tie),
            divisor=options.divisor,
            removable=_removable(options, begun_in),
            reading=reading,
        )
    if isinstance(data, ImageData) and options.task is None:
        _check_logits(model, example[0], len(data.classes))
    elif not isinstance(data, ImageData) or data.is_labelled:
        _check_task(model, data, task, device)
    measured = None
    is_measuring = processes.is_first()  # the others get its measurement, and rely on its check
    if is_measuring and any(budget.kind == "latency" for budget in budgets):
        measured = trusted_latency(model, space, example, options.latency, device=device)
    size = None
    if is_measuring and any(budget.kind == "file" for budget in budgets):
        size = known_file_size(begun_in) or file_size(model, space, example, int8=options.int8)
    found = Material(
        options=options,
        data=data,
        task=task,
        model=model,
        weights=weights,
        space=space,
        budgets=budgets,
        latency=measured,
        file=size,
    )
    if is_measuring:
        for point in points(options.budget):
            check_attainable(space, limits_of(point, space, found.costs))
    return found


def _as_configured(options: RunOptions, data: ImageData, model: nn.Module) -> ImageData:
    """The data normalised as a network with given weights says of itself, as those of timm do, unless it is asked."""
    if options.weights is None or options.mean is not None or options.std is not None:
        return data
    said = {name: getattr(model, name, None) for name in ("pretrained_cfg", "default_cfg")}
    if options.weights == PRETRAINED:
        said["published preprocessing"] = published_preprocessing(options.model)
    for name, found in said.items():
        mean, std = (_plain(found, key) for key in ("mean", "std"))
        if len(mean) == len(std) == data.image_size[0] and min(std) > 0:
            _log.warning(
                "images are normalised by mean %s and std %s, as the %s of %s says (--mean data takes those of the "
                "training images)",
                *(mean, std, name, options.model),
            )
            return replace(data, mean=mean, std=std)
    return data


def _plain(configuration: object, key: str) -> tuple[float, ...]:
    """Numbers in a configuration, a map or a record; none if it has no such."""
    found = configuration.get(key) if isinstance(configuration, Mapping) else getattr(configuration, key, None)
    is_numbers = isinstance(found, tuple | list) and all(isinstance(each, int | float) for each in found)
    return tuple(map(float, found)) if is_numbers and found else ()


LOOKED_AT, COMPARED, MEASURED = 5000, 512, 128
"""So many test images a given teacher is judged on, and so many of another normalisation or of the training images; by
tasks of other metrics on so many samples."""
SURE = 95.0
"""Who answers so many of a hundred images right is not looked at more closely."""
FAR = 20.0
"""Percentage points that are no matter of chance or of learning by heart."""


@dataclass(frozen=True, kw_only=True)
class GivenTeacher:
    """What a teacher whose weights are given can do, before anything is trained."""

    metric: str
    """Name of the main metric, or loss; top1: percent of the test images that it answers right."""
    figure: float
    samples: int
    """How many were looked at: images spread evenly, or the first samples of other data."""
    kind: str = "samples"
    """What a sentence calls them."""
    doubts: tuple[str, ...] = ()
    """What looks wrong, each with its remedy."""

    def __str__(self) -> str:
        looked_at = f"{self.samples:,} test {self.kind}"
        if self.metric == "top1":
            return f"the given teacher answers {self.figure:.2f} % of {looked_at} right"
        return f"the given teacher has {self.metric} {self.figure:.4g} on {looked_at}"


def told_apart(source: Material | Run) -> ImageData | None:
    """The images that are told apart, the task of all that is said about single answers; None: another task."""
    return source.data if isinstance(source.data, ImageData) and source.options.task is None else None


def judge_teacher(material: Material, device: torch.device) -> GivenTeacher | None:
    """What a given teacher can do, and whether that looks like another normalisation or order of the classes.

    Returns:
        None where no whole weights are given, or the data have no labels. Of another task than telling images apart
        it is known how good the teacher is, and not whether that is strange.
    """
    weights, data = material.weights, told_apart(material)
    if weights is None or not weights.is_whole or (data is not None and not data.is_labelled):
        return None
    teacher = weights.put_into(material.model).to(device)
    if data is None:
        return _measured(teacher, material, device)
    shown = _spread(data.test, LOOKED_AT)
    found = _answered(teacher, replace(data, test=shown), device)
    top1, doubts = _top1(found, shown.labels), []
    if top1 < SURE:
        doubts = _other_order(found, shown.labels, data.classes) or _other_normalisation(teacher, data, device)
        chance = 100 * float(shown.labels.bincount().max()) / len(shown)
        if not doubts and top1 <= chance + 3 * (chance * (100 - chance) / len(shown)) ** 0.5:
            doubts.append(
                "guessing gives as much: look whether the weights are of this network, at the normalisation (--mean, "
                "--std) and at the order of the classes"
            )
        known = _spread(data.train, COMPARED)
        learned = _top1(_answered(teacher, replace(data, test=known), device), known.labels)
        if not doubts and learned - top1 >= FAR:
            doubts.append(
                f"of {len(known)} training images it answers {learned:.1f} %: look whether the test images have the "
                "classes and the form of the training images"
            )
    return GivenTeacher(metric="top1", figure=top1, samples=len(shown), kind="images", doubts=tuple(doubts))


def _measured(teacher: nn.Module, material: Material, device: torch.device) -> GivenTeacher:
    """What a teacher of any task has on the first test samples."""
    samples = 0

    def first(batches: Iterable[Batch]) -> Iterator[Batch]:
        nonlocal samples
        for batch in batches:
            yield batch
            samples += batch.samples
            if samples >= MEASURED:
                return

    task = material.task
    tested = feed(material.data, "test", task, batch_size=MEASURED, seed=0, device=device)
    stream = closing(iter(tested))  # type: ignore[type-var]
    with processes.alone(), seeded(0, "given teacher"), evaluation_mode(teacher), torch.no_grad(), stream as batches:
        found = evaluate_batches(teacher, first(batches), task).headline()
    metric = task.main or "loss"
    return GivenTeacher(metric=metric, figure=found[metric], samples=samples)


def _spread(split: Split, most: int) -> Split:
    return split.subset(sample_places(len(split), most))


def _answered(network: nn.Module, data: ImageData, device: torch.device) -> Tensor:
    return answers({"teacher": network}, data, device=device)["teacher"].classes


def _top1(found: Tensor, labels: Tensor) -> float:
    return 100 * float((found == labels).double().mean())


def _other_normalisation(teacher: nn.Module, data: ImageData, device: torch.device) -> list[str]:
    """Whether the teacher does far better under a normalisation that others use."""
    few = replace(data, test=_spread(data.test, COMPARED))
    now, best = _top1(_answered(teacher, few, device), few.test.labels), ("", 0.0)
    for name, figures in NAMED_STATISTICS.items():
        if len(figures[0]) in (1, data.image_size[0]):
            other = normalised(few, *figures)
            best = max(
                best, (name, _top1(_answered(teacher, other, device), few.test.labels)), key=lambda each: each[1]
            )
    if best[1] - now < 3 * 50 / len(few.test) ** 0.5:  # three standard deviations of a share, at most
        return []
    return [
        f"of {len(few.test)} of them it answers {now:.1f} % as they are normalised, and {best[1]:.1f} % normalised as "
        f"{best[0]} (--mean {best[0]} --std {best[0]})"
    ]


def _other_order(found: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Whether the teacher's answers are right but for the names of the classes."""
    from scipy.optimize import linear_sum_assignment

    size = max(len(classes), int(found.max()) + 1)
    counts = torch.zeros(size, size).index_put_((labels, found), torch.ones(len(found)), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    renamed = 100 * float(counts[rows, columns].sum()) / len(found)
    if renamed < 50 or renamed - _top1(found, labels) < FAR:
        return []
    return [
        f"with the classes in another order it would be {renamed:.1f} %: here they are {_listed(list(classes))}; bring "
        "them into the order in which the network learned them, by the names of their folders or in the last layer"
    ]


def _check_trained(options: RunOptions) -> None:
    """Checks that the network to compress is trained.

    Raises:
        OptionError: No weights are given, or only some.
    """
    if options.weights is None or options.weights_partial:
        found = "only a part of its weights is given" if options.weights else "no weights of it are given"
        raise OptionError(
            f"cannot compress {options.model!r}: {found}; expected a network that is trained, since nothing is trained "
            "here (--weights FILE); `transprune run` trains it first"
        )


def _check_images(options: RunOptions, data: ImageData) -> None:
    """Checks that there is more than one class, and that a search can divide the training images.

    A compression needs enough of them; only one that goes by the loss needs classes.

    Raises:
        DataError: There is a single class, or there are too few images, or they have no labels.
        OptionError: Images have several classes each, and one is to be told.
    """
    if options.compress is not None:
        from transprune.scores.compress import check_enough

        check_enough(len(data.train))
        if not options.compress.by_loss:
            return
        data.require_labels("go by the loss")
    if len(data.classes) < 2:
        raise DataError(
            f"cannot learn from {options.data!r}: its only class is {data.classes[0]!r}; expected at least 2 classes, "
            "each with images of its own"
        )
    if data.train.labels.dim() > 1 and options.task is None:
        raise OptionError(
            f"cannot tell the images of {options.data!r} apart: they may have several classes each; expected the task "
            "of such images, --task multi_label, or a table with a column 'label', where each image has one"
        )
    if options.compress is None:
        halves_of(data.train.labels, fraction=options.search.weights_share, seed=options.seed)


def task_of(options: RunOptions) -> Task:
    """The task that the options name.

    Raises:
        OptionError: The function is missing or fails, or makes something else.
    """
    if options.task is None:
        return classification()
    if options.task in READY:
        return READY[options.task]()
    _check_named(options.task, "task")
    if ":" not in options.task:
        known = (*READY, DETECTION)
        raise OptionError(
            f"cannot make the task {options.task!r}: {expected_one_of(options.task, known)}, or FILE.py:FUNCTION"
        )
    function = UserFunction(name=options.task, purpose="make the task", error=OptionError)
    with function.imported() as make, function.reported("calling it"):
        task = make()
    if not isinstance(task, Task):
        raise function.failed(f"it returned {type(task).__name__}; expected a transprune.Task")
    return task


def _check_named(name: str, what: str) -> None:
    """Checks that something has a name by which it is found again.

    Raises:
        OptionError: It was given in Python.
    """
    if name.startswith(IN_PYTHON):
        raise OptionError(
            f"cannot find the {what} of this run again: it was made in Python, of objects that have no name; make the "
            "same call of transprune.run there, which goes on with it, or use transprune.load, report and measure"
        )


def _own_data(options: RunOptions) -> Any:
    """What a function of the user gives.

    Raises:
        DataError: The function is missing or fails.
    """
    function = UserFunction(name=options.data, purpose="load the data", error=DataError)
    with function.imported() as make, function.reported("calling it"):
        return make()


IMAGE = (3, 32, 32)
"""Channels, rows and columns of an image where nothing says them."""
DETECTION = "detection"
"""The task of detectors, whose whole is trained, and of which a part is searched."""
LARGEST_BATCH = 16
"""Images with boxes in a batch, at most."""


def detector_of(options: RunOptions) -> Given:
    """The part of a detector that is searched, with its task and the images with boxes that the options name.

    Raises:
        DataError: The data cannot be read.
        ModelError: The detector cannot be built, or no part of it can be traced.
        OptionError: The data have no boxes.
    """
    classes, size = None, None  # of the user's data only the user knows them
    if is_scenes(options.data):
        most = min(options.distill.batch_size, LARGEST_BATCH)
        scenes = load_scenes(options.data, image_size=options.image_size, batch_size=most, augmentation=options.augment)
        batches: Any = (scenes.train, scenes.test)
        images, classes, size = scenes.images, scenes.classes, scenes.size
    elif is_user_data(options.data):
        batches = _own_data(options)
        images = _first_images(batches)
    else:
        raise OptionError(
            f"cannot detect objects on {options.data!r}: expected images with boxes, coco:DIR or yolo:DIR, or data of "
            "your own (FILE.py:FUNCTION)"
        )
    part = _part_of_named(options, images, classes, size)
    task = detection(part)
    return Given(model=part, data=as_data(batches, task), task=task)


def _part_of_named(
    options: RunOptions, images: list[Tensor], classes: int | None, size: tuple[int, int, int] | None
) -> Part:
    """The part of the named detector that can be traced; it is made to leave images of a size as they are."""
    with seeded(options.seed, "model"):
        whole = build_model(options.model, classes=classes, image_channels=None if size is None else size[0])
    if size is not None:
        resize_to(whole, size)
    return part_of(whole, (images,))


def _first_images(batches: Any) -> list[Tensor]:
    """An image of data of the user's, as a detector takes them."""
    train = batches.train if isinstance(batches, LoaderData) else batches[0] if is_pair(batches) else batches
    with seeded(0, "example"):
        first = next(iter(train))
    images = first[0] if isinstance(first, tuple | list) and first else first
    if not isinstance(images, list | tuple) or not images:
        raise DataError(
            f"cannot detect objects on batches such as {outline(first)}: expected a list of images and a list of what "
            "is on each, as torchvision's detectors take them"
        )
    return list(images[:1])


def _texts(options: RunOptions) -> LoaderData:
    """The texts that the options name, as tokens of the network.

    Raises:
        OptionError: The network has no tokenizer.
    """
    if not is_hugging_face(options.model):
        raise OptionError(
            f"cannot make tokens of {options.data!r} for {options.model!r}: it names no tokenizer; expected a network "
            "of transformers with one beside it (hf:FOLDER), or data of your own (FILE.py:FUNCTION)"
        )
    origin = Origin(options.model)
    vocabulary = getattr(origin.config().get_text_config(), "vocab_size", None)
    return load_texts(
        options.data,
        origin.tokenizer(vocabulary),
        task=options.task,
        length=options.length,
        batch_size=options.distill.batch_size,
        seed=options.seed,
    )


def is_user_data(name: str) -> bool:
    """Whether data are what a function of the user gives: FILE.py:FUNCTION or package.module:FUNCTION."""
    place, _, function = name.rpartition(":")
    is_module = "." in place and all(part.isidentifier() for part in place.split("."))
    return function.isidentifier() and (place.endswith(".py") or is_module)


def data_of(options: RunOptions, begun_in: RunFolder | None = None) -> Data:
    """The data that the options name; images are preprocessed as when the run began.

    Args:
        options: The options that decide the result of the run.
        begun_in: As in `collect`.

    Raises:
        RunFolderError: The classes differ from those that the run began with.
    """
    _check_named(options.data, "data")
    if is_scenes(options.data):
        raise OptionError(
            f"cannot use the images with boxes of {options.data!r} for the task "
            f"{options.task or 'of telling images apart'}: expected --task {DETECTION}"
        )
    if is_user_data(options.data):
        return as_data(_own_data(options), task_of(options))
    if is_texts(options.data):
        return _texts(options)
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
    """Numbered classes for images without labels, as many as the weights have."""

    def build(classes: int) -> nn.Module:
        with seeded(options.seed, "model"):
            return build_model(options.model, classes=classes, image_channels=data.image_size[0])

    count = None
    if options.weights is not None:
        tensors, source = _given_tensors(options, data.image_size[0])
        count = classes_in(tensors, build, source=source)
    if count is None:  # the number of outputs does not depend on the classes
        count = _outputs_of(build(2), torch.zeros(1, *data.image_size))
    return tuple(map(str, range(count)))


def _given_tensors(options: RunOptions, image_channels: int) -> tuple[dict[str, Tensor], Path]:
    """The tensors in the file that the options name, or those that are published; and where they are from."""
    assert options.weights is not None
    if options.weights == PRETRAINED:
        return pretrained(options.model, image_channels=image_channels), Path(f"{PRETRAINED} {options.model}")
    return read_tensors(options.weights)


def _outputs_of(model: nn.Module, example: Tensor) -> int:
    with torch.no_grad():
        logits = each_logits(switched(model, training=False)(example))
    return logits[0].shape[1] if logits and isinstance(logits[0], Tensor) and logits[0].dim() > 1 else 2


def model_of(options: RunOptions, data: Data) -> nn.Module:
    """The network that the options name, for the images and classes of the data, with new weights."""
    _check_named(options.model, "network")
    with seeded(options.seed, "model"):
        if not isinstance(data, ImageData):
            return build_model(options.model, classes=None, image_channels=None)
        return build_model(options.model, classes=len(data.classes), image_channels=data.image_size[0])


def network_and_example(
    name: str,
    data: str,
    *,
    task: str | None,
    length: int,
    image_size: tuple[int, int, int] | None,
    classes: int,
) -> tuple[nn.Module, Example]:
    """A network by name, with new weights, and an example of its inputs: of named data, or without these of a size.

    Args:
        name: The network.
        data: The data; empty: there are none.
        task: What they are for.
        length: Tokens of a text; 0: images are given.
        image_size: Channels, rows and columns of an image; None: those of the data, or `IMAGE`.
        classes: Outputs of a classifier where there are no data; of a detector with one for the background; of a
            trained YOLO those that it has.

    Raises:
        ModelError: The network cannot be built.
        DataError: The data cannot be read.
        OptionError: The task cannot be made.
    """
    options = replace(preset_options(DEFAULT_PRESET), model=name, data=data, task=task, image_size=image_size)
    options = replace(options, length=length or options.length)
    if data and task == DETECTION:
        given = detector_of(options)
        return given.model, example_of(given.data)
    if data:
        found = data_of(options)
        return model_of(options, found), example_of(found)
    if length:
        tokens = torch.zeros(1, length, dtype=torch.long)
        return build_model(name, classes=None, image_channels=None), {"input_ids": tokens}
    size = image_size or IMAGE
    if task == DETECTION:
        images = [torch.zeros(size)]
        part = _part_of_named(options, images, None if is_trained_yolo(name) else classes, size)
        return part, inputs_of_part(part, images)
    return build_model(name, classes=classes, image_channels=size[0]), torch.zeros(1, *size)


def weights_of(options: RunOptions, model: nn.Module, data: Data) -> Weights | None:
    """The weights in the file that the options name, as far as they fit; of published ones all but the classifier.

    Files hold a whole detector, of which the network is a part.
    """
    if options.weights is not None and options.weights.startswith(IN_PYTHON):
        return Weights(tensors=dict(model.state_dict()))
    if options.weights is not None:
        tensors, source = _given_tensors(options, data.image_size[0] if isinstance(data, ImageData) else 3)
        is_partial = options.weights_partial or (options.weights == PRETRAINED and options.compress is None)
        if isinstance(model, Part):
            found = fit_weights(tensors, model.whole, source=source, partial=is_partial)
            return replace(found, tensors={f"whole.{name}": tensor for name, tensor in found.tensors.items()})
        return fit_weights(tensors, model, source=source, partial=is_partial)
    if options.weights_partial:
        raise OptionError("cannot use --weights-partial alone: expected a file to take what fits from (--weights FILE)")
    return None


def _check_logits(model: nn.Module, example: Tensor, classes: int) -> None:
    """Checks that a model in training mode returns logits [batch, classes], alone or first among auxiliary logits.

    Raises:
        ModelError: It does not.
    """
    network = switched(copied(model), training=True)
    with torch.no_grad():
        outputs = network(torch.cat([example, example]))
    found = each_logits(outputs)
    if not found or any(not isinstance(one, Tensor) or list(one.shape) != [2, classes] for one in found):
        raise ModelError(
            f"cannot train the model {type(model).__name__}: of 2 images its forward gives {outline(outputs)}, "
            f"expected the logits [2, {classes}] of the data's {classes} classes; let its function take the number of "
            f"classes (`classes` or `num_classes`)"
        )


def _check_task(model: nn.Module, data: Data, task: Task, device: torch.device) -> None:
    """Measures one test batch, so that a task that does not suit network or data is refused before any training.

    Raises:
        DataError, OptionError: It does not.
    """
    network = copied(model).to(device)
    tested = feed(data, "test", task, batch_size=2, seed=0, device=device)
    stream = closing(iter(tested))  # type: ignore[type-var]
    with processes.alone(), seeded(0, "task"), evaluation_mode(network), stream as batches:
        evaluate_batches(network, itertools.islice(batches, 1), task)


DATA_FILE = "data.json"
"""The file with the `BegunData` of a run; folders of earlier versions have none, and use the data as they are."""
FILE_SIZE = "file_size.json"
"""The file with the `FileSize` of a run with a budget of bytes."""

SHOWN = 5
"""Number of classes that a message names."""


@dataclass(frozen=True, kw_only=True)
class BegunData:
    """The data of a run when it began: how images are preprocessed, and how many there were.

    Figures that are computed from the images must not change when a run resumes with more or fewer of them.
    """

    classes: tuple[str, ...]
    """As `ImageData.classes`."""
    image_size: tuple[int, int, int]
    """As `ImageData.image_size`."""
    mean: tuple[float, ...]
    """As `ImageData.mean`."""
    std: tuple[float, ...]
    """As `ImageData.std`."""
    training_images: int
    test_images: int

    @classmethod
    def of(cls, data: ImageData) -> BegunData:
        """The record of a data set as it is now."""
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
        """The number of images, in words."""
        return f"{self.training_images:,} training and {self.test_images:,} test images"


def read_begun(folder: RunFolder) -> BegunData | None:
    """The data of the run in a folder when it began; None if the folder has no record of it.

    Raises:
        RunFolderError: The file is damaged.
    """
    return _recorded(BegunData, folder, DATA_FILE)


Record = TypeVar("Record")


def _recorded(kind: type[Record], folder: RunFolder, name: str) -> Record | None:
    """What a file of a run holds; None if there is no such file."""
    if not folder.has(name):
        return None
    try:
        return read_record(kind, folder.read_json(name))
    except ValueError as error:
        raise RunFolderError(
            f"cannot read '{folder.file(name)}': {error}; expected the file as `transprune run` wrote it"
        ) from error


def check_asked(out: str | Path, *, overwrite: bool, resume: bool) -> None:
    """Checks that `overwrite` and `resume` do not conflict, and that there is a run to resume.

    Raises:
        OptionError: Both are set.
        RunFolderError: There is no run to resume.
    """
    if resume and overwrite:
        raise OptionError("cannot use --resume with --overwrite: one goes on with a run, the other removes it")
    if resume:
        RunFolder.open(out)


def begun_in(
    out: str | Path, options: RunOptions, *, overwrite: bool, part_of: RunFolder | None = None
) -> RunFolder | None:
    """The folder with the `BegunData` of a run; None if the run begins now.

    Args:
        out: The folder of the run.
        options: The options that decide its result.
        overwrite: Whether the run starts again.
        part_of: The folder of the frontier that the run is a point of.

    Raises:
        RunFolderError: The folder has a run with another configuration.
    """
    folder = RunFolder(out)
    if not overwrite and folder.has(DATA_FILE):
        folder.check(asdict(options))
        return folder
    return part_of


def as_begun(data: ImageData, begun: BegunData, folder: RunFolder) -> ImageData:
    """The data, normalised as when the run in a folder began.

    Raises:
        RunFolderError: The classes differ.
    """
    if data.classes != begun.classes:
        raise RunFolderError(
            f"cannot go on with the run in '{folder.path}': its data have other classes than it began with: "
            f"{_difference(begun.classes, data.classes)}; bring the images back as they were, or start anew with "
            "--overwrite"
        )
    return replace(data, mean=begun.mean, std=begun.std)


def check_training_images(data: Data, folder: RunFolder) -> None:
    """Checks that a run resumes training with as many images as it began with; otherwise its result would differ.

    Raises:
        RunFolderError: There are more or fewer.
    """
    begun = read_begun(folder)
    if begun is not None and isinstance(data, ImageData) and len(data.train) != begun.training_images:
        raise RunFolderError(
            f"cannot go on with the training in '{folder.path}': the run began with {begun.training_images:,} training "
            f"images, and there are {len(data.train):,} now; bring the images back as they were, or start anew with "
            "--overwrite"
        )


def _difference(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Says how the classes changed."""
    missing, added = [name for name in before if name not in now], [name for name in now if name not in before]
    if missing or added:
        parts = [
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {how}"
            for names, how in ((missing, "missing"), (added, "new"))
            if names
        ]
        return " and ".join(parts)
    place, first = next((place, name) for place, name in enumerate(now) if name != before[place])
    return f"they stand in another order, the one of label {place} is {first!r} and was {before[place]!r}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{shown}{more}"
