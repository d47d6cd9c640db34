"""The options of every phase: frozen records that the Python API, the command line and `config.toml` share.

They stand apart from the code that they control, so that parsing options and printing help imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar, get_args

from transprune.errors import OptionError, expected_one_of
from transprune.on_demand import check_fields

Precision = Literal["float32", "bfloat16", "float16"]
"""Number type in convolutions and matrix products; weights and statistics are always float32."""
Policy = Literal["stop", "skip"]
"""What to do about a step whose loss or gradient is not finite: end the phase, or skip the step."""
Dimensions = Literal["both", "width", "depth"]
Removable = Literal["blocks", "branches"]
"""What may be left out of a stage: whole blocks, or each branch of those that are several residual sums."""
"""What is searched."""
Alignment = Literal["interpolate", "pad"]
"""How feature maps of different widths are aligned."""
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
Schedule = Literal["linear", "cosine"]
"""How a figure moves from its start to its end."""
StudentStart = Literal["scratch", "teacher", "supernet", "repaired"]
"""Weights that a student starts from."""
AugmentationName = Literal["standard", "none", "shift", "imagenet"]
"""Augmentations that can be asked for by name."""
Normalisation = tuple[float, ...] | Literal["imagenet", "cifar10", "cifar100", "none", "data"]
"""Figures of each channel by which images are normalised, pixels from 0 to 1: themselves, or whose they are."""
RuntimeName = Literal["onnxruntime", "openvino", "litert", "executorch"]
BackendName = Literal["onnxruntime", "openvino", "litert", "executorch", "torch"]
"""What runs a network whose latency is measured."""

OPTIMIZERS = ("sgd", "adamw")
"""Optimizers that are known by name."""

NEARLY_FULL = 0.99
"""Share of the budget that a derived architecture uses wherever the space permits."""
SOLVER_SECONDS = 60.0
"""Time that the solver of a derivation may take."""
LEAST_SAMPLES = 16
"""Samples that a network is scored on at least."""
LEAST_REPEATS = 5
"""Least number of runs of a measured network, however slow it is."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a step is computed: this changes its cost, and hardly its result."""

    precision: Precision = "float32"
    """Number type in convolutions and matrix products; `float16` scales the loss. Weights and statistics stay
    float32."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after the other, to save memory. The step is the same, except for batch
    norms, whose statistics are those of a part, and for losses that are not a mean over samples, such as a mean over
    valid pixels."""
    sync_norms: bool = False
    """Whether batch norms use the statistics of all processes together rather than each process its own."""
    usual_rates: ClassVar[dict[str, float]] = {"sgd": 0.1, "adamw": 1e-3}
    """Peak learning rate of each optimizer where none is given; functions have that of SGD."""
    optimizer: str | None = "sgd"
    """What learns the weights: sgd (with Nesterov momentum), adamw (its first beta is the momentum), or a function such
    as torch.optim:RMSprop or FILE.py:FUNCTION, whose code is run, of the parameters, lr and weight_decay. None: by the
    kind of network, adamw for transformers and sgd for all others."""
    gradient_clip: float | None = None
    """Norm to which the gradient of the weights is shortened where it is longer; None: never."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS and ":" not in self.optimizer:
            raise OptionError(
                f"cannot train with optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, or a "
                "function, package.module:FUNCTION or FILE.py:FUNCTION"
            )
        if self.gradient_clip is not None and not 0 < self.gradient_clip < math.inf:
            raise OptionError(
                f"cannot train with gradient_clip={self.gradient_clip}: expected more than 0, or None for never"
            )
        at_least("accumulate", self.accumulate, 1)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(StepOptions):
    """How the weights of a network are trained. What is left out here is the paper's for CIFAR.

    Where no options are given at all, the functions take the preset `medium`, as the command line does.
    """

    epochs: int = 300
    """Passes over the training data."""
    batch_size: int = 256
    """Images per step; `LoaderData` brings its own."""
    learning_rate: float | None = 0.1
    """Peak learning rate; it follows half a cosine to zero. None: the usual one of the optimizer."""
    warm_up_epochs: float = 5
    """Epochs in which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    evaluate_every: int = 1
    """Epochs between evaluations on the test data; the last epoch is always evaluated."""
    compile: bool = False
    """Whether `torch.compile` speeds up the network's forward and backward; compiling takes minutes first."""
    average: float = 0.0
    """Share of the past in a moving average of the weights after each step, such as 0.999 for many thousand steps,
    which is what is measured and kept; 0: the last weights."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    mixup: float = 0.0
    """α of mixup, which blends two images and their labels: shares from Beta(α, α), such as 0.2; 0: none."""
    cutmix: float = 0.0
    """α of CutMix, which pastes a part of one image into another, such as 1.0; with `mixup`, one of both by turns drawn
    at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 2)
        at_least("mixup", self.mixup, 0)
        at_least("cutmix", self.cutmix, 0)
        for name in ("average", "label_smoothing", "momentum"):
            below_one(name, getattr(self, name))
        at_least("weight_decay", self.weight_decay, 0)
        at_least("evaluate_every", self.evaluate_every, 1)
        if self.learning_rate is not None:
            at_least("learning_rate", self.learning_rate, 0)
        check_warm_up("train", self.epochs, self.warm_up_epochs)


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TrainingOptions):
    """How a student is trained with a teacher. What is left out is the paper's."""

    usual_rates: ClassVar[dict[str, float]] = {"sgd": 0.01, "adamw": 5e-4}
    """As in training, for a student that starts from its teacher's weights, which it must not forget."""
    weight: float = 0.9
    """λ: share of the teacher in the loss; 0 trains on the targets alone. A task's own distillation loss ignores it."""
    distillation_temperature: float = 4.0
    """T: how much logits are softened; outputs other than logits ignore it."""
    hints: float | None = 0.0
    """Weight of what is left of the teacher's last feature maps, as a share of their variance; 0: no hints.

    None: by the kind of network, `HINTS` where it has batch norms, else 0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hints is not None and not 0 <= self.hints < math.inf:
            raise OptionError(f"cannot distill with hints={self.hints}: expected a weight of at least 0")
        if not 0 <= self.weight <= 1 or not 0 < self.distillation_temperature < math.inf:
            raise OptionError(
                f"cannot distill with weight={self.weight} and distillation_temperature="
                f"{self.distillation_temperature}; expected a weight in [0, 1] and a temperature above 0"
            )


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How a network is made smaller without training."""

    samples: int = 512
    """Samples that are looked at; labels are not needed but for `by_loss`."""
    repair: bool = True
    """Fit what is left to what the whole network gives; else it has the weights that it had."""
    by_loss: bool = False
    """The task's loss on half of the samples decides between the architectures that were found; needs labels."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least("samples", self.samples, LEAST_SAMPLES)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(StepOptions):
    """How an architecture is searched. What is left out here is the paper's for CIFAR.

    Where no options are given at all, `search` takes the preset `medium`, as the command line does.
    """

    usual_rates: ClassVar[dict[str, float]] = {"sgd": 0.02, "adamw": 5e-4}
    """As in training, for a supernet that starts from a trained network's weights."""
    epochs: int = 600
    """Passes over the part of the training data that the weights learn on."""
    batch_size: int = 256
    """Images per step, for weights and for the architecture; `LoaderData` brings its own."""
    learning_rate: float | None = 0.1
    """Peak learning rate of the weights; it follows half a cosine to zero. None: the usual one of the optimizer."""
    warm_up_epochs: float = 0
    """Epochs in which the weights' learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Nesterov momentum of the weights."""
    weight_decay: float = 5e-4
    """L2 penalty on the weights."""
    architecture_learning_rate: float | None = 1e-3
    """Constant learning rate of Adam on the architecture parameters. None: by the number of steps, so that a short
    search decides as a long one does; the sampling temperature then moves step by step, and the parameters' weight
    decay is the less, the fewer steps there are than the paper has."""
    architecture_betas: tuple[float, float] = (0.5, 0.999)
    """Decay rates of Adam's moments."""
    architecture_weight_decay: float = 1e-3
    """L2 penalty on the architecture parameters."""
    sharpening: float = 1.0
    """Power to which the probabilities are raised in the course of a search, a little in each step, so that one of few
    epochs decides for what it has learned; 1 in the paper."""
    architecture_after: float = 0.0
    """Share of the epochs before the architecture starts to learn; 0 in the paper, 1 for never."""
    temperature_start: float = 10.0
    """Sampling temperature τ in the first epoch."""
    temperature_end: float = 0.1
    """Sampling temperature τ in the last epoch."""
    temperature_schedule: Schedule = "linear"
    """How τ moves between them."""
    penalty_weight: float = 2.0
    """Weight of the budget penalty in the architecture's loss."""
    tolerance: float = 0.05
    """Share of the budget by which the cost may miss it without a penalty."""
    alignment: Alignment = "interpolate"
    """How feature maps of different widths are aligned: `interpolate` (the paper) or `pad`."""
    width_samples: int | None = 2
    """Candidates drawn for each group in a step; None for all."""
    depth_samples: int | None = 2
    """Candidates drawn for each stage in a step; None for all, as in the paper."""
    weights_share: float = 0.5
    """Share of the training samples that the weights learn on."""
    start: Literal["scratch", "model"] = "scratch"
    """Weights that the supernet starts from: new ones (the paper), or the model's."""
    importance: Literal["magnitude", "none"] = "magnitude"
    """How channels are sorted before a search that starts from the model's weights, so that smaller widths keep the
    best ones: by the magnitude of their weights, or not at all."""
    prior: Literal["none", "scores"] = "none"
    """What a search that starts from the model's weights knows beforehand: nothing (the paper), or the scores of the
    candidates, which put the channels in order and say how probable each candidate is at first."""
    distillation: float = 0.0
    """λ: share of the unpruned network in the loss of the weights and of the architecture; 0 in the paper."""
    trial_epochs: int = 0
    """Epochs, each over the weights' part of the data, in which what a search that starts from scores derived and what
    is free learn from the unpruned network before they are compared; 0: they are compared untrained."""
    fill: float = NEARLY_FULL
    """Share of the budget (of several, of one) that the derived architecture uses wherever the space permits."""
    derivation_seconds: float | None = SOLVER_SECONDS
    """Time limit for finding the most probable architecture; a missing proof is reported. None for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "width_samples", "depth_samples"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        at_least("batch_size", self.batch_size, 2)
        rates = ("learning_rate", "architecture_learning_rate", "weight_decay", "architecture_weight_decay")
        for name in (*rates, "penalty_weight", "tolerance", "fill"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 0)
        below_one("momentum", self.momentum)
        for beta in self.architecture_betas:
            below_one("architecture_betas", beta)
        for name in ("temperature_start", "temperature_end", "sharpening"):
            at_least(name, getattr(self, name), 1e-3)
        at_least("distillation", self.distillation, 0)
        if (
            not 0 < self.weights_share < 1
            or not 0 <= self.architecture_after <= 1
            or max(self.fill, self.distillation) > 1
        ):
            raise OptionError(
                f"cannot search with weights_share={self.weights_share}, architecture_after="
                f"{self.architecture_after}, fill={self.fill} and distillation={self.distillation}; expected "
                "shares, the first neither 0 nor 1"
            )
        check_warm_up("search", self.epochs, self.warm_up_epochs)
        if self.derivation_seconds is not None:
            at_least("derivation_seconds", self.derivation_seconds, 0)
        at_least("trial_epochs", self.trial_epochs, 0)

    @property
    def removable(self) -> Removable:
        """Branches, where it is scored which ones go; blocks, as in the paper, in a search that starts undecided."""
        return "blocks" if self.prior == "none" else "branches"


CLOCK_TOLERANCE = 0.02
"""How much more than its budget of time a network may take by the clock, as a share: two measurements of one network
differ by that much."""


def is_in_time(measured: float, allowed: float) -> bool:
    """Whether a measured time keeps to what is allowed, as well as a clock can tell; both in one unit."""
    return measured <= (1 + CLOCK_TOLERANCE) * allowed


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """Where latency is measured, how thoroughly, and how far its model may be off."""

    backend: BackendName = "onnxruntime"
    """What runs the network: on the CPU, as it will be deployed, `onnxruntime`, or with the extra of that name
    `openvino`, `litert` or `executorch`; or `torch`, on the device of the run."""
    threads: int = 1
    """Threads that compute on the CPU: as many as the network will have where it is deployed."""
    batch_size: int = 1
    """Samples in a batch; a latency is the time of one batch."""
    grid: int = 8
    """Widths at which an operator is measured along each axis; those between them are interpolated. The paper has 8
    candidates, so all are measured: kernels have steps at multiples of 4, 8 or 16, which a coarser grid misses."""
    repeats: int = 30
    """Times that each operator runs, in three turns. Whole networks run twice as often or, to be compared, for half a
    second, if that is more."""
    architectures: int = 20
    """Whole networks from the smallest to the full one that teach the model what lies between operators."""
    validations: int = 12
    """Random whole networks that the model is checked against."""
    bound: float = 0.15
    """Largest median error of the model, as a share of the measured latency, with which a search trusts it."""
    checks: int = 4
    """Architectures that are timed, at most, for one choice within a budget: what takes longer is derived anew within
    less. 0: the prediction is believed."""
    remeasure: bool = False
    """Measure again, even if a model of this network on this machine is kept."""

    def __post_init__(self) -> None:
        check_fields(self, but="backend")  # what backends there are, their module knows
        least = {"threads": 1, "batch_size": 1, "grid": 2, "repeats": 3, "architectures": 4, "validations": 1}
        for name, smallest in {**least, "checks": 0}.items():
            if not smallest <= getattr(self, name) < math.inf:
                raise OptionError(
                    f"cannot measure latency with {name}={getattr(self, name)}: expected at least {smallest}"
                )
        if not 0 < self.bound < 1:
            raise OptionError(f"cannot measure latency with bound={self.bound}: expected a share in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What `measure` measures."""

    batch_size: int = 64
    """Samples in the large batch; single samples are measured as well."""
    threads: int = 1
    """Threads that compute on the CPU."""
    repeats: int = 50
    """Times that each network runs, or more: all together run for half a second at least."""
    seconds: float = 20.0
    """Time after which a slow network need not run again, in each runtime and at each batch size."""
    memory: bool = True
    """Peak memory is measured too, in a process of its own each time, which takes seconds (`--no-memory`: left out)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.batch_size, self.threads) < 1 or self.repeats < LEAST_REPEATS or not 0 < self.seconds < math.inf:
            raise OptionError(
                f"cannot measure with batch_size={self.batch_size}, threads={self.threads}, repeats={self.repeats} and "
                f"seconds={self.seconds}; expected at least 1, 1 and {LEAST_REPEATS}, and seconds above 0"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When to write checkpoints, and when to stop."""

    checkpoint_minutes: float | None = 10.0
    """Minutes between two checkpoints; None for none by the clock. SIGTERM, SIGHUP and Ctrl-C always write one."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints; None for none by count."""
    max_minutes: float | None = None
    """Stop after this many minutes, with a checkpoint to resume from; None for no limit."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("checkpoint_minutes", "checkpoint_steps", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"cannot use {name}={value}: expected more than 0, or None for never")


def at_least(name: str, value: float, least: float) -> None:
    """Checks an option.

    Raises:
        OptionError: The value is below `least`, or not finite.
    """
    if not least <= value < math.inf:
        raise OptionError(f"cannot use {name}={value}: expected at least {least}")


def below_one(name: str, value: Any) -> None:
    """Checks an option that is a share of what stays, such as a momentum.

    Raises:
        OptionError: The value is not from 0 to below 1.
    """
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise OptionError(f"cannot use {name}={value!r}: expected at least 0, below 1")


def check_warm_up(verb: str, epochs: int, warm_up_epochs: float) -> None:
    """Checks that a warm-up ends before the epochs do.

    Raises:
        OptionError: It does not, or is negative.
    """
    if not 0 <= warm_up_epochs < epochs:
        raise OptionError(
            f"cannot {verb} with epochs={epochs} and warm_up_epochs={warm_up_epochs}: expected a warm-up of at least 0 "
            f"epochs that is shorter than the whole; where epochs are lowered, lower warm_up_epochs too"
        )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One recipe."""

    summary: str
    """What it is for and what it costs."""
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)
    student: StudentStart = "scratch"
    augment: AugmentationName = "standard"


