"""Turns a reading into a search space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import gcd, lcm
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from transprune.architecture import Architecture
from transprune.costs import Channels, Layer
from transprune.errors import ModelError, OptionError, expected_one_of
from transprune.models.configured import Said, said_of
from transprune.models.resnet import ResidualSum
from transprune.options import Dimensions, Removable
from transprune.reading.equality import check_samples
from transprune.reading.layouts import Searched, channels_of, groups_of, sizes_with
from transprune.reading.networks import names_of, untouched, unwrapped
from transprune.reading.reading import GroupFacts, LayerFacts, ParameterFacts, Reading, check_macs, read
from transprune.reading.stages import undivided
from transprune.reading.trace import Example
from transprune.space import (
    PAPER_RATIOS,
    DepthStage,
    Fixed,
    SearchSpace,
    WidthGroup,
    branch_candidates,
    depth_candidates,
    tied_candidates,
)

log = logging.getLogger("transprune.run")


CONFIGURATION: Literal["config"] = "config"
"""In place of patterns: what is tied is what the numbers of the network's configuration say."""


def ties_of(words: Sequence[str]) -> Sequence[str] | Literal["config"]:
    """What is tied, from words on a command line: patterns, or the one word for the configuration."""
    return CONFIGURATION if tuple(words) == (CONFIGURATION,) else words


NO_BRANCHES = (
    "the widths inside are chosen all the same, but a part goes by itself only where it has weights of its own and is "
    "added to what the block reads, one part after another or side by side"
)
"""Why a block is not divided."""


def inspect(
    model: nn.Module,
    example: Example,
    *,
    dimensions: Dimensions = "both",
    ratios: Sequence[float] = PAPER_RATIOS,
    divisor: int = 1,
    depths: Callable[[int], Sequence[int]] | None = None,
    removable: Removable = "blocks",
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    tie: Sequence[str] | Literal["config"] = (),
    reading: Reading | None = None,
) -> SearchSpace:
    """Reads which widths and depths of a model can be chosen, and what each choice costs. The model is untouched.

    Args:
        model: The network; its trained or untrained weights do not matter.
        example: The inputs of a forward, of any structure: a tensor [batch, ...], a tuple of positional arguments, a
            mapping of named ones, or `Inputs` for both. Samples are counted along the first axis, unless the network
            mixes what lies along it and keeps apart what lies along another, as recurrent layers may.
        dimensions: Search `width`, `depth` or `both`.
        ratios: Candidate widths as shares of the full width, each in (0, 1].
        divisor: Candidate widths below the full one are multiples of this many channels.
        depths: Gives the candidate depths of a stage from its number of blocks, or of branches where these are its
            blocks; None: `depth_candidates` and `branch_candidates`.
        removable: Whether only whole `blocks` may be left out, or each of the `branches` of a block that is several
            residual sums: the attention of a transformer's block, or its expansion.
        keep: Patterns (`*`, `?`) of layers that keep their width and of stages that keep their depth.
        only: Patterns of the only layers and stages to search; empty for all.
        tie: Patterns; the widths of all layers that match one of them get the same share of their full width. `config`:
            widths are tied as the numbers of the network's configuration (`model.config`, as those of transformers have
            it) say them, and what they do not say is kept, so that `configured` makes the smaller network one of the
            same class that needs nothing of this library.
        reading: An earlier reading of the model, which saves reading it again.

    Returns:
        The space. Its `reading` saves later steps from reading the model again.

    Raises:
        ModelError: The model does not run on the example, cannot be traced, depends on the number of samples, or has
            nothing to search.
        OptionError: A ratio is outside (0, 1], the divisor is below 1, `dimensions` or `removable` is unknown, or a
            pattern matches nothing, or two of `tie` the same layer.
    """
    if dimensions not in ("both", "width", "depth"):
        raise OptionError(f"cannot inspect with dimensions={dimensions!r}; expected 'both', 'width' or 'depth'")
    if removable not in ("blocks", "branches"):
        raise OptionError(f"cannot inspect with removable={removable!r}; expected 'blocks' or 'branches'")
    shares: list[Any] = list(ratios)  # any of these may be a generator
    keep, only, tie = (each if isinstance(each, str) else list(each) for each in (keep, only, tie))
    for option, patterns in (("keep", keep), ("only", only), ("tie", tie)):
        is_list = not isinstance(patterns, str) and all(isinstance(each, str) for each in patterns)
        if not is_list and not (option == "tie" and patterns == CONFIGURATION):
            raise OptionError(
                f"cannot inspect with {option}={patterns!r}; expected a list of names or patterns, such as "
                f"{option}=['stem.*']"
            )
    if not shares or not all(isinstance(share, Real) and 0 < float(share) <= 1 for share in shares) or divisor < 1:
        raise OptionError(
            f"cannot inspect with ratios={shares} and divisor={divisor}; "
            f"expected ratios in (0, 1] and a divisor of at least 1"
        )
    if tie == CONFIGURATION and removable == "branches":
        raise OptionError(
            "cannot inspect with tie='config' and removable='branches': no configuration says which branches are left "
            "out; expected removable='blocks'"
        )
    model = unwrapped(model)
    reading = read(model, example, reading)
    with untouched(model):
        check_samples(model, reading, example)
    check_macs(model, reading)
    reading = reading.in_branches if removable == "branches" else reading.in_blocks
    if any(axis for axis in reading.trace.axes):
        log.warning(
            "the samples of %s lie along axis %s of its inputs, since it mixes what lies along others: costs are those "
            "of one of them",
            type(model).__name__,
            " and ".join(str(axis) for axis in dict.fromkeys(reading.trace.axes) if axis is not None),
        )
    choosing = _Choosing(reading, keep, only, () if tie == CONFIGURATION else tie, fixed_by_forward(model))
    if tie == CONFIGURATION:
        choosing.tie_by_configuration(model)
    choosing.choose_groups(shares, divisor, is_searched=dimensions != "depth")
    choosing.choose_stages(depths, is_searched=dimensions != "width")
    choosing.check_patterns()
    if removable == "branches":
        choosing.list_whole_blocks()
    space = choosing.space()
    if not space.groups and not space.stages:
        reasons = "; ".join(f"{fixed.name!r}: {fixed.reason}" for fixed in space.fixed[:5])
        reasons = reasons or "no convolution, linear or recurrent layer of it makes channels that another one reads"
        raise ModelError(
            f"cannot search the model {type(model).__name__}: none of its widths and depths can be chosen ({reasons})"
        )
    return space


