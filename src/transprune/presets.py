"""Named recipes: how long and how fast the teacher, the search and the distillation train."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from transprune.errors import OptionError
from transprune.training.fitting import DistillationOptions, TrainingOptions
from transprune.training.searching import SearchOptions


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One recipe."""

    summary: str
    """What it is for and what it costs."""
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        summary="a first look: resnet20 on digits in about a minute on 2 cores",
        teacher=TrainingOptions(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
        search=SearchOptions(epochs=8, batch_size=64, warm_up_epochs=1, architecture_learning_rate=0.05),
        distill=DistillationOptions(epochs=16, batch_size=64, warm_up_epochs=2, evaluate_every=4),
    ),
    "demo": Preset(
        summary="the whole job in a few minutes: resnet20 on digits on 2 cores",
        teacher=TrainingOptions(epochs=50, batch_size=64, warm_up_epochs=3),
        search=SearchOptions(epochs=40, batch_size=48, warm_up_epochs=2, architecture_learning_rate=0.03),
        distill=DistillationOptions(epochs=80, batch_size=64, warm_up_epochs=3),
    ),
    "short": Preset(
        summary="a few epochs of everything: hours become minutes, points of accuracy are lost",
        teacher=TrainingOptions(epochs=8, batch_size=128, warm_up_epochs=1),
        search=SearchOptions(epochs=6, batch_size=128, warm_up_epochs=1, architecture_learning_rate=0.02),
        distill=DistillationOptions(epochs=8, batch_size=128, warm_up_epochs=1),
    ),
    "medium": Preset(
        summary="a tenth of the paper's epochs",
        teacher=TrainingOptions(epochs=30, batch_size=128, warm_up_epochs=2),
        search=SearchOptions(epochs=60, batch_size=128, warm_up_epochs=2, architecture_learning_rate=0.01),
        distill=DistillationOptions(epochs=30, batch_size=128, warm_up_epochs=2),
    ),
    "paper-cifar": Preset(
        summary="the paper's settings for CIFAR: 300 epochs of training, 600 of search; meant for a GPU",
        search=SearchOptions(depth_samples=None),
    ),
}


def get_preset(name: str) -> Preset:
    """The recipe of a name.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"cannot use the preset {name!r}: expected one of {', '.join(PRESETS)}{hint}")
    return PRESETS[name]
