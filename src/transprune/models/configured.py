"""Networks whose sizes stand in a configuration, such as those of transformers: which number says which sizes.

Nothing is known of any class beforehand. Each number of the configuration is changed in turn and the network built anew
without memory; the parameters whose shapes change are those that the number speaks of.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from typing import Any

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.errors import ModelError
from transprune.space import SearchSpace

Place = tuple[str, int]
"""A parameter or buffer by its path, and one of its axes."""
Shapes = Mapping[str, tuple[int, ...]]
LONGEST = 16
"""Entries of a list of numbers that are still looked at one by one, such as those of a hierarchical transformer."""


@dataclass(frozen=True)
class Number:
    """A number of a configuration, and what it decides."""

    path: str
    """Attributes of the configuration, or positions in a list, with points between them."""
    value: int
    axes: frozenset[Place]
    """The axes that grow with it."""
    containers: frozenset[str]
    """Paths of the containers that hold as many blocks."""


def is_configured(model: nn.Module) -> bool:
    """Whether a network was built from a configuration that it keeps."""
    return hasattr(getattr(model, "config", None), "to_dict")


def numbers_of(model: nn.Module, widths: Collection[int] = ()) -> tuple[Number, ...]:
    """The numbers in a network's configuration that decide about shapes. The network is untouched.

    Args:
        model: The network.
        widths: Sizes that are looked for where the configuration leaves a number open (None), so that the class
            decides.

    Raises:
        ModelError: It has no configuration, or its class does not build it from that alone.
    """
    if not is_configured(model):
        raise ModelError(
            f"cannot tie the sizes of {type(model).__name__} by its configuration: it has none; expected a network "
            "with a `config`, as those of transformers have, or patterns of layers"
        )
    try:
        shapes = _shapes(model, {}, {})
    except Exception as error:  # whatever a class may raise
        raise ModelError(
            f"cannot build {type(model).__name__} anew from its configuration ({type(error).__name__}: {error}); "
            "expected a class that takes the configuration alone"
        ) from error
    numbers = [_looked_at(model, shapes, path, value) for path, value in _whole_numbers(model.config)]
    numbers += [
        _looked_at(model, shapes, path, width)
        for path in _open_numbers(model.config)
        for width in sorted({*widths})
        if _shapes_if_taken(model, {path: width}) == shapes
    ]
    return tuple(number for number in numbers if number is not None)


@dataclass(frozen=True)
class Said:
    """What a configuration says of the sizes of a network."""

    by: Mapping[str, str]
    """For each choice that it says something of, by name, what its size is: `intermediate_size`; or, of heads that
    share keys, each of `num_key_value_heads, num_attention_heads/4`."""
    steps: Mapping[str, int]
    """For each of these, the number whose multiples the class takes."""
    reasons: Mapping[str, str]
    """For the other choices: why the configuration does not say their size."""


Carried = Mapping[Place, frozenset[int]]
"""Where the channels of a group lie: by axis, the sizes of the heads, groups or whole axis that they make up there."""


def said_of(model: nn.Module, widths: Mapping[str, tuple[int, Carried]], depths: Mapping[str, int]) -> Said:
    """Which numbers of a network's configuration are the sizes of its choices.

    Args:
        model: The network.
        widths: Each group's width and where its channels lie, by its name.
        depths: The number of blocks of each container, by its path.

    Raises:
        ModelError: As `numbers_of`.
    """
    saying = _Saying(model, {name: width for name, (width, _) in widths.items()})
    for name, (_, carried) in widths.items():
        saying.find(name, carried)
    saying.drop_shared()
    for stage, depth in depths.items():
        found = [each for each in saying.numbers if each.value == depth and stage in each.containers]
        alone = [each.path for each in found if len(each.containers) == 1 and not each.axes]
        if alone:
            saying.by[stage] = (alone[0],)
        else:
            saying.reasons[stage] = "no number of the configuration is its depth alone"
    return saying.said()


class _Saying:
    """The search for the numbers that are the sizes of groups."""

    def __init__(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        self.model, self.widths = model, widths
        # A feed-forward width that is left open is four times the hidden one in most classes.
        self.numbers = numbers_of(model, {factor * width for width in widths.values() for factor in (1, 4)})
        paths = {id(tensor): name for name, tensor in _tensors(model)}
        self._own = own = {name: paths[id(tensor)] for name, tensor in _tensors(model)}
        """One path for each tensor that has several."""
        self.axes = {each.path: {(own.get(name, name), axis) for name, axis in each.axes} for each in self.numbers}
        self.places: dict[str, set[Place]] = {}
        self.by: dict[str, tuple[str, ...]] = {}
        """The paths of the numbers, by the name of the group or stage."""
        self.reasons: dict[str, str] = {}

    def find(self, group: str, carried: Carried) -> None:
        """The fewest numbers that together say the group's size wherever its channels lie, each in other places."""
        width = self.widths[group]
        sizes = {(self._own.get(name, name), axis): found for (name, axis), found in carried.items()}
        places = self.places[group] = set(sizes)
        fitting = {
            each.path: self.axes[each.path] & places
            for each in self.numbers
            if each.value % width == 0
            and self.axes[each.path] & places
            and all(each.value in sizes[place] for place in self.axes[each.path] & places)
        }
        for count in range(1, len(fitting) + 1):
            found = [
                paths
                for paths in combinations(fitting, count)
                if sum(len(fitting[path]) for path in paths) == len(places)
                and set[Place]().union(*(fitting[path] for path in paths)) == places
            ]
            if len(found) == 1:
                self.by[group] = found[0]
                return
            if found:
                ways = " or ".join(" with ".join(paths) for paths in found)
                self.reasons[group] = f"the configuration does not tell which number is its size: {ways}"
                return
        self.reasons[group] = "no number of the configuration is its size alone"

    def drop_shared(self) -> None:
        """Drops what is said by a number that is the size of something else as well."""
        while True:
            dropped = {group: reason for group, paths in self.by.items() for reason in self._shared(paths, group)}
            if not dropped:
                return
            self.reasons |= dropped
            self.by = {group: paths for group, paths in self.by.items() if group not in dropped}

    def _shared(self, paths: tuple[str, ...], group: str) -> Iterator[str]:
        for path in paths:
            members = [each for each, others in self.by.items() if path in others]
            others = self.axes[path] - set[Place]().union(*(self.places[each] for each in members))
            if others:
                name, axis = min(others)
                yield f"the configuration's {path} is also the size of axis {axis} of {name!r}, which is not cut along"
            apart = next((each for each in members if self.widths[each] != self.widths[group]), None)
            if apart is not None:
                yield f"the configuration's {path} is also the size of {apart!r}, which is counted in other units"

    def said(self) -> Said:
        values = {each.path: each.value for each in self.numbers}
        by = {}
        for name, paths in self.by.items():
            ratios = {path: values[path] // self.widths.get(name, values[path]) for path in paths}
            by[name] = ", ".join(path if ratio == 1 else f"{path}/{ratio}" for path, ratio in ratios.items())
        steps = {tie: self._step(tie, self.widths[name]) for name, tie in by.items() if name in self.widths}
        return Said(by, steps, self.reasons)

    def _step(self, tie: str, width: int) -> int:
        """The least number whose multiples the class takes for a width."""
        for step in (each for each in range(1, width) if width % each == 0):
            sizes = [width - step, *([width - 2 * step] if width > 2 * step else [])]
            if all(_shapes_if_taken(self.model, _numbers_in(tie, size)) is not None for size in sizes):
                return step
        return width


def _numbers_in(tie: str, size: int) -> dict[str, int]:
    """The numbers of a configuration, by path, where a choice of this tie has a size."""
    found = {}
    for part in tie.split(", "):
        path, _, ratio = part.partition("/")
        found[path] = size * int(ratio or 1)
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def configured(student: nn.Module, model: nn.Module, space: SearchSpace, architecture: Architecture) -> nn.Module:
    """A smaller network as its class builds it from a configuration, with the student's weights, in evaluation mode.

    It needs nothing of this library any more: what `save_pretrained` writes, `from_pretrained` reads.

    Args:
        student: What `shrink(model, architecture, …)` gave, or that network trained further; untouched.
        model: The unpruned network.
        space: A space whose choices are tied by the configuration (`inspect(…, tie="config")`).
        architecture: The student's widths and depths.

    Raises:
        ModelError: The configuration cannot say the student's sizes; the message names a tensor that differs.
    """
    sizes: dict[str, int] = {}
    for choice, size in zip(space.choices, space.sizes_of(architecture), strict=True):
        if not choice.tie or sizes.setdefault(choice.tie, size) != size:
            problem = (
                f"{choice.tie} would be {sizes[choice.tie]} and {size}" if choice.tie else "none is its size alone"
            )
            raise ModelError(
                f"cannot say the sizes of a smaller {type(model).__name__} by the numbers of its configuration: of "
                f"{choice.name!r} {problem}; expected a space that the configuration ties (inspect with tie='config')"
            )
    kept = {stage.depth: stage.kept_in(architecture) for stage in space.stages}
    numbers = {path: value for tie, size in sizes.items() for path, value in _numbers_in(tie, size).items()}
    found = _built(model, numbers, kept)
    tensors = _counted_anew(student.state_dict(), [stage.name for stage in space.stages])
    difference = _difference(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tuple(tensor.shape) for name, tensor in found.state_dict().items()},
    )
    if difference is not None:
        raise ModelError(
            f"cannot say the sizes of a smaller {type(model).__name__} in its configuration: {difference}; expected a "
            "student of this network whose sizes the configuration ties (inspect with tie='config')"
        )
    found.load_state_dict(tensors)
    return found.to(next(student.parameters())).eval()