def inspect_for(model: nn.Module, example: Example, architecture: Architecture) -> SearchSpace:
    """The space of a model with the blocks or branches that an architecture names.

    Raises:
        ModelError: As `inspect`.
    """
    reading = read(unwrapped(model), example)
    is_whole = reading.naming(architecture.blocks) is reading
    return inspect(model, example, removable="blocks" if is_whole else "branches", reading=reading)


def full_space(reading: Reading) -> SearchSpace:
    """The space of all that can be searched, with the paper's candidates."""
    choosing = _Choosing(reading)
    choosing.choose_groups(PAPER_RATIOS, 1, is_searched=True, is_complete=True)
    choosing.choose_stages(None, is_searched=True)
    return choosing.space()


def _unit_divisor(divisor: int, unit: int) -> int:
    """The smallest number of units that is a multiple of `divisor` channels."""
    return divisor // gcd(divisor, unit)


FIXED_LAYERS = {
    "ultralytics.nn.modules.block.Attention": ("qkv.conv", "proj.conv"),
    "ultralytics.nn.modules.block.C2PSA": ("cv1.conv",),
    "ultralytics.nn.modules.block.PSA": ("cv1.conv",),
}
"""Layers whose widths the forward around them fixes: attention whose heads together are as wide as what it reads, and
halves that are split by one number for both."""


def fixed_by_forward(model: nn.Module) -> dict[str, str]:
    """The layers whose widths a known module around them fixes, and its class."""
    return {
        f"{path}.{layer}".lstrip("."): type(module).__name__
        for path, module in model.named_modules()
        for name in names_of(type(module))
        for layer in FIXED_LAYERS.get(name, ())
    }


