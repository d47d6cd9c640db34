"""The search space: every width and depth that may be chosen, and what each choice costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from transprune.architecture import Architecture, Row, drawn, parse_json
from transprune.costs import MACS, PARAMS, Channels, Cost, Layer
from transprune.errors import SpaceError, newer_format
from transprune.options import at_least
from transprune.records import read_record

PAPER_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidate widths as shares of the full width (Dong & Yang, 2019, arXiv:1905.09717, section 4.1)."""
FORMAT = 2
BESIDE = ("format", "sha256", "costs", "attainable")
"""Keys of the JSON that are not fields: its format, the checksum in a run's `space.json`, and what
`transprune inspect --json` computes from the space."""


@dataclass(frozen=True, kw_only=True)
class WidthGroup:
    """Layers that must share one width."""

    name: str
    """Path of the first layer that produces these channels."""
    width: int
    """Width in the unpruned network."""
    candidates: tuple[int, ...]
    """Widths that may be chosen, ascending; the last is the full width."""
    layers: tuple[str, ...]
    """Paths of all layers whose outputs are cut together."""
    unit: int = 1
    """Channels per unit of the width: those of one group of a grouped convolution, or of one head of attention."""
    tie: str = ""
    """What groups have in common that get the same candidate, each of its own; empty: the group is chosen alone."""


@dataclass(frozen=True, kw_only=True)
class DepthStage:
    """A run of blocks of which some may be left out: from the end, or in an order that says which goes first."""

    name: str
    """Path of the container that holds the blocks."""
    depth: int
    """Blocks in the unpruned network."""
    candidates: tuple[int, ...]
    """Depths that may be chosen, ascending; the last is the full depth."""
    blocks: tuple[str, ...]
    """Path of each block, in order."""
    outputs: tuple[Channels, ...]
    """The output channels of each block."""
    free: tuple[int, ...] = ()
    """Positions of the blocks (from 0) that may go before the ones behind them; empty: they go from the end."""
    order: tuple[int, ...] = ()
    """Positions of the blocks, the one that stays longest first; empty: the first ones stay, as in the paper."""
    parts: tuple[tuple[str, ...], ...] = ()
    """Where the blocks are branches, the layers and parameters of each; empty: all that lies below a block's path."""
    tie: str = ""
    """The number of the network's configuration that says how many blocks there are; empty: it was not looked for."""

    def kept(self, depth: int) -> tuple[int, ...]:
        """Positions of the blocks of a candidate, ascending; those of smaller candidates are among them."""
        return tuple(sorted(self.order[:depth])) if self.order else tuple(range(min(depth, self.depth)))

    def kept_in(self, architecture: Architecture) -> tuple[int, ...]:
        """Positions of the blocks that an architecture keeps, ascending."""
        return architecture.kept(self.name, self.blocks)

    def keeps(self, position: int, architecture: Architecture) -> bool:
        """Whether an architecture keeps a block."""
        if self.name in architecture.blocks:
            return self.blocks[position] in architecture.blocks[self.name]
        return position < architecture.depths.get(self.name, self.depth)


