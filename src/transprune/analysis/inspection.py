"""Reading a model's search space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

from torch import nn

from transprune.analysis.coupling import ChannelSet, Coupling, Stream, Use, couple, is_depthwise
from transprune.analysis.stages import BlockRun, find_stages
from transprune.analysis.trace import Example, Trace, operator, shape, trace
from transprune.errors import ModelError, OptionError
from transprune.layers import Channels, Layer
from transprune.residual import ResidualSum
from transprune.space import (
    PAPER_RATIOS,
    DepthStage,
    Fixed,
    SearchSpace,
    WidthGroup,
    depth_candidates,
    width_candidates,
)

Dimensions = Literal["both", "width", "depth"]


def inspect(
    model: nn.Module,
    example: Example,
    *,
    dimensions: Dimensions = "both",
    ratios: Sequence[float] = PAPER_RATIOS,
    divisor: int = 1,
    depths: Callable[[int], Sequence[int]] = depth_candidates,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
) -> SearchSpace:
    """Reads which widths and depths of a model can be chosen, and what each choice costs. The model is untouched.

    Args:
        model: The network; its trained or untrained weights do not matter.
        example: An input batch [batch, channels, rows, columns], or a tuple of the forward's positional arguments.
        dimensions: Search `width`, `depth` or `both`.
        ratios: Candidate widths as shares of the full width, each in (0, 1].
        divisor: Candidate widths below the full one are multiples of this.
        depths: The candidate depths of a stage with so many blocks.
        keep: Patterns (`*`, `?`) of layers that keep their width and of stages that keep their depth.
        only: Patterns of the layers and stages that are searched; empty: all.

    Raises:
        ModelError: The model does not run on the example, cannot be traced, or has nothing to search.
        OptionError: A ratio is outside (0, 1], the divisor is below 1, or `dimensions` is unknown.
    """
    if dimensions not in ("both", "width", "depth"):
        raise OptionError(f"cannot inspect with dimensions={dimensions!r}; expected 'both', 'width' or 'depth'")
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios) or divisor < 1:
        raise OptionError(
            f"cannot inspect with ratios={list(ratios)} and divisor={divisor}; "
            f"expected ratios in (0, 1] and a divisor of at least 1"
        )
    reading = trace(model, example)
    coupling = couple(reading, find_stages(reading))
    naming = _Naming(coupling)
    naming.choose_groups(
        lambda width: width_candidates(width, ratios, divisor=divisor), dimensions != "depth", keep, only
    )
    naming.choose_stages(lambda depth: tuple(depths(depth)), dimensions != "width", keep, only)
    space = SearchSpace(
        groups=tuple(naming.groups),
        stages=tuple(naming.stages),
        layers=tuple(layer for use in coupling.uses if (layer := naming.layer(use)) is not None),
        fixed=(*naming.fixed, *(Fixed(name, "no rule covers it: not counted") for name in coupling.uncovered)),
    )
    if not space.groups and not space.stages:
        reasons = "; ".join(f"{fixed.name!r}: {fixed.reason}" for fixed in space.fixed[:5])
        raise ModelError(
            f"cannot search the model {type(model).__name__}: none of its widths and depths can be chosen ({reasons})"
        )
    return space


class _Naming:
    """Turns channel sets and block runs into the named groups and stages of a search space."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.groups: list[WidthGroup] = []
        self.stages: list[DepthStage] = []
        self.fixed: list[Fixed] = []
        self._group_names: dict[int, str] = {}
        self._stage_names: set[str] = set()

    def choose_groups(
        self, candidates: Callable[[int], tuple[int, ...]], is_searched: bool, keep: Sequence[str], only: Sequence[str]
    ) -> None:
        order = {use.module: position for position, use in reversed(list(enumerate(self.coupling.uses)))}
        for channels in self._sets_in_order():
            choices = candidates(channels.width)
            layers = tuple(sorted(set(channels.layers), key=order.__getitem__))
            reason = channels.reason
            if reason is None and not is_searched:
                reason = "widths are not searched"
            if reason is None and any(_matches(layer, keep) for layer in layers):
                reason = "it is kept as asked"
            if reason is None and only and not any(_matches(layer, only) for layer in layers):
                reason = "it is not among what is searched"
            if reason is None and len(choices) < 2:
                reason = "it has a single candidate"
            if reason is not None:
                if all(fixed.name != layers[0] for fixed in self.fixed):
                    self.fixed.append(Fixed(layers[0], reason))
                continue
            self._group_names[id(channels)] = layers[0]
            self.groups.append(WidthGroup(name=layers[0], width=channels.width, candidates=choices, layers=layers))

    def choose_stages(
        self, candidates: Callable[[int], tuple[int, ...]], is_searched: bool, keep: Sequence[str], only: Sequence[str]
    ) -> None:
        for run in self.coupling.stages:
            is_kept = _matches(run.name, keep)
            if not is_searched or is_kept or (only and not _matches(run.name, only)):
                kept = "it is kept as asked" if is_kept else "it is not among what is searched"
                reason = "depths are not searched" if not is_searched else kept
                self.fixed.append(Fixed(run.name, reason))
                continue
            depth = len(run.blocks)
            self._stage_names.add(run.name)
            outputs = tuple(self.channels(self.coupling.streams[node], node) for node in run.exits)
            choices = tuple(sorted({*candidates(depth), depth}))
            if choices[0] < 1 or choices[-1] > depth:
                raise OptionError(
                    f"cannot search the depth of {run.name!r}: found the candidates {list(choices)} for its {depth} "
                    f"blocks; expected depths from 1 to {depth}"
                )
            self.stages.append(
                DepthStage(name=run.name, depth=depth, candidates=choices, blocks=run.blocks, outputs=outputs)
            )

    def channels(self, stream: Stream | None, node: object, axis: int = 1) -> Channels:
        """The channels of a stream; where there is none, the size of the node's axis."""
        if stream is None:
            sizes = shape(node) if node is not None else None  # type: ignore[arg-type]
            return Channels(sizes[axis] if sizes else 0)
        if isinstance(stream.source, BlockRun):
            sets = {id(channels) for channels in self.coupling.sets(stream)}
            last = self.coupling.streams[stream.source.exits[-1]]
            assert last is not None  # a stream behind a stage was made from its last exit's
            end = self.channels(Stream(stream.axis, last.source, last.repeat), node)
            if len(sets) > 1 and stream.source.name in self._stage_names:
                return Channels(end.full * end.repeat, stream.source.name, stream.repeat)
            return Channels(end.full, end.source, end.repeat * stream.repeat)
        channels = stream.source.root()
        return Channels(channels.width, self._group_names.get(id(channels)), stream.repeat)

    def layer(self, use: Use) -> Layer | None:
        """The record of a module's use; None for a residual sum whose sides have one width by construction."""
        reading = self.coupling.trace
        module = reading.model.get_submodule(use.module)
        source = use.node.all_input_nodes[0]
        axis = -1 if isinstance(module, nn.Linear) else 1
        inputs = self.channels(use.inputs, source, axis)
        outputs = self.channels(use.outputs, use.node, axis)
        positions = prod((shape(use.node) or ())[2:])
        is_repeat = next(other for other in self.coupling.uses if other.module == use.module) is not use
        if use.is_free_sum:
            return self._projection(use, inputs, outputs, positions)
        if isinstance(module, nn.Conv2d):
            return Layer(
                name=use.module,
                operator="depthwise" if is_depthwise(module) else "conv",
                inputs=Channels(module.in_channels // module.groups) if is_grouped(module) else inputs,
                outputs=outputs,
                kernel=prod(module.kernel_size),
                positions=positions,
                has_bias=module.bias is not None,
                is_mixed=self._is_group(outputs) and _norm_after(reading, use) is None,
                is_repeat=is_repeat,
            )
        if isinstance(module, nn.Linear):
            return Layer(
                name=use.module,
                operator="linear",
                inputs=inputs,
                outputs=outputs,
                positions=prod((shape(use.node) or ())[1:-1]),
                has_bias=module.bias is not None,
                is_mixed=self._is_group(outputs),
                is_repeat=is_repeat,
            )
        assert isinstance(module, nn.BatchNorm2d)  # the rules use no other module
        is_mixed = self._is_group(outputs) and operator(source) == "conv2d" and len(source.users) == 1
        return Layer(
            name=use.module,
            operator="norm",
            inputs=inputs,
            outputs=outputs,
            positions=positions,
            has_bias=module.affine,
            is_mixed=is_mixed,
            is_repeat=is_repeat,
        )

    def _projection(self, use: Use, inputs: Channels, outputs: Channels, positions: int) -> Layer | None:
        total = self.coupling.trace.model.get_submodule(use.module.removesuffix(".shortcut"))
        assert isinstance(total, ResidualSum)  # only residual sums have free sides
        if inputs == outputs:
            return None
        return Layer(
            name=use.module,
            operator="projection",
            inputs=inputs,
            outputs=outputs,
            positions=positions,
            has_norm=total.has_norm,
        )

    def _is_group(self, channels: Channels) -> bool:
        return channels.source in self._group_names.values()

    def _sets_in_order(self) -> list[ChannelSet]:
        roots: dict[int, ChannelSet] = {}
        for use in self.coupling.uses:
            for channels in self.coupling.sets(use.outputs):
                roots.setdefault(id(channels), channels)
        return list(roots.values())


def _norm_after(reading: Trace, use: Use) -> object:
    """The batch norm that alone reads a convolution's output; None if there is none."""
    users = list(use.node.users)
    return users[0] if len(users) == 1 and operator(users[0]) == "batch_norm" else None


def is_grouped(module: nn.Conv2d) -> bool:
    """Whether a convolution has groups of several channels, so that its widths are kept."""
    return module.groups > 1 and not is_depthwise(module)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