class _Choosing:
    """Turns what a reading offers into the groups and stages of a search space."""

    def __init__(
        self,
        reading: Reading,
        keep: Sequence[str] = (),
        only: Sequence[str] = (),
        tie: Sequence[str] = (),
        by_forward: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.reading, self.by_forward = reading, by_forward
        self.keep, self.only, self.tie = keep, only, tie
        self.said: Said | None = None
        self.groups: list[WidthGroup] = []
        self.stages: list[DepthStage] = []
        self.fixed: list[Fixed] = []

    def tie_by_configuration(self, model: nn.Module) -> None:
        """Ties what the numbers of the network's configuration say, and keeps the rest."""
        carried: dict[str, dict[tuple[str, int], frozenset[int]]] = {group.name: {} for group in self.reading.groups}
        for name, layouts in self.reading.states.items():
            for axis, layout in enumerate(layouts):
                for group in groups_of(layout):
                    carried[group][name, axis] = sizes_with(group, layout)
        widths = {group.name: (group.width, carried[group.name]) for group in self.reading.groups}
        self.said = said_of(model, widths, {stage.name: len(stage.blocks) for stage in self.reading.stages})

    def choose_groups(
        self, ratios: Sequence[float], divisor: int, *, is_searched: bool, is_complete: bool = False
    ) -> None:
        searched: list[GroupFacts] = []
        for group in self.reading.groups:
            reason = self._kept_reason(group.layers, "widths", is_searched) or self._unsaid(group.name)
            if reason is None:
                searched.append(group)
            else:
                self.fixed.append(Fixed(group.name, reason))
        ties = {group.name: self._tie_of(group) for group in searched}
        together: dict[tuple[str, str], list[GroupFacts]] = {}
        for group in searched:
            tie = ties[group.name]
            together.setdefault((tie, "" if tie else group.name), []).append(group)
        candidates: dict[str, tuple[int, ...]] = {}
        for (tie, _), groups in together.items():
            widths = [(group.width, self._divisor(divisor, group, tie)) for group in groups]
            candidates |= zip((group.name for group in groups), tied_candidates(widths, ratios), strict=True)
        for group in searched:
            choices = candidates[group.name]
            if len(choices) < 2 and not is_complete:
                self.fixed.append(Fixed(group.name, "it has a single candidate"))
                continue
            self.groups.append(
                WidthGroup(
                    name=group.name,
                    width=group.width,
                    candidates=choices,
                    layers=group.layers,
                    unit=group.unit,
                    tie=ties[group.name],
                )
            )

    def _divisor(self, divisor: int, group: GroupFacts, tie: str) -> int:
        """The number of units whose multiples a group may have."""
        step = self.said.steps[tie] if self.said is not None else 1
        return lcm(_unit_divisor(divisor, group.unit), step)

    def _tie_of(self, group: GroupFacts) -> str:
        """The pattern that a group's layers match, or the number of the configuration, if there is one.

        Raises:
            OptionError: Several do.
        """
        if self.said is not None:
            return self.said.by[group.name]
        found = [pattern for pattern in self.tie if any(_matches(name, (pattern,)) for name in group.layers)]
        if len(found) > 1:
            raise OptionError(
                f"cannot tie the width of {group.name!r} by {found[0]!r} and by {found[1]!r}: its layers "
                f"({', '.join(group.layers)}) match both; expected patterns that share no width"
            )
        return found[0] if found else ""

    def choose_stages(self, depths: Callable[[int], Sequence[int]] | None, *, is_searched: bool) -> None:
        for run in self.reading.stages:
            reason = self._kept_reason((run.name,), "depths", is_searched) or self._unsaid(run.name)
            if reason is not None:
                self.fixed.append(Fixed(run.name, reason))
                continue
            depth = len(run.blocks)
            candidates = depths or (branch_candidates if run.sums else depth_candidates)
            choices = tuple(sorted({*candidates(depth), depth}))
            if choices[0] < 1 or choices[-1] > depth:
                raise OptionError(
                    f"cannot search the depth of {run.name!r}: found the candidates {list(choices)} for its {depth} "
                    f"blocks; expected depths from 1 to {depth}"
                )
            self.stages.append(
                DepthStage(
                    name=run.name,
                    depth=depth,
                    candidates=choices,
                    blocks=run.blocks,
                    outputs=(),
                    tie=self.said.by[run.name] if self.said is not None else "",
                )
            )

    def list_whole_blocks(self) -> None:
        """Lists the blocks of searched stages that have no branches."""
        searched = {stage.name for stage in self.stages}
        for run in self.reading.in_blocks.stages:
            whole = undivided(self.reading.trace, run) if run.name in searched else []
            if whole:
                others = f" and {len(whole) - 1} others" if len(whole) > 1 else ""
                self.fixed.append(
                    Fixed(run.name, f"its block {whole[0]!r}{others} can only stay or go whole: {NO_BRANCHES}")
                )

    def _kept_reason(self, names: Sequence[str], what: str, is_searched: bool) -> str | None:
        if not is_searched:
            return f"{what} are not searched"
        if any(_matches(name, self.keep) for name in names):
            return "it is kept as asked"
        fixing = next((self.by_forward[name] for name in names if name in self.by_forward), None)
        if fixing is not None:
            return f"the forward of {fixing} cannot follow another width"
        if self.only and not any(_matches(name, self.only) for name in names):
            return "it is not among what is searched only, as asked"
        return None

    def _unsaid(self, choice: str) -> str | None:
        """Why the configuration does not say the size of a choice, where it is to be said by it."""
        return None if self.said is None else self.said.reasons.get(choice)

    def check_patterns(self) -> None:
        """Checks that every pattern matches something.

        Raises:
            OptionError: A pattern matches no layer and no stage.
        """
        names = [layer.use.name for layer in self.reading.layers] + [stage.name for stage in self.reading.stages]
        for option, patterns in (("keep", self.keep), ("only", self.only), ("tie", self.tie)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise OptionError(
                        f"cannot search with {option} {pattern!r}: no layer or stage has such a name; "
                        f"{expected_one_of(pattern, dict.fromkeys(names))}"
                    )

    def space(self) -> SearchSpace:
        searched = Searched({group.name for group in self.groups}, {stage.name for stage in self.stages})
        reading = self.reading
        in_branches = {run.name: bool(run.sums) for run in reading.stages}
        stages = tuple(
            DepthStage(
                name=stage.name,
                depth=stage.depth,
                candidates=stage.candidates,
                blocks=stage.blocks,
                outputs=tuple(channels_of(end, searched) for end in reading.ends[stage.name]),
                free=reading.free[stage.name],
                parts=reading.parts[stage.name] if in_branches[stage.name] else (),
                tie=stage.tie,
            )
            for stage in self.stages
        )
        layers = [layer for facts in reading.layers if (layer := self._layer(facts, searched)) is not None]
        layers += [_parameter(facts, searched) for facts in reading.rest]
        named = {group.name for group in self.groups} | {fixed.name for fixed in self.fixed}
        rest = [Fixed(name, reason) for name, reason in reading.fixed if name not in named]
        return SearchSpace(
            groups=tuple(self.groups),
            stages=stages,
            layers=tuple(layers),
            fixed=(*self.fixed, *rest, *(Fixed(name, reason) for name, reason in reading.costs)),
            reading=reading,
        )

    def _layer(self, facts: LayerFacts, searched: Searched) -> Layer | None:
        has_norm = False
        if facts.use.operator == "projection":
            total = self.reading.trace.model.get_submodule(facts.use.name.removesuffix(".shortcut"))
            has_norm = isinstance(total, ResidualSum) and total.has_norm
        return facts.layer(searched, has_norm=has_norm)


def _parameter(facts: ParameterFacts, searched: Searched) -> Layer:
    """A parameter that no layer counts: its size as a product of at most two widths."""
    constant, varying = 1, []
    for layout in facts.axes:
        channels = channels_of(layout, searched)
        if channels.sources:
            varying.append(channels)
        else:
            constant *= channels.total
    inputs, outputs = [*varying, Channels(1), Channels(1)][:2]
    return Layer(name=facts.name, operator="parameter", inputs=inputs, outputs=outputs, kernel=constant)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
