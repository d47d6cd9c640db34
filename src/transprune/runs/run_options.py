"""What decides a run; what happens when something happens to it; who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

from transprune.errors import OptionError, RunFolderError, newer_format
from transprune.options import (
    AugmentationName,
    CheckpointOptions,
    CompressOptions,
    Dimensions,
    DistillationOptions,
    LatencyOptions,
    Normalisation,
    Policy,
    SearchOptions,
    StudentStart,
    TrainingOptions,
    get_preset,
)
from transprune.records import FORMAT, read_record, read_toml
from transprune.runtime import UserFunction

if TYPE_CHECKING:
    from transprune.runtime import Tracker


DEFAULT_DATA = "digits"
"""What is classified where nothing is named."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Everything that decides a run; what `config.toml` holds."""

    model: str
    """The network to make smaller: resnet20, 32, 44, 56, 110 or 164 for small images; resnet18, 34 or 50 for large;
    torchvision:NAME or timm:NAME; hf:FOLDER or hf:OWNER/NAME, a trained network of transformers; ultralytics:FILE.pt, a
    trained YOLO; FILE.py:FUNCTION or package.module:FUNCTION, whose code is run."""
    data: str
    """What it classifies: digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR or parquet:DIR; text:FILE_OR_FOLDER or
    hf-dataset:FOLDER_OR_NAME for hf: networks of texts; coco:DIR or yolo:DIR for detectors; or your own
    FILE.py:FUNCTION."""
    budget: tuple[str, ...]
    """What the smaller network may cost: macs=0.5 (a share), macs=20.4M, params=100K, latency=4ms, file=64KB, the
    size of student.onnx, cache=1MB (absolute). Given several times, all hold. One may name several amounts,
    macs=0.3,0.5,0.7: a search for each from one supernet, and the curve."""
    preset: str
    """Recipe whose figures the options below start from: quick, demo, short, medium, paper-cifar or paper-imagenet."""
    task: str | None = None
    """What the networks are trained for, if not to tell images apart: multi_label (images with several classes each, or
    none), regression, causal-lm, text-classification, token-classification or detection, or FILE.py:FUNCTION or
    package.module:FUNCTION, a function of yours that makes a `transprune.Task`."""
    seed: int = 0
    """The same seed on the same machine gives the same result."""
    weights: str | None = None
    """Trained weights of the network, a file of safetensors or torch (FILE:KEY for one of several in it), or the word
    pretrained for those that torchvision or timm publish. Without them it is trained first."""
    weights_partial: bool = False
    """Take what fits of the weights, and train the network first where something is missing."""
    image_size: tuple[int, int, int] | None = None
    """Channels, rows and columns to bring the images to."""
    length: int = 128
    """Tokens of a sequence, for texts; MACs and latency are those of one sequence."""
    mean: Normalisation | None = None
    """Mean of each channel that images are normalised by, pixels from 0 to 1: numbers, imagenet, cifar10, cifar100,
    none, or data for that of the training images. A trained network expects the one that it was trained with; without
    this, given weights have the one in the network's own configuration, as timm's do, all else that of the data."""
    std: Normalisation | None = None
    """Standard deviation of each channel, likewise. A word that is given for one of the two holds for both."""
    augment: AugmentationName = "standard"
    """Random changes of the training images: what is customary for the data set, none, shift (no mirroring: for digits,
    letters, signs), or imagenet (the paper's: crops, flips, colours, lighting)."""
    download: bool = False
    """Download cifar10 or cifar100 into DIR when it is not there."""
    dimensions: Dimensions = "both"
    """What to search: width, depth or both."""
    keep: tuple[str, ...] = ()
    """Patterns of layers and stages that keep their size, such as 'stem.*' (quoted)."""
    only: tuple[str, ...] = ()
    """Patterns of the layers and stages that are searched; all without it."""
    tie: tuple[str, ...] = ()
    """Patterns; all layers that match one of them keep the same share of their width. config: as the numbers of the
    network's own configuration say."""
    divisor: int = 1
    """Widths to choose from are multiples of this, such as 8."""
    student: StudentStart = "scratch"
    """Weights that the student starts from: new ones, the teacher's, the supernet's, or repaired: what a search that
    starts from scores has kept, the teacher's repaired where they were cut or the supernet's, whichever did better,
    after its trial (after another search, the supernet's)."""
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    int8: bool = False
    """Write student.int8.onnx too, weights and activations in 8 bits, and measure it beside 32 bits; a budget of
    file= is then its size."""
    compress: CompressOptions | None = None
    """How the network is made smaller without training; None: by a search."""

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