@dataclass(frozen=True)
class Fixed:
    """Something that is not searched, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """All architectures of a network that a search may choose from."""

    groups: tuple[WidthGroup, ...]
    stages: tuple[DepthStage, ...]
    layers: tuple[Layer, ...]
    fixed: tuple[Fixed, ...] = ()
    """What keeps its size, with the reason."""
    reading: Any = field(default=None, repr=False, compare=False)
    """The `Reading` that the space was made from, for the verbs that are given the space. It is not saved, nor sent to
    other processes; where it is None, the verbs read their model themselves."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "reading": None}

    def __repr__(self) -> str:
        full = self.full_architecture()
        return (
            f"SearchSpace({len(self.groups)} widths, {len(self.stages)} depths, {float(self.count()):.3g} architectures"
            f"; unpruned {self.macs(full):,} MACs, {self.params(full):,} parameters)"
        )

    def _repr_html_(self) -> str:
        return self.picture()

    def picture(self, architecture: Architecture | None = None, title: str = "") -> str:
        """HTML with a bar for each width and depth, of its full size and of that in an architecture.

        Args:
            architecture: What is kept; None: all of it.
            title: A line above; empty: what the space says of itself.
        """
        chosen = architecture or self.full_architecture()
        self.check(chosen)
        widths = [
            Row(group.name, group.width, chosen.widths.get(group.name, group.width) * self.is_kept(group.name, chosen))
            for group in self.groups
        ]
        depths = [Row(stage.name, stage.depth, chosen.depths.get(stage.name, stage.depth)) for stage in self.stages]
        return drawn(title or repr(self), widths, depths)

    @cached_property
    def group_index(self) -> dict[str, int]:
        """Position of each group by name."""
        return {group.name: index for index, group in enumerate(self.groups)}

    @cached_property
    def stage_index(self) -> dict[str, int]:
        """Position of each stage by name."""
        return {stage.name: index for index, stage in enumerate(self.stages)}

    @cached_property
    def choices(self) -> tuple[WidthGroup | DepthStage, ...]:
        """All groups, then all stages."""
        return (*self.groups, *self.stages)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """For each group the position of the first one that it is tied to; its own where it is chosen alone."""
        first: dict[str, int] = {}
        return tuple(
            first.setdefault(group.tie, position) if group.tie else position
            for position, group in enumerate(self.groups)
        )

    @property
    def has_ties(self) -> bool:
        """Whether some groups are tied to others."""
        return any(leader != position for position, leader in enumerate(self.leaders))

    def is_one_choice(self, source: str | None, other: str | None) -> bool:
        """Whether two groups, by their names, are the same or tied, so that both get the same candidate."""
        if source not in self.group_index or other not in self.group_index:
            return False
        return self.leaders[self.group_index[source]] == self.leaders[self.group_index[other]]

    def architecture_of(self, sizes: Sequence[int]) -> Architecture:
        """The architecture with the given size for each of `choices`."""
        groups = len(self.groups)
        return Architecture(
            widths={group.name: size for group, size in zip(self.groups, sizes[:groups], strict=True)},
            depths={stage.name: size for stage, size in zip(self.stages, sizes[groups:], strict=True)},
            blocks={
                stage.name: tuple(stage.blocks[place] for place in stage.kept(size))
                for stage, size in zip(self.stages, sizes[groups:], strict=True)
                if stage.order or stage.parts
            },
        )

    def sizes_of(self, architecture: Architecture) -> list[int]:
        """The size of each of `choices` in an architecture."""
        widths = [architecture.widths.get(group.name, group.width) for group in self.groups]
        return widths + [architecture.depths.get(stage.name, stage.depth) for stage in self.stages]

    def full_architecture(self) -> Architecture:
        """The unpruned network."""
        return self._pick(max)

    def smallest_architecture(self) -> Architecture:
        """The smallest candidate everywhere."""
        return self._pick(min)

    def random_architecture(self, seed: int) -> Architecture:
        """Every size drawn uniformly from its candidates; equal seeds give equal architectures."""
        return self._pick(random.Random(int(seed)).choice)

    def spread_architectures(self, count: int, seed: int) -> list[Architecture]:
        """Architectures spread evenly from the smallest to the full one, each with sizes varied at random.

        Args:
            count: Number of architectures, at least 2.
            seed: Decides the random sizes.
        """
        drawing = random.Random(seed)

        def drawn(candidates: Sequence[int], share: float) -> int:
            return candidates[sum(drawing.random() < share for _ in range(len(candidates) - 1))]

        return [
            self.architecture_of([drawn(choice.candidates, place / (count - 1)) for choice in self.choices])
            for place in range(count)
        ]

    def count(self) -> int:
        """How many architectures there are."""
        chosen = [group.candidates for place, group in enumerate(self.groups) if self.leaders[place] == place]
        return math.prod(map(len, [*chosen, *(stage.candidates for stage in self.stages)]))

    def macs(self, architecture: Architecture) -> int:
        """Multiply-adds for one sample (conventions: `transprune.costs`).

        Raises:
            SpaceError: The architecture names a group or stage that this space does not have, or too deep a stage.
        """
        return self.cost(MACS, architecture)

    def params(self, architecture: Architecture) -> int:
        """Trained parameters.

        Raises:
            SpaceError: As `macs`.
        """
        return self.cost(PARAMS, architecture)

    def cost(self, cost: Cost, architecture: Architecture) -> int:
        """The exact cost of an architecture.

        Raises:
            SpaceError: As `macs`.
        """
        self.check(architecture)
        return sum(self.layer_cost(cost, layer, architecture) for layer in self.layers)

    def smallest_is_cheapest(self, cost: Cost) -> bool:
        """Whether the smallest architecture is certainly the cheapest.

        It need not be if smaller sizes may cost more, or if its widths need a projection that equal widths do not.
        """
        smallest = self.smallest_architecture()
        return cost.is_monotone and all(
            self.resolve(layer.inputs, smallest) == self.resolve(layer.outputs, smallest)
            for layer in self.layers
            if layer.operator == "projection"
        )

    def layer_cost(self, cost: Cost, layer: Layer, architecture: Architecture) -> int:
        """The cost of one layer in an architecture of this space; 0 if its block is dropped."""
        if not self.is_kept(layer.name, architecture):
            return 0
        return sum(
            cost.of_part(layer, (row, column), self.resolve(inputs, architecture), self.resolve(outputs, architecture))
            for row, inputs in enumerate(layer.inputs.parts)
            for column, outputs in enumerate(layer.outputs.parts)
        )

    def resolve(self, channels: Channels, architecture: Architecture) -> int:
        """The number of channels in an architecture."""
        if channels.beside:
            return sum(self.resolve(part, architecture) for part in channels.parts)
        if channels.source is None:
            return channels.total
        if channels.source in self.stage_index:
            stage = self.stages[self.stage_index[channels.source]]
            return self.resolve(stage.outputs[stage.kept_in(architecture)[-1]], architecture) * channels.repeat
        return architecture.widths.get(channels.source, channels.full) * channels.repeat

    def possible_widths(self, part: Channels) -> tuple[int, ...]:
        """All sizes that a part can have under the candidates of its group, ascending."""
        if part.source is None:
            return (part.total,)
        group = self.groups[self.group_index[part.source]]
        return tuple(width * part.repeat for width in group.candidates)

    def block_of(self, layer: str) -> tuple[DepthStage, int] | None:
        """Stage and position (from 0) of the block that holds a layer, if one does; of several, the last one to go."""
        stage, places = self._blocks.get(layer, (None, ()))
        if stage is None:
            return None
        return stage, min(places, key=stage.order.index) if stage.order else min(places)

    def is_kept(self, layer: str, architecture: Architecture) -> bool:
        """Whether a block that holds a layer is kept."""
        stage, places = self._blocks.get(layer, (None, ()))
        return stage is None or any(stage.keeps(place, architecture) for place in places)

    @cached_property
    def _blocks(self) -> dict[str, tuple[DepthStage, tuple[int, ...]]]:
        """Stage and positions of the blocks that hold a layer or group: several branches may need one."""
        names = [layer.name for layer in self.layers] + [group.name for group in self.groups]
        by_part: dict[str, tuple[DepthStage, tuple[int, ...]]] = {}
        for stage in self.stages:
            for place, part in enumerate(stage.parts):
                for name in part:
                    by_part[name] = stage, (*by_part.get(name, (stage, ()))[1], place)
        by_path = {
            name: (stage, (position,))
            for stage in self.stages
            if not stage.parts
            for position, path in enumerate(stage.blocks)
            for name in names
            if name == path or name.startswith(f"{path}.")
        }
        return by_path | {name: by_part[own] for name in names if (own := _own_name(name, by_part)) is not None}

    def check(self, architecture: Architecture) -> None:
        """Checks that an architecture belongs to this network; its widths need not be candidates.

        Raises:
            SpaceError: It names an unknown group or stage, or keeps more blocks than there are.
        """
        for kind, named, known in (
            ("group", architecture.widths, self.group_index),
            ("stage", architecture.depths, self.stage_index),
        ):
            for name in named:
                if name not in known:
                    raise SpaceError(
                        f"cannot use this architecture: it names the {kind} {name!r}, which this network does not "
                        f"have; its {kind}s are {', '.join(known) or 'none'}"
                    )
        for stage in self.stages:
            depth = architecture.depths.get(stage.name, stage.depth)
            if depth > stage.depth:
                raise SpaceError(
                    f"cannot use this architecture: it keeps {depth} blocks of stage {stage.name!r}, "
                    f"which has {stage.depth}"
                )
            self._check_blocks(stage, architecture)

    def _check_blocks(self, stage: DepthStage, architecture: Architecture) -> None:
        named = architecture.blocks.get(stage.name, ())
        depth = architecture.depths.get(stage.name, stage.depth)
        if stage.parts and not named and depth < stage.depth:
            raise SpaceError(
                f"cannot use this architecture: it says that {depth} of the {stage.depth} branches of stage "
                f"{stage.name!r} stay, not which; expected their paths in `blocks`, such as {stage.blocks[0]!r}, or a "
                f"space of whole blocks (inspect with removable='blocks')"
            )
        unknown = [path for path in named if path not in stage.blocks]
        if unknown:
            raise SpaceError(
                f"cannot use this architecture: it keeps the block {unknown[0]!r} of stage {stage.name!r}, whose "
                f"blocks are {', '.join(stage.blocks)}"
            )
        kept = stage.kept_in(architecture)
        stuck = [place for place in range(kept[-1]) if place not in kept and place not in stage.free]
        if stuck:
            raise SpaceError(
                f"cannot use this architecture: it leaves out {stage.blocks[stuck[0]]!r} and keeps "
                f"{stage.blocks[kept[-1]]!r}, which can only read what that block hands on; expected the first blocks "
                f"of stage {stage.name!r}"
            )

    def ordered(self, orders: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The same space with orders in which the blocks of stages go.

        Args:
            orders: Positions of the blocks by the name of the stage, the one that stays longest first; stages that are
                not named keep theirs.

        Raises:
            SpaceError: An order does not name each block once, or lets a block go that cannot.
        """
        stages = [replace(stage, order=tuple(orders.get(stage.name, stage.order))) for stage in self.stages]
        try:
            for stage in stages:
                _check_order(stage)
        except ValueError as error:
            raise SpaceError(f"cannot order the blocks of a stage: {error}") from error
        return replace(self, stages=tuple(stages))

    def to_json(self) -> dict[str, Any]:
        """The space as plain values for `json.dumps`."""
        content = asdict(replace(self, reading=None))
        del content["reading"]
        return {"format": FORMAT, **content}

    @classmethod
    def from_json(cls, value: Any) -> SearchSpace:
        """Reads what `to_json`, a run (`space.json`) or `transprune inspect --json` wrote.

        Args:
            value: The parsed object, or its text.

        Raises:
            SpaceError: The text is malformed or of a newer format.
        """
        if isinstance(value, str):
            value = parse_json(value, "a search space")
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        if isinstance(found, int) and found > FORMAT:
            raise SpaceError(f"cannot read a search space: {newer_format(found, FORMAT)}")
        if found != FORMAT:
            raise SpaceError(
                f"cannot read a search space: found format {found!r}, expected {FORMAT}; "
                f"write it anew with `transprune inspect --json`"
            )
        try:
            space = read_record(cls, {name: part for name, part in value.items() if name not in BESIDE})
            space._check_parts()
        except ValueError as error:
            raise SpaceError(f"cannot read a search space: {error}") from error
        return space

    def _check_parts(self) -> None:
        """Checks that the records fit together.

        Raises:
            ValueError: They do not; the message names the place.
        """
        for group, leader in zip(self.groups, self.leaders, strict=True):
            _check_candidates(group.name, group.candidates, group.width)
            first = self.groups[leader]
            if len(group.candidates) != len(first.candidates):
                raise ValueError(
                    f"{group.name!r} is tied to {first.name!r} with {len(group.candidates)} candidates, expected "
                    f"{len(first.candidates)} as there"
                )
        for stage in self.stages:
            _check_candidates(stage.name, stage.candidates, stage.depth)
            _check_order(stage)
            if not len(stage.blocks) == len(stage.outputs) == stage.depth or len(stage.parts) not in (0, stage.depth):
                raise ValueError(
                    f"stage {stage.name!r} has {len(stage.blocks)} blocks and {len(stage.outputs)} outputs, "
                    f"expected {stage.depth} of each"
                )
        known = {None, *self.group_index}
        for stage in self.stages:  # the output of a stage comes from a group or from an earlier stage
            _check_sources(stage.name, stage.outputs, known)
            known.add(stage.name)
        for layer in self.layers:
            _check_sources(layer.name, (layer.inputs, layer.outputs), known)

    def _pick(self, choose: Callable[[Sequence[int]], int]) -> Architecture:
        sizes = [choose(choice.candidates) for choice in self.choices]
        for position, leader in enumerate(self.leaders):
            if leader != position:
                sizes[position] = self.groups[position].candidates[self.groups[leader].candidates.index(sizes[leader])]
        return self.architecture_of(sizes)


def _own_name(name: str, known: Collection[str]) -> str | None:
    """The name among those known of a layer, of the product with its bias, or of a further group that it produces."""
    ways = (name, name.removesuffix(".bias"), name.partition(":")[0])
    return next((each for each in ways if each in known), None)


def _check_order(stage: DepthStage) -> None:
    if not stage.order:
        return
    if sorted(stage.order) != list(range(stage.depth)):
        raise ValueError(
            f"stage {stage.name!r} has the order {list(stage.order)}, expected each of its {stage.depth} blocks once"
        )
    stuck = [stage.blocks[place] for place in stage.order[1:] if place not in stage.free]
    if stuck:
        raise ValueError(
            f"stage {stage.name!r} has the order {list(stage.order)}, and {stuck[0]!r} cannot go before those "
            "behind it; expected it first, or none"
        )


def _check_sources(name: str, sides: Sequence[Channels], known: Collection[str | None]) -> None:
    for part in (part for channels in sides for part in channels.parts):
        if part.source not in known:
            raise ValueError(
                f"{name!r} speaks of {part.source!r}, expected a group or a stage (of a stage: one before it)"
            )


def _check_candidates(name: str, candidates: tuple[int, ...], full: int) -> None:
    if not candidates or list(candidates) != sorted(set(candidates)) or candidates[0] < 1 or candidates[-1] != full:
        raise ValueError(
            f"{name!r} has the candidates {list(candidates)}, expected ascending ones from at least 1 to {full}"
        )


def width_candidates(width: int, ratios: Sequence[float] = PAPER_RATIOS, *, divisor: int = 1) -> tuple[int, ...]:
    """The widths that a layer may have: `int(width · ratio)`, duplicates merged, ascending.

    Args:
        width: Full width (channels).
        ratios: Shares of the full width, each in (0, 1]; the full width is always a candidate.
        divisor: Candidates below the full width are rounded to its multiples (to the nearest, at least one).

    Example:
        >>> width_candidates(16)
        (4, 6, 8, 9, 11, 12, 14, 16)
    """
    at_least("width", width, 1)
    at_least("divisor", divisor, 1)
    return tied_candidates([(width, divisor)], ratios)[0]


def tied_candidates(widths: Sequence[tuple[int, int]], ratios: Sequence[float] = PAPER_RATIOS) -> list[tuple[int, ...]]:
    """`width_candidates` of several layers at the same shares, of which those stay at which all their widths differ.

    Args:
        widths: Full width and divisor of each.
        ratios: As of `width_candidates`.

    Example:
        >>> tied_candidates([(16, 1), (4, 1)], (0.25, 0.3, 0.5))
        [(4, 8, 16), (1, 2, 4)]
    """

    def at(share: float, width: int, divisor: int) -> int:
        cut = int(width * share)
        return max(1, cut if divisor == 1 else max(divisor, round(cut / divisor) * divisor))

    kept = [[width for width, _ in widths]]
    for share in sorted(ratios, reverse=True):
        smaller = [at(share, width, divisor) for width, divisor in widths]
        if all(one < other for one, other in zip(smaller, kept[0], strict=True)):
            kept.insert(0, smaller)
    return list(zip(*kept, strict=True))


def depth_candidates(depth: int) -> tuple[int, ...]:
    """The depths that a stage may have, as in the paper's CIFAR networks.

    All up to 3 blocks; for more, the odd ones and the full depth.

    Example:
        >>> depth_candidates(18)
        (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)
    """
    at_least("depth", depth, 1)
    if depth <= 3:
        return tuple(range(1, depth + 1))
    return tuple(sorted({*range(1, depth + 1, 2), depth}))


MOST_CANDIDATES = 24
"""Candidates of a stage of branches, at most."""


def branch_candidates(depth: int) -> tuple[int, ...]:
    """The numbers of branches that a stage may keep: all of them, or evenly spaced ones of many.

    Example:
        >>> branch_candidates(4), branch_candidates(96)[:3]
        ((1, 2, 3, 4), (4, 8, 12))
    """
    return even_depth_candidates(depth, count=min(depth, MOST_CANDIDATES))


def even_depth_candidates(depth: int, *, count: int) -> tuple[int, ...]:
    """Evenly spaced depths, as in the paper's ImageNet networks: `int(depth · j / count)`, j = 1 … count.

    There, `count` is the number of blocks of the smallest stage.

    Example:
        >>> even_depth_candidates(4, count=3)
        (1, 2, 4)
    """
    return tuple(sorted({max(1, depth * j // count) for j in range(1, count + 1)}))
