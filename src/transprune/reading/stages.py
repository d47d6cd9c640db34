"""Finds runs of blocks that can be left out.

In `nn.Sequential(Down(16, 32), Block(32), Block(32), Block(32))` the three blocks are a run: the output of each has the
shape that the next layer expects, so the last ones can be left out. `Down` is of another class and must stay. If a skip
connection read the second block's output too, the run would end with that block, since its output is always needed.

A block may also read what no block of the run makes, as those of a transformer read a mask or an encoder's output.

Some blocks are several residual sums, such as the attention and the expansion of a transformer's.
Then the run can be read finer: each of these branches is a block of its own, and half a block can be left out. Branches
that read the same and are added together, x + attention(x) + expansion(x), are added one by one for that. What several
branches of a block read, such as a norm or gates that are computed once, goes with the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import fx, nn

from transprune.reading.trace import Trace, operator, shape


class KeptBlocks(nn.ModuleList):
    """A list without some of its blocks. The others have the names that they had, and the places that are left."""

    def __getitem__(self, place: int | slice) -> Any:
        found = list(self._modules.values())[place]
        return nn.ModuleList(found) if isinstance(found, list) else found


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, KeptBlocks)
"""Classes that hold blocks."""


FORMS = ("to", "_to_copy", "view", "reshape", "_unsafe_view", "flatten", "unflatten")
"""Operators that give what they read, in another type or shape."""


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
    branches: BlockRun | None = field(default=None, repr=False)
    """The same run with each branch as a block; None if no block is several residual sums."""
    sums: tuple[fx.Node | None, ...] = field(default=(), repr=False)
    """In a run of branches, the call that adds each to what it reads; None for a block that stays whole."""
    owners: tuple[str, ...] = ()
    """In a run of branches, the path of the block that each is a part of."""
    shared: tuple[frozenset[fx.Node], ...] = field(default=(), repr=False)
    """In a run of branches, the calls that each needs as others of its block do."""

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
    """The outermost runs of blocks in `nn.Sequential`, `nn.ModuleList` and `nn.ModuleDict` containers, subclasses too.

    A module that does nothing but run several blocks of one class, as the stages of timm's RegNet, is such a container.
    A run is two or more neighbours in a container, of one class and with submodules, with outputs of one shape. Each
    reads the output of the one before, which nothing else does, and at most what no block of the run makes. Where the
    first block reads another shape and the blocks hold runs of residual blocks, as the stages of Swin do, these are
    taken.
    """
    calls = calls_by_path(trace)
    computing = {trace.module_path(node) for node in trace.calls}
    containers: list[_Container] = []
    missed: dict[str, str] = {}
    for name, module in trace.model.named_modules():
        if not isinstance(module, CONTAINERS) and (name in computing or not _holds_blocks_alone(module)):
            continue
        children, entries = list(module.named_children()), list(module._modules.values())
        if len(children) == len(entries):
            containers.append(_Container(trace, name, children, calls))
        for each, child in children:
            if entries.count(child) > 1 and _is_block(child):
                missed[name] = (
                    f"{f'{name}.{each}'.lstrip('.')!r} stands in it {entries.count(child)} times, with the same weights"
                )
    found = [run for container in containers for run in container.stages()]
    stages: list[BlockRun] = []
    for run in found:
        if any(is_inside(run.container, block) for outer in stages for block in outer.blocks):
            continue
        inner = [each for each in found if any(is_inside(each.container, block) for block in run.blocks)]
        if run.entry is None and any(_is_residual(trace, each) for each in inner):
            missed[run.name] = "its first block reads another shape; the blocks inside of its blocks are searched"
        else:
            stages.append(run)
    inside = [block for stage in stages for block in stage.blocks]
    for container in containers:
        if not any(is_inside(container.name, block) for block in inside):
            missed |= container.missed()
    order = {node: position for position, node in enumerate(trace.calls)}
    runs = sorted(stages, key=lambda stage: order[stage.exits[0]])
    outside = {name: why for name, why in missed.items() if not any(is_inside(name, block) for block in inside)}
    return Stages(tuple(runs), tuple((name or "the network itself", why) for name, why in outside.items()))


def calls_by_path(trace: Trace) -> dict[str, list[fx.Node]]:
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
        modules = {f"{name}.{each}".lstrip("."): module for each, module in children}  # the network has an empty name
        self.nodes = {path: frozenset(calls.get(path, ())) for path in modules}
        self.blocks = {path: modules[path] for path in self._as_they_run(list(modules))}

    def _as_they_run(self, paths: Sequence[str]) -> list[str]:
        """The blocks in the order in which they run; one that does not run stays behind the one before it."""
        places = {node: place for place, node in enumerate(self.trace.calls)}
        starts, start = dict[str, int](), -1
        for path in paths:
            start = starts[path] = min(map(places.__getitem__, self.nodes[path]), default=start)
        return sorted(paths, key=starts.__getitem__)

    @cached_property
    def sharing(self) -> set[str]:
        """Blocks that share parameters with modules outside of them, and so cannot be left out."""
        return _sharing(self.trace.model, list(self.blocks))

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
        """Why there is no run, if blocks of one class follow each other; else why blocks like those of a run stay."""
        runs = list(self.stages())
        if runs:
            return self._left_alone({path for run in runs for path in run.blocks})
        if len(self.blocks) == 1:
            [(path, module)] = self.blocks.items()
            is_repeated = _is_block(module) and self._is_repeated(path)
            return (
                {self.name: f"its only block {path!r} runs several times, with the same weights"} if is_repeated else {}
            )
        following = [
            (before, path)
            for (before, first), (path, second) in pairwise(self.blocks.items())
            if _is_block(first) and _is_block(second) and self._depends(path, before)
        ]
        for before, path in following:
            if type(self.blocks[before]) is type(self.blocks[path]):
                why = self._break(before, path)
                return {self.name: why if why is not None else "what follows writes over the output of its last block"}
        kinds = [type(self.blocks[path]) for path in dict.fromkeys(path for pair in following for path in pair)]
        if len(set(kinds)) < len(kinds):  # those of a class take turns with others
            return {self.name: str(self._break(*following[0]))}
        return {}

    def _left_alone(self, in_runs: set[str]) -> dict[str, str]:
        """Why blocks stay whose neighbours, of the same class and with outputs of the same shape, are in a run."""
        found: dict[str, str] = {}
        for before, path in pairwise(self.blocks):
            shapes = [{shape(node) for node in self._exits(each)} for each in (before, path)]
            is_alike = type(self.blocks[before]) is type(self.blocks[path]) and bool(shapes[0] & shapes[1])
            for alone in {before, path} - in_runs if is_alike and {before, path} & in_runs else ():
                found[alone] = self._break(before, path) or "what follows writes over its output"
        return found

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
        if len(exits) > 1 and self._is_repeated(path):
            return f"{path!r} runs several times, with the same weights"
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
        name = (len(run) == len(self.blocks) and self.name) or f"{run[0]}-{last}"
        whole = BlockRun(
            name=name,
            container=self.name,
            blocks=tuple(run),
            exits=exits,
            members=members,
            entry=self._entry(exits, members),
        )
        yield replace(whole, branches=split(self.trace, whole))

    def _entry(self, exits: Sequence[fx.Node], members: Sequence[frozenset[fx.Node]]) -> fx.Node | None:
        first, *others = ({source for node in nodes for source in self.trace.reads(node)} for nodes in members)
        found = [source for source in first.difference(members[0], *others) if is_alike(source, exits[0])]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class _Part:
    """A part of a block that can be left out by itself."""

    members: frozenset[fx.Node]
    exit: fx.Node
    total: fx.Node | None
    """The call that adds it to what it reads."""
    shared: frozenset[fx.Node] = frozenset()
    """Calls that it needs, and other parts as well."""


def split(trace: Trace, run: BlockRun) -> BlockRun | None:
    """The run with each branch as a block; None if no block is several residual sums."""
    found: list[tuple[str, str, _Part]] = []
    for path, end, members, sums in _divided(trace, run):
        parts, names = sums, [_branch_name(trace, path, part.members) for part in sums]
        if len(parts) < 2 or None in names or len(set(names)) < len(names):
            parts, names = [_Part(members, end, None)], [path]
        found += [(path, str(name), part) for name, part in zip(names, parts, strict=True)]
    if len(found) == len(run.blocks):
        return None
    return replace(
        run,
        blocks=tuple(name for _, name, _ in found),
        exits=tuple(part.exit for *_, part in found),
        members=tuple(part.members for *_, part in found),
        sums=tuple(part.total for *_, part in found),
        owners=tuple(owner for owner, *_ in found),
        shared=tuple(part.shared for *_, part in found),
    )


def undivided(trace: Trace, run: BlockRun) -> list[str]:
    """The blocks that have no branches in a run of branches, except those that are a single residual sum."""
    whole = run.blocks if run.branches is None else run.branches.blocks
    return [path for path, _, _, parts in _divided(trace, run) if path in whole and len(parts) != 1]


def _divided(trace: Trace, run: BlockRun) -> Iterator[tuple[str, fx.Node, frozenset[fx.Node], list[_Part]]]:
    """Each block of a run, by its path: the call that ends it, its calls, and its residual sums."""
    order = {node: place for place, node in enumerate(trace.calls)}
    entries = (run.entry, *run.exits)
    for path, entry, end, members in zip(run.blocks, entries[:-1], run.exits, run.members, strict=True):
        calls = sorted(members, key=order.__getitem__)
        yield path, end, members, list(_parts(trace, entry, end, calls)) if entry is not None else []


def _parts(trace: Trace, entry: fx.Node, end: fx.Node, calls: Sequence[fx.Node]) -> Iterator[_Part]:
    """The branches of a block, each with what follows its sum, such as a norm.

    Where all that is still read of what follows from a block's input is one value, the block can be divided. It is,
    before each branch but the first, if the value is of the shape and type of what the block reads. Branches that are
    added one by one to what all of them read are divided as well.
    """
    waists = _waists(trace, entry, end, calls)
    totals = [
        (added_to[0], node)
        for node in waists[1:]
        if operator(node) == "add" and len(added_to := [each for each in waists if each in node.all_input_nodes]) == 1
    ]
    starts = [_in_first_form(start, waists, entry) for start, _ in totals]
    if not totals or not all(is_alike(start, entry) for start in starts) or not is_alike(end, entry):
        return
    exits = [*starts[1:], end]
    places = {node: place for place, node in enumerate(calls)}
    cuts = [places[start] + 1 for start in starts[1:]]
    needed = [_behind(each, set(calls), {entry, *exits}) for each in exits]
    for number, (first, last) in enumerate(pairwise([0, *cuts, len(calls)])):
        others = frozenset().union(*(each for other, each in enumerate(needed) if other != number))
        unread = {node for node in calls[first:last] if node not in needed[number]}
        members = (needed[number] | unread) - others
        yield _Part(frozenset(members), exits[number], totals[number][1], frozenset(needed[number] & others))


def _waists(trace: Trace, entry: fx.Node, end: fx.Node, calls: Sequence[fx.Node]) -> list[fx.Node]:
    """The entry, and values through which all goes that follows from it, or to which branches are added one by one."""
    last_read = {source: place for place, node in enumerate(calls) for source in trace.reads(node)}
    found, alive, following = [entry], {entry}, {entry}
    for place, node in enumerate(calls):
        if not following.isdisjoint(node.all_input_nodes):
            following.add(node)
        alive = {value for value in (*alive, node) if last_read.get(value, -1) > place or value is end}
        if alive & following == {node}:
            found += [*_sums_before(node, found), node]
    return found


def _sums_before(total: fx.Node, waists: Sequence[fx.Node]) -> list[fx.Node]:
    """The sums x + a and x + a + b, where a total is x + a + b + c and all branches read x; the first one first."""
    sums: list[fx.Node] = []
    node = total
    while operator(node) == "add" and not set(node.all_input_nodes) & set(waists):
        inner = node.args[0]
        if not isinstance(inner, fx.Node) or set(inner.users) != {node}:
            return []
        sums.insert(0, inner)
        node = inner
    return sums if operator(node) == "add" else []


def _behind(end: fx.Node, inside: set[fx.Node], stops: set[fx.Node]) -> set[fx.Node]:
    """A call and all that it follows from, up to certain values."""
    found, ahead = {end}, [end]
    while ahead:
        new = [each for each in ahead.pop().all_input_nodes if each in inside and each not in stops | found]
        found.update(new)
        ahead += new
    return found


def added_one_by_one(trace: Trace) -> Trace:
    """The trace with branches of blocks that are added together added one by one: (a + b) + x is (x + a) + b.

    The sum is the same but for rounding, and each branch has a place where it can be left out.
    """
    order = {node: place for place, node in enumerate(trace.calls)}
    is_changed = False
    for run in find_stages(trace).runs:
        for members in run.members:
            for total in sorted(members, key=order.__getitem__, reverse=True):
                is_changed |= total in trace.graph.nodes and _add_one_by_one(trace.graph, total, members, order)
    return replace(trace) if is_changed else trace  # which looks for its calls again


def _add_one_by_one(graph: fx.Graph, total: fx.Node, members: frozenset[fx.Node], order: Mapping[fx.Node, int]) -> bool:
    """Changes a sum of a value and several branches that read it, if it is one and they are added in another way."""
    if not _is_plain_sum(total):
        return False
    terms, inner = _terms(total, members)
    terms.sort(key=lambda term: order.get(term, -1))
    first, *branches = terms
    reads_first = [first in _behind(each, {*members, first}, set()) for each in branches]
    if len(branches) < 2 or not all(reads_first) or not all(is_alike(each, total) for each in terms):
        return False
    so_far = first
    for branch in branches[:-1]:
        with graph.inserting_after(branch):
            added = graph.call_function(torch.ops.aten.add.Tensor, (so_far, branch))
        added.meta = dict(total.meta)
        so_far = added
    total.target, total.args, total.kwargs = torch.ops.aten.add.Tensor, (so_far, branches[-1]), {}
    for node in inner:
        graph.erase_node(node)
    return True


def _terms(total: fx.Node, members: frozenset[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """What a sum adds, and the calls between, which nothing else reads, those that read others first."""
    terms, inner = list[fx.Node](), list[fx.Node]()
    for read in total.all_input_nodes:
        term, passed = read, list[fx.Node]()
        while term in members and len(term.users) == 1 and operator(term) == "dropout" and term.args[1] == 0:
            passed.append(term)
            term = term.all_input_nodes[0]
        if term in members and len(term.users) == 1 and _is_plain_sum(term):
            found = _terms(term, members)
            terms += found[0]
            inner += [*passed, term, *found[1]]
        else:
            terms.append(read)
    return terms, inner


def _is_plain_sum(node: fx.Node) -> bool:
    """Whether a call adds two tensors of one shape; one that writes over the first is read by nothing else."""
    if operator(node) != "add" or node.kwargs or len(node.all_input_nodes) != 2 or len(node.args) != 2:
        return False
    first, second = node.all_input_nodes
    is_read_again = is_in_place(node, first) and set(first.users) != {node}
    return is_alike(first, second) and is_alike(first, node) and not is_read_again


def _is_residual(trace: Trace, run: BlockRun) -> bool:
    """Whether each block of a run adds something to what it reads."""
    entries = zip((run.entry, *run.exits), run.exits, run.members, strict=False)
    order = {node: place for place, node in enumerate(trace.calls)}
    return all(
        entry is not None and any(True for _ in _parts(trace, entry, end, sorted(members, key=order.__getitem__)))
        for entry, end, members in entries
    )


def _in_first_form(value: fx.Node, waists: Sequence[fx.Node], entry: fx.Node) -> fx.Node:
    """What a value was in the shape and type of the entry: a cast or a view belongs to what reads it, a norm say."""
    while operator(value) in FORMS and (source := value.all_input_nodes[0]) in waists and is_alike(source, entry):
        value = source
    return value


def is_alike(value: fx.Node, other: fx.Node) -> bool:
    """Whether two tensors have one shape and type."""
    return shape(value) == shape(other) and value.meta["val"].dtype == other.meta["val"].dtype


def _branch_name(trace: Trace, block: str, members: frozenset[fx.Node]) -> str | None:
    """Path of the innermost module that holds the weights of a branch, or of the first and the last that have some.

    Vectors, such as those of norms, are no weights here.
    """
    paths = []
    for node in trace.calls:
        for source in node.all_input_nodes if node in members else ():
            path = trace.parameter(source)
            if path is not None and len(shape(source) or ()) > 1 and is_inside(path, block):
                paths.append(path.removeprefix(f"{block}.").split(".")[:-1])
    if not all(paths) or not paths:
        return None
    common = list(takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))
    if common:
        return ".".join([block, *(level[0] for level in common)])
    return f"{block}.{paths[0][0]}-{paths[-1][0]}"


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
    is_container = type(module) in CONTAINERS
    return any(module.children()) and not (is_container and any(_is_block(child) for child in module.children()))


def _holds_blocks_alone(module: nn.Module) -> bool:
    """Whether a module has nothing of its own but several blocks of one class."""
    children = list(module.children())
    is_of_one_class = len({type(child) for child in children}) == 1 and all(map(_is_block, children))
    return len(children) > 1 and is_of_one_class and not any(True for _ in module.parameters(recurse=False))


def is_inside(path: str, container: str) -> bool:
    """Whether a module's path is the container's or lies below it."""
    return not container or path == container or path.startswith(f"{container}.")
