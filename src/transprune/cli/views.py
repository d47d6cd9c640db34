"""Commands that only show something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from transprune import runs
from transprune.cli.output import AsJson, print_json
from transprune.errors import OptionError
from transprune.models.by_name import build_model
from transprune.reading.inspection import Dimensions, inspect
from transprune.reports.comparison import comparison
from transprune.runs.results import show_comparison, write_comparison


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Show several runs side by side.

    transprune compare runs/* --html runs/comparison.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders of the runs, evaluated."""
    as_json: AsJson = False
    """Print their figures as JSON."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write a page that needs nothing but itself into this file."""

    def __call__(self) -> None:
        """Shows the runs."""
        if not self.runs:
            raise OptionError("cannot compare: no run is named; expected the folders of runs, such as runs/*")
        found = comparison(self.runs)
        if self.html:
            write_comparison(found, self.html)
        if self.as_json:
            print_json(found)
            return
        show_comparison(found)
        if self.html:
            print(f"wrote {self.html}")


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Show which widths and depths of a network can be chosen, and what they cost.

    transprune inspect resnet56 --num-classes 100
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The network, named as for `run`: resnet20, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, ..."""
    input_size: tuple[int, int, int] = (3, 32, 32)
    """Channels, rows and columns of an image."""
    num_classes: int = 10
    """Outputs of the classifier."""
    dimensions: Dimensions = "both"
    """What to search: width, depth or both."""
    keep: tuple[str, ...] = ()
    """Patterns of layers and stages that keep their size, such as 'stem.*' (quoted)."""
    only: tuple[str, ...] = ()
    """Patterns of the layers and stages that are searched; all without it."""
    divisor: int = 1
    """Widths to choose from are multiples of this, such as 8."""
    as_json: AsJson = False
    """Print the whole search space as JSON."""

    def __call__(self) -> None:
        """Prints the search space."""
        if min(self.input_size) < 1 or self.num_classes < 1:
            raise OptionError(
                f"cannot inspect with --input-size {self.input_size} and --num-classes {self.num_classes}: "
                f"expected numbers of at least 1"
            )
        model = build_model(self.model, classes=self.num_classes, image_channels=self.input_size[0])
        space = inspect(
            model,
            torch.zeros(1, *self.input_size),
            dimensions=self.dimensions,
            keep=self.keep,
            only=self.only,
            divisor=self.divisor,
        )
        if self.as_json:
            print_json(runs.space_as_json(space))
        else:
            runs.show_space(self.model, space)