MakeTracker: TypeAlias = "Callable[[Path], Tracker]"
"""Makes a tracker of the run in a folder."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who is told; it decides nothing about the result."""

    tensorboard: bool = False
    """Write curves, heat maps of the probabilities and the configuration to RUN/tensorboard, for TensorBoard."""
    tracker: tuple[str, ...] = ()
    """Functions of yours that are called with each record of the journal, FILE.py:FUNCTION or package.module:FUNCTION,
    whose code is run."""

    def loaded(self) -> list[MakeTracker]:
        """What makes the trackers.

        Raises:
            OptionError: TensorBoard is not installed, or a function cannot be imported.
        """
        makers: list[MakeTracker] = []
        if self.tensorboard:
            from transprune.reports.tensorboard import TensorBoardTracker, require_tensorboard

            require_tensorboard()
            makers.append(TensorBoardTracker)
        return makers + [_always(_imported(name)) for name in self.tracker]


def _imported(name: str) -> Tracker:
    with UserFunction(name=name, purpose="use the tracker", error=OptionError).imported() as tracker:
        return tracker


def _always(tracker: Tracker) -> MakeTracker:
    return lambda _: tracker


def read_config(path: str | Path) -> dict[str, Any]:
    """What a file says, under the names of `RunOptions`; not checked yet.

    A file with `format`, as a run wrote it, speaks of everything: what may be None and is missing there, is None.

    Raises:
        OptionError: The file cannot be read, is no TOML or of a newer format.
    """
    try:
        config = read_toml(Path(path).read_bytes())
    except OSError as error:
        raise OptionError(
            f"cannot read the options '{path}': {error.strerror or error}; expected a TOML file (--config FILE.toml)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"cannot read the options '{path}': it is no valid TOML ({error})") from error
    found = config.pop("format", None)
    if found not in (None, FORMAT):
        raise OptionError(f"cannot read the options '{path}': {newer_format(found, FORMAT)}")
    return config if found is None else dict(with_nones(RunOptions, config))


def preset_options(name: str, config: Mapping[str, Any] | None = None, *, path: str | Path = "") -> RunOptions:
    """The options of a preset, and over them what a file says.

    Args:
        name: The preset.
        config: What `read_config` found; the text `None` stands for None.
        path: Where, for messages.

    Returns:
        All options; model and budget are empty where nothing names them.

    Raises:
        OptionError: There is no such preset, a key is unknown, or a value is of another type or out of range.
    """
    preset = get_preset(name)
    options = RunOptions(
        model="",
        data=DEFAULT_DATA,
        budget=(),
        preset=name,
        augment=preset.augment,
        student=preset.student,
        teacher=preset.teacher,
        search=preset.search,
        distill=preset.distill,
    )
    if not config:
        return options
    try:
        return read_record(RunOptions, _over(RunOptions, asdict(options), config))
    except ValueError as error:
        named = f" '{path}'" if path else ""
        raise OptionError(
            f"cannot use the options{named}: {error}; their names are those that `transprune run --help-all` shows, "
            "with search.epochs as epochs in the table [search]"
        ) from error


def _over(kind: Any, base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over those of a base, table by table."""
    hints = get_type_hints(kind)
    found = dict(base)
    for name, value in values.items():
        hint = hints.get(name)
        if is_dataclass(hint) and isinstance(value, Mapping):
            found[name] = _over(hint, base[name], value)
        else:
            found[name] = None if value == "None" and type(None) in get_args(hint) else value
    return found
