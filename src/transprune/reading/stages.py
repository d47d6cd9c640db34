"""Finds runs of blocks that can be left out.

In `nn.Sequential(Down(16, 32), Block(32), Block(32), Block(32))` the three blocks are a run: the output of each has the
shape that the next layer expects, so the last ones can be left out. `Down` is of another class and must stay. If a skip
connection read the second block's output too, the run would end with that block, since its output is always needed.

A block may also read what no block of the run makes, as those of a transformer read a mask or an encoder's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

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
    entry: fx.Node | None = field(default=None, repr=False)
    """What the first block reads as the others read the block before; None if not clear, or of another shape."""

    @cached_property
    def inside(self) -> frozenset[fx.Node]:
        """The calls inside all blocks."""
        return frozenset().union(*self.members)


@dataclass(frozen=True)
class Stages:
    """The runs of a trace, and what only looks like one."""

    runs: tuple[BlockRun, ...]
    """In the order in which they run."""
    missed: tuple[tuple[str, str], ...]
    """Containers of blocks that follow each other and are no run, with the reason."""


def find_stages(trace: Trace) -> Stages:
    """The outermost runs of blocks in `nn.Sequential` and `nn.ModuleList` containers.

    A run is two or more neighbours in a container, of one class and with submodules, with outputs of one shape. Each
    reads the output of the one before, which nothing else does, and at most what no block of the run makes.
    """
    calls = _calls_by_path(trace)
    stages: list[BlockRun] = []
    missed: dict[str, str] = {}
    for name, module in trace.model.named_modules():
        is_inside_another = any(is_inside(name, block) for stage in stages for block in stage.blocks)
        if not name or is_inside_another or type(module) not in (nn.Sequential, nn.ModuleList):
            continue
        children = list(module.named_children())
        if len(children) == len(list(module.children())) == _entries(module):
            found = _Container(trace, name, children, calls)
            stages += found.stages()
            missed |= found.missed()
    order = {node: position for position, node in enumerate(trace.calls)}
    runs = sorted(stages, key=lambda stage: order[stage.exits[0]])
    outside = {
        name: why
        for name, why in missed.items()
        if not any(is_inside(name, each) for run in runs for each in run.blocks)
    }
    return Stages(tuple(runs), tuple(outside.items()))


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


class _Container:
    """The blocks of one container."""

    def __init__(
        self, trace: Trace, name: str, children: Sequence[tuple[str, nn.Module]], calls: Mapping[str, list[fx.Node]]
    ) -> None:
        self.trace, self.name = trace, name
        self.blocks = {f"{name}.{each}": module for each, module in children}
        self.nodes = {path: frozenset(calls.get(path, ())) for path in self.blocks}
        self.sharing = _sharing(trace.model, list(self.blocks))

    def stages(self) -> Iterator[BlockRun]:
        """The runs of neighbours."""
        run: list[str] = []
        for path, module in self.blocks.items():
            if run and self._break(run[-1], path) is None:
                run.append(path)
                continue
            yield from self._stage(run)
            run = [path] if _is_block(module) and self._why_alone(path) is None else []
        yield from self._stage(run)

    def missed(self) -> dict[str, str]:
        """Why there is no run, if blocks of one class follow each other."""
        if any(True for _ in self.stages()):
            return {}
        if len(self.blocks) == 1:
            [(path, module)] = self.blocks.items()
            is_repeated = _is_block(module) and self._is_repeated(path)
            return (
                {self.name: f"its only block {path!r} runs several times, with the same weights"} if is_repeated else {}
            )
        for (before, first), (path, second) in pairwise(self.blocks.items()):
            if type(first) is type(second) and _is_block(first) and self._depends(path, before):
                why = self._break(before, path)
                return {self.name: why if why is not None else "what follows writes over the output of its last block"}
        return {}

    def _break(self, before: str, path: str) -> str | None:
        """Why a block cannot follow the one before it in a run; None if it can."""
        if type(self.blocks[path]) is not type(self.blocks[before]):
            return f"{path!r} is of another class than {before!r}"
        why = self._why_alone(before) or self._why_alone(path)
        if why is not None:
            return why
        handed_on, next_one = self._exits(before)[0], self._exits(path)[0]
        nodes = self.nodes[path]
        if not any(handed_on in self.trace.reads(node) for node in nodes):
            return f"{path!r} does not read the output of {before!r}"
        if not nodes.issuperset(set(handed_on.users) - self.nodes[before]):
            return f"something beside {path!r} reads the output of {before!r}"
        if shape(handed_on) != shape(next_one):
            return f"the outputs of {before!r} and {path!r} have other shapes: {shape(handed_on)}, {shape(next_one)}"
        return None

    def _why_alone(self, path: str) -> str | None:
        """Why a block cannot be left out, whatever its neighbours; None if it can."""
        exits = self._exits(path)
        if path in self.sharing:
            return f"{path!r} shares parameters with other parts of the network"
        if not exits:
            return f"{path!r} does not run, or nothing reads its outputs"
        if len(exits) > 1:
            return f"{path!r} hands on {len(exits)} tensors rather than one"
        return None if shape(exits[0]) is not None else f"{path!r} hands on something else than a tensor"

    def _exits(self, path: str) -> list[fx.Node]:
        """What a block hands on."""
        nodes = self.nodes[path]
        return [node for node in nodes if not nodes.issuperset(node.users)]

    def _is_repeated(self, path: str) -> bool:
        read = [source for node in self.nodes[path] for source in node.all_input_nodes if self.trace.parameter(source)]
        return len(read) > len(set(read))

    def _depends(self, path: str, before: str) -> bool:
        """Whether a block reads what another one makes, whatever lies between them."""
        seen: set[fx.Node] = set()
        ahead = list(self.nodes[path])
        while ahead:
            node = ahead.pop()
            if node in self.nodes[before]:
                return True
            if node not in seen:
                seen.add(node)
                ahead += node.all_input_nodes
        return False

    def _stage(self, run: Sequence[str]) -> Iterator[BlockRun]:
        if len(run) < 2:
            return
        exits = tuple(self._exits(path)[0] for path in run)
        members = tuple(self.nodes[path] for path in run)
        if _is_changed_in_place(exits[-1], members[-1]) and len({operator(node) for node in exits}) > 1:
            return  # the reader overwrites it, but at another depth autograd may need it
        last = run[-1].rsplit(".", 1)[-1]
        name = self.name if len(run) == len(self.blocks) else f"{run[0]}-{last}"
        yield BlockRun(
            name=name,
            container=self.name,
            blocks=tuple(run),
            exits=exits,
            members=members,
            entry=self._entry(exits, members),
        )

    def _entry(self, exits: Sequence[fx.Node], members: Sequence[frozenset[fx.Node]]) -> fx.Node | None:
        first, *others = ({source for node in nodes for source in self.trace.reads(node)} for nodes in members)
        wanted = exits[0].meta["val"]
        found = [
            source
            for source in first.difference(members[0], *others)
            if shape(source) == shape(exits[0]) and source.meta["val"].dtype == wanted.dtype
        ]
        return found[0] if len(found) == 1 else None


def _sharing(model: nn.Module, blocks: Sequence[str]) -> set[str]:
    """Blocks that share parameters with modules outside of them, and so cannot be left out."""
    paths: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(name)
    several = [names for names in paths.values() if len(names) > 1]
    return {block for block in blocks for names in several if len({is_inside(name, block) for name in names}) > 1}


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


def is_inside(path: str, container: str) -> bool:
    """Whether a module's path is the container's or lies below it."""
    return not container or path == container or path.startswith(f"{container}.")