def _from_trained(*, epochs: int, trial_epochs: int, batch_size: int) -> SearchOptions:
    """A search that starts from the teacher's weights, in a supernet that keeps channel i as channel i.

    Deviation: the paper's starts from new weights, undecided, and interpolates, which takes hundreds of epochs, and
    decays the architecture parameters. At high sampling temperatures their gradients are so small that the decay holds
    them at zero: a short search ends as undecided as it began (LOG.md, 2026-11-25).
    """
    return SearchOptions(
        epochs=epochs,
        batch_size=batch_size,
        warm_up_epochs=1,
        optimizer=None,
        learning_rate=None,
        architecture_learning_rate=None,
        architecture_weight_decay=0.0,
        sharpening=3.0,
        alignment="pad",
        start="model",
        prior="scores",
        trial_epochs=trial_epochs,
    )


HINTS = 100.0
"""Weight of hints in the scaled-down presets and in the trials of a search, for networks with batch norms."""
_trained = partial(TrainingOptions, optimizer=None, learning_rate=None)
_distilled = partial(DistillationOptions, optimizer=None, learning_rate=None, hints=None)
"""By the kind of network."""

DEFAULT_PRESET = "medium"
"""The recipe where none is named, in Python as on the command line."""

PRESETS: dict[str, Preset] = {
    "quick": Preset(
        summary="a first look: resnet20 on digits in about a minute on 2 cores",
        teacher=_trained(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
        search=_from_trained(epochs=8, trial_epochs=0, batch_size=32),
        distill=_distilled(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
        student="repaired",
    ),
    "demo": Preset(
        summary="the whole job in a few minutes: resnet20 on digits on 2 cores",
        teacher=_trained(epochs=50, batch_size=64, warm_up_epochs=3),
        search=_from_trained(epochs=30, trial_epochs=3, batch_size=32),
        distill=_distilled(epochs=60, batch_size=64, warm_up_epochs=3),
        student="repaired",
    ),
    "short": Preset(
        summary="a few epochs of everything: hours become minutes, points of accuracy are lost",
        teacher=_trained(epochs=5, batch_size=128, warm_up_epochs=1),
        search=_from_trained(epochs=3, trial_epochs=1, batch_size=128),
        distill=_distilled(epochs=5, batch_size=128, warm_up_epochs=1),
        student="repaired",
    ),
    "medium": Preset(
        summary="a tenth of the paper's epochs",
        teacher=_trained(epochs=30, batch_size=128, warm_up_epochs=2),
        search=_from_trained(epochs=30, trial_epochs=3, batch_size=128),
        distill=_distilled(epochs=30, batch_size=128, warm_up_epochs=2),
        student="repaired",
    ),
    "paper-cifar": Preset(
        summary="the paper's settings for CIFAR: 300 epochs of training, 600 of search; meant for a GPU",
        search=SearchOptions(depth_samples=None),
    ),
    "paper-imagenet": Preset(
        summary="the paper's settings for ImageNet: 120 epochs of training, 115 of search; meant for several GPUs",
        teacher=TrainingOptions(epochs=120, weight_decay=1e-4),
        search=SearchOptions(epochs=115, warm_up_epochs=5, weight_decay=1e-4, depth_samples=None),
        distill=DistillationOptions(epochs=120, weight_decay=1e-4),
        augment="imagenet",
    ),
}


def get_preset(name: str) -> Preset:
    """The recipe of a name.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in PRESETS:
        raise OptionError(f"cannot use the preset {name!r}: {expected_one_of(name, PRESETS)}")
    return PRESETS[name]


Options = TypeVar("Options")


def from_preset(options: Options | str, part: Callable[[Preset], Options]) -> Options:
    """The options themselves, or that part of a preset by its name."""
    return part(get_preset(options)) if isinstance(options, str) else options
