"""Named recipes: how long and how fast the teacher, the search and the distillation train."""

from __future__ import annotations

from dataclasses import dataclass, field

from transprune.errors import OptionError, expected_one_of
from transprune.options import AugmentationName, DistillationOptions, SearchOptions, StudentStart, TrainingOptions


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


def _from_trained(*, epochs: int, batch_size: int, architecture_learning_rate: float) -> SearchOptions:
    """A search that starts from the teacher's weights, in a supernet that keeps channel i as channel i.

    Deviation: the paper's starts from new weights and interpolates, which takes hundreds of epochs, and decays the
    architecture parameters. At high sampling temperatures their gradients are so small that the decay holds them at
    zero: a short search ends as undecided as it began (LOG.md, 2026-11-25).
    """
    return SearchOptions(
        epochs=epochs,
        batch_size=batch_size,
        warm_up_epochs=1,
        learning_rate=0.02,
        architecture_learning_rate=architecture_learning_rate,
        architecture_weight_decay=0.0,
        alignment="pad",
        start="model",
    )


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        summary="a first look: resnet20 on digits in about a minute on 2 cores",
        teacher=TrainingOptions(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
        search=_from_trained(epochs=8, batch_size=32, architecture_learning_rate=0.05),
        distill=DistillationOptions(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
        student="supernet",
    ),
    "demo": Preset(
        summary="the whole job in a few minutes: resnet20 on digits on 2 cores",
        teacher=TrainingOptions(epochs=50, batch_size=64, warm_up_epochs=3),
        search=_from_trained(epochs=30, batch_size=32, architecture_learning_rate=0.03),
        distill=DistillationOptions(epochs=60, batch_size=64, warm_up_epochs=3),
        student="supernet",
    ),
    "short": Preset(
        summary="a few epochs of everything: hours become minutes, points of accuracy are lost",
        teacher=TrainingOptions(epochs=5, batch_size=128, warm_up_epochs=1),
        search=_from_trained(epochs=3, batch_size=128, architecture_learning_rate=0.02),
        distill=DistillationOptions(epochs=5, batch_size=128, warm_up_epochs=1),
        student="supernet",
    ),
    "medium": Preset(
        summary="a tenth of the paper's epochs",
        teacher=TrainingOptions(epochs=30, batch_size=128, warm_up_epochs=2),
        search=_from_trained(epochs=30, batch_size=128, architecture_learning_rate=0.01),
        distill=DistillationOptions(epochs=30, batch_size=128, warm_up_epochs=2),
        student="supernet",
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
