"""Finds runs of blocks that can be cut from the end.

In `nn.Sequential(Down(16, 32), Block(32), Block(32), Block(32))` the three blocks are a run: the output of each has the
shape that the next layer expects, so the last ones can be left out. `Down` is of another class and must stay. If a skip
connection read the second block's output too, the run would end with that block, since its output is always needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx, nn

from transprune.reading.trace import Trace, operator, shape


@dataclass(frozen=True)
class BlockRun:
    """Consecutive blocks whose outputs have one shape."""

    name: str
    """Path of the container; of a part of it, its first and last block, such as `layers.1-3`."""
    container: str
    """Path of the container."""
    blocks: tuple[str, ...]
    """Paths of the blocks."""
    exits: tuple[fx.Node, ...] = field(repr=False)
    """The output of each block."""
    members: tuple[frozenset[fx.Node], ...] = field(repr=False)
    """The calls inside each block."""

    @cached_property
    def inside(self) -> frozenset[fx.Node]:
        """The calls inside all blocks."""
        return frozenset().union(*self.members)


def find_stages(trace: Trace) -> list[BlockRun]:
    """The outermost runs of blocks in `nn.Sequential` and `nn.ModuleList` containers, in the order in which they run.

    A run is two or more neighbours in a container, of one class and with submodules, each of which reads only the
    output of the one before, with outputs of one shape.
    """
    calls = _calls_by_path(trace)
    stages: list[BlockRun] = []
    for name, module in trace.model.named_modules():
        is_inside_another = any(is_inside(name, block) for stage in stages for block in stage.blocks)
        if not name or is_inside_another or type(module) not in (nn.Sequential, nn.ModuleList):
            continue
        children = list(module.named_children())
        if len(children) == len(list(module.children())) == _entries(module):
            stages += _runs(trace, name, children, calls)
    order = {node: position for position, node in enumerate(trace.calls)}
    return sorted(stages, key=lambda stage: order[stage.exits[0]])


def _entries(module: nn.Module) -> int:
    """Entries of a container; a module that stands in it twice counts twice."""
    return len(module) if isinstance(module, nn.Sequential | nn.ModuleList) else 0


def _calls_by_path(trace: Trace) -> dict[str, list[fx.Node]]:
    """The calls inside each module, by its path."""
    found: dict[str, list[fx.Node]] = {}
    for node in trace.calls:
        steps = trace.module_path(node).split(".")
        for count in range(1, len(steps) + 1):
            found.setdefault(".".join(steps[:count]), []).append(node)
    return found


def _runs(
    trace: Trace, container: str, children: Sequence[tuple[str, nn.Module]], calls: Mapping[str, list[fx.Node]]
) -> Iterator[BlockRun]:
    sharing = _sharing(trace.model, [f"{container}.{name}" for name, _ in children])
    run: list[tuple[str, fx.Node, frozenset[fx.Node]]] = []
    kind: type | None = None
    for name, child in children:
        path = f"{container}.{name}"
        nodes = frozenset(calls.get(path, ()))
        handed_on = _exit(nodes) if _is_block(child) and path not in sharing else None
        follows = bool(run) and handed_on is not None and type(child) is kind and _follows(trace, run[-1], nodes)
        if follows and handed_on is not None and shape(handed_on) == shape(run[-1][1]):
            run.append((path, handed_on, nodes))
            continue
        yield from _stage(container, run, len(children))
        run = [(path, handed_on, nodes)] if handed_on is not None else []
        kind = type(child)
    yield from _stage(container, run, len(children))


def _sharing(model: nn.Module, blocks: Sequence[str]) -> set[str]:
    """Blocks that share parameters with modules outside of them, and so cannot be left out."""
    paths: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(name)
    several = [names for names in paths.values() if len(names) > 1]
    return {block for block in blocks for names in several if len({is_inside(name, block) for name in names}) > 1}


def _stage(container: str, run: Sequence[tuple[str, fx.Node, frozenset[fx.Node]]], children: int) -> Iterator[BlockRun]:
    if len(run) < 2:
        return
    paths, exits, members = zip(*run, strict=True)
    if _is_changed_in_place(exits[-1], members[-1]) and len({operator(node) for node in exits}) > 1:
        return  # the reader overwrites it, but at another depth autograd may need it
    last = paths[-1].rsplit(".", 1)[-1]
    name = container if len(run) == children else f"{paths[0]}-{last}"
    yield BlockRun(name=name, container=container, blocks=paths, exits=exits, members=members)


def _is_changed_in_place(node: fx.Node, inside: frozenset[fx.Node]) -> bool:
    return any(is_in_place(user, node) for user in set(node.users) - inside)


def is_in_place(call: fx.Node, value: fx.Node) -> bool:
    """Whether a call overwrites a value that it reads."""
    name = getattr(call.target, "__name__", "").split(".")[0]
    return name.endswith("_") and not name.endswith("__") and call.args[:1] == (value,)


def _is_block(module: nn.Module) -> bool:
    """Whether a module has submodules; a plain container of blocks is not a block itself."""
    is_container = type(module) in (nn.Sequential, nn.ModuleList)
    return any(module.children()) and not (is_container and any(_is_block(child) for child in module.children()))


def _exit(nodes: frozenset[fx.Node]) -> fx.Node | None:
    """The output of a block; None if it has several, or none of a known shape."""
    handed_on = [node for node in nodes if not nodes.issuperset(node.users)]
    return handed_on[0] if len(handed_on) == 1 and shape(handed_on[0]) is not None else None


def _follows(trace: Trace, before: tuple[str, fx.Node, frozenset[fx.Node]], nodes: frozenset[fx.Node]) -> bool:
    """Whether a block reads only the output of the one before, and nothing else reads it."""
    _, handed_on, earlier = before
    entries = {source for node in nodes for source in trace.reads(node)} - nodes
    return entries == {handed_on} and nodes.issuperset(set(handed_on.users) - earlier)


def is_inside(path: str, container: str) -> bool:
    """Whether a module's path is the container's or lies below it."""
    return not container or path == container or path.startswith(f"{container}.")
