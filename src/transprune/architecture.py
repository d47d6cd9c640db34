"""One choice of all sizes: the width of every group and the depth of every stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from typing import Any, NamedTuple

from transprune.errors import SpaceError
from transprune.on_demand import check_fields


@dataclass(frozen=True)
class Architecture:
    """The sizes that make one network out of a search space.

    Groups and stages that it does not name keep their full size, so the empty architecture is the unpruned network.

    Example:
        >>> Architecture(widths={"stem.conv": 12}, depths={"stages.0": 2}).depths["stages.0"]
        2
        >>> kept = Architecture(blocks={"stages.0": ("stages.0.0", "stages.0.2")})
        >>> kept.depths, kept.kept("stages.0", ("stages.0.0", "stages.0.1", "stages.0.2"))
        ({'stages.0': 2}, (0, 2))
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    """Width (channels) by the name of the group."""
    depths: Mapping[str, int] = field(default_factory=dict)
    """Depth (blocks kept) by the name of the stage."""
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of the blocks kept, by the name of the stage; a stage that has only a depth keeps its first ones."""

    def __post_init__(self) -> None:
        check_fields(self)
        given: dict[str, Mapping[str, Any]] = {"width": self.widths, "depth": self.depths}
        for kind, sizes in given.items():
            for name, size in sizes.items():
                if isinstance(size, bool) or not isinstance(size, Integral) or int(size) < 1:
                    raise SpaceError(
                        f"cannot make an architecture: the {kind} of {name!r} is {size!r}; "
                        f"expected a whole number of at least 1"
                    )
        widths, depths = ({name: int(size) for name, size in sizes.items()} for sizes in given.values())
        object.__setattr__(self, "widths", widths)
        blocks = {name: tuple(paths) for name, paths in self.blocks.items()}
        for name, paths in blocks.items():
            depth = self.depths.get(name, len(set(paths)))
            if not paths or not depth == len(set(paths)) == len(paths):
                raise SpaceError(
                    f"cannot make an architecture: it keeps the blocks {', '.join(paths) or 'none'} of {name!r} and "
                    f"has the depth {depth} there; expected at least one block, each once, and as many as the depth"
                )
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "depths", {**depths, **{name: len(paths) for name, paths in blocks.items()}})

    def __hash__(self) -> int:
        return hash(tuple(frozenset(each.items()) for each in (self.widths, self.depths, self.blocks)))

    def kept(self, stage: str, blocks: Sequence[str]) -> tuple[int, ...]:
        """Positions of the blocks that it keeps of a stage, ascending.

        Args:
            stage: Name of the stage.
            blocks: Paths of all its blocks.
        """
        if stage not in self.blocks:
            return tuple(range(min(self.depths.get(stage, len(blocks)), len(blocks))))
        return tuple(place for place, path in enumerate(blocks) if path in self.blocks[stage])

    def __repr__(self) -> str:
        said, widths = [], sorted(self.widths.values())
        if widths:
            said.append(f"{len(widths)} width{'s' * (len(widths) > 1)} from {widths[0]} to {widths[-1]}")
        if self.depths:
            said.append(f"depths {' '.join(map(str, self.depths.values()))}")
        return f"Architecture({', '.join(said) or 'unpruned'})"

    def _repr_html_(self) -> str:
        each = [[Row(name, size, size) for name, size in sizes.items()] for sizes in (self.widths, self.depths)]
        return drawn(repr(self), *each)

    def diff(self, other: Architecture) -> dict[str, tuple[int | None, int | None]]:
        """Where two architectures differ: for each such group and stage its size here and there.

        Where one of them does not name it, the size is None: there it is full.

        Example:
            >>> Architecture(widths={"stem": 12, "head": 8}).diff(Architecture(widths={"stem": 16, "head": 8}))
            {'stem': (12, 16)}
        """
        here, there = ({**each.widths, **each.depths} for each in (self, other))
        names = dict.fromkeys([*here, *there])
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}

    def to_json(self) -> dict[str, Any]:
        """The architecture as plain values for `json.dumps`."""
        named = {"blocks": {name: list(paths) for name, paths in self.blocks.items()}} if self.blocks else {}
        return {"widths": dict(self.widths), "depths": dict(self.depths), **named}

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Reads what `to_json` wrote; other keys are ignored.

        Args:
            value: The parsed object, or its text.

        Raises:
            SpaceError: The text is not JSON, or a part is missing or of another type.
        """
        if isinstance(value, str):
            value = parse_json(value, "an architecture")
        sizes = value if isinstance(value, dict) else {}
        for key in ("widths", "depths"):
            if not isinstance(sizes.get(key), dict):
                raise SpaceError(
                    f"cannot read an architecture: found {key} = {sizes.get(key)!r}; "
                    f"expected an object with the keys 'widths' and 'depths', each a map from a name to a size"
                )
        blocks = sizes.get("blocks", {})
        if not isinstance(blocks, dict) or not all(isinstance(paths, list | tuple) for paths in blocks.values()):
            raise SpaceError(
                f"cannot read an architecture: found blocks = {blocks!r}; expected a map from the name of a stage to "
                f"the paths of the blocks that it keeps"
            )
        return cls(widths=sizes["widths"], depths=sizes["depths"], blocks=blocks)


class Row(NamedTuple):
    """One size in a drawing."""

    name: str
    full: int
    kept: int
    """0: dropped."""


def drawn(title: str, *parts: Sequence[Row]) -> str:
    """HTML with a bar for each size, of its full and its kept length, for notebooks; it needs no other library.

    Args:
        title: A line above.
        parts: Sizes that are drawn to one scale.
    """
    rows = [(row, max(each.full for each in part)) for part in parts for row in part]
    height = 14
    bars = "".join(
        f"<g transform='translate(0,{height * place})'>"
        f"<text x='215' y='10' text-anchor='end'>{escape(row.name[-34:])}</text>"
        f"<rect x='220' y='2' height='10' width='{300 * row.full / widest:.1f}' fill='#1f6feb' fill-opacity='.22'/>"
        f"<rect x='220' y='2' height='10' width='{300 * row.kept / widest:.1f}' fill='#1f6feb'/>"
        f"<text x='{226 + 300 * row.full / widest:.1f}' y='10'>{_sizes(row)}</text></g>"
        for place, (row, widest) in enumerate(rows)
    )
    style = "font:10px sans-serif;fill:currentColor"
    picture = f"<svg width='620' height='{height * len(rows) + 2}' style='{style}' role='img'>{bars}</svg>"
    return f"<div><p>{escape(title)}</p>{picture}</div>"


def _sizes(row: Row) -> str:
    if not row.kept:
        return "dropped"
    return str(row.full) if row.kept == row.full else f"{row.kept} of {row.full}"


def parse_json(text: str, what: str) -> Any:
    """Parses JSON text.

    Raises:
        SpaceError: The text is not JSON; the message names `what` and the place.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise SpaceError(f"cannot read {what}: the text is not JSON ({error})") from error