def _counted_anew(tensors: Mapping[str, torch.Tensor], containers: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors by paths in which the blocks of containers are numbered from 0 without gaps."""
    for container in containers:
        prefix = f"{container}."
        own = {name: name.removeprefix(prefix).partition(".") for name in tensors if name.startswith(prefix)}
        numbers = sorted({int(number) for number, _, _ in own.values() if number.isdigit()})
        places = {str(number): str(place) for place, number in enumerate(numbers)}
        tensors = {
            f"{prefix}{places.get(own[name][0], own[name][0])}.{own[name][2]}" if name in own else name: tensor
            for name, tensor in tensors.items()
        }
    return dict(tensors)


def _difference(student: Shapes, built: Shapes) -> str | None:
    for name in sorted(student.keys() | built.keys()):
        if student.get(name) != built.get(name):
            ways = [str(list(each[name])) if name in each else "missing" for each in (student, built)]
            return f"{name!r} is {ways[0]} in the student and {ways[1]} in what the configuration builds"
    return None


def _looked_at(model: nn.Module, before: Shapes, path: str, value: int) -> Number | None:
    """A number of the configuration; None if no shape depends on it alone."""
    for other, are_blocks in product((2 * value, value // 2), (False, True)):
        # Lists that say something of each block have as many entries as there are blocks.
        wanted = {value: [place % value for place in range(other)]} if are_blocks else {}
        after = _shapes_if_taken(model, {path: other}, wanted)
        if after is None:  # a number that others must fit
            continue
        axes = frozenset(
            (name, axis)
            for name, shape in before.items()
            if len(after.get(name, ())) == len(shape)
            for axis, size in enumerate(shape)
            if after[name][axis] != size
        )
        containers = frozenset(_containers(before.keys() ^ after.keys(), before.keys() & after.keys()))
        if axes or containers:
            return Number(path, value, axes, containers)
    return None


def _containers(changed: Iterable[str], common: Collection[str]) -> Iterator[str]:
    """Paths of the containers of blocks that only one of two networks has."""
    held = {".".join(parts[:end]) for name in common for parts in [name.split(".")] for end in range(1, len(parts))}
    for name in changed:
        parts = name.split(".")
        for end in range(1, len(parts)):
            if parts[end].isdigit() and ".".join(parts[: end + 1]) not in held:
                yield ".".join(parts[:end])
                break


def _shapes_if_taken(
    model: nn.Module, changed: Mapping[str, int], kept: Mapping[int, Sequence[int]] | None = None
) -> Shapes | None:
    """The shapes of the network that a class builds with some numbers changed; None if it refuses them."""
    try:
        return _shapes(model, changed, kept or {})
    except Exception:  # whatever a class may raise
        return None


def _shapes(model: nn.Module, changed: Mapping[str, int], kept: Mapping[int, Sequence[int]]) -> Shapes:
    with torch.device("meta"):
        built = _built(model, changed, kept)
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}


def _built(model: nn.Module, changed: Mapping[str, int], kept: Mapping[int, Sequence[int]]) -> nn.Module:
    """The network of a configuration with some numbers changed.

    Args:
        model: Gives its class and configuration.
        changed: Numbers by their paths.
        kept: For a number of blocks, the positions of those that are wanted: lists of that length, but for those of
            numbers, get the entries of these.
    """
    config: Any = copy.deepcopy(model.config)
    for path, value in changed.items():
        *parents, last = path.split(".")
        place = reduce(_inside, parents, config)
        if isinstance(place, list):
            place[int(last)] = value
        else:
            setattr(place, last, value)
    for holder in _parts(config):
        for name, value in list(vars(holder).items()):
            if isinstance(value, list) and len(value) in kept and not all(type(each) is int for each in value):
                setattr(holder, name, [value[place] for place in kept[len(value)]])
    if hasattr(config, "validate"):
        config.validate()
    build: Any = type(model)
    return build(config)  # type: ignore[no-any-return]


def _inside(place: Any, name: str) -> Any:
    return place[int(name)] if isinstance(place, list) else getattr(place, name)


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _parts(value)


def _whole_numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Paths and values of the numbers above 1."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _whole_numbers(value, f"{prefix}{name}.")
        elif type(value) is int and value > 1 and not name.startswith("_"):
            yield f"{prefix}{name}", value
        elif isinstance(value, list) and len(value) <= LONGEST:
            yield from (
                (f"{prefix}{name}.{at}", each) for at, each in enumerate(value) if type(each) is int and each > 1
            )


def _open_numbers(config: Any, prefix: str = "") -> Iterator[str]:
    """Paths of what is None, but for tokens."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _open_numbers(value, f"{prefix}{name}.")
        elif value is None and not name.startswith("_") and not name.endswith("_token_id"):
            yield f"{prefix}{name}"
