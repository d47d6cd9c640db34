"""Finding runs of blocks of which the last ones can be left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from transprune.analysis.trace import Trace, shape


@dataclass(frozen=True)
class BlockRun:
    """Blocks that run one after the other and hand on tensors of one shape."""

    name: str
    """Path of the container."""
    blocks: tuple[str, ...]
    """Paths of the blocks."""
    exits: tuple[fx.Node, ...]
    """The value that each block hands on."""


def find_stages(trace: Trace) -> list[BlockRun]:
    """The outermost `nn.Sequential` containers inside a model whose blocks can be cut from the end.

    A container counts when it has at least two children, all of one class and with modules of their own inside, each
    reading only what the one before hands on, and all handing on one shape. They come in the order in which they run.
    """
    stages: list[BlockRun] = []
    for name, module in trace.model.named_modules():
        inside_another = any(name.startswith(f"{stage.name}.") for stage in stages)
        if not name or inside_another or not _holds_blocks(module):
            continue
        blocks = tuple(f"{name}.{child}" for child, _ in module.named_children())
        exits = _exits(trace, blocks)
        # A forward that calls the blocks by number would miss those that are cut: the container itself must run.
        if exits is not None and all(name in trace.module_paths(node) for node in exits):
            stages.append(BlockRun(name=name, blocks=blocks, exits=exits))
    order = {node: position for position, node in enumerate(trace.calls)}
    return sorted(stages, key=lambda stage: order[stage.exits[0]])


def _holds_blocks(module: nn.Module) -> bool:
    children = list(module.children())
    return (
        type(module) is nn.Sequential
        and 2 <= len(children) == len(module)  # a block that comes twice is one child
        and all(type(child) is type(children[0]) and any(child.children()) for child in children)
    )


def _exits(trace: Trace, blocks: tuple[str, ...]) -> tuple[fx.Node, ...] | None:
    """The value each block hands on; None if the blocks are no chain of one shape."""
    members = [{node for node in trace.calls if is_inside(trace.module_path(node), block)} for block in blocks]
    exits: list[fx.Node] = []
    for position, nodes in enumerate(members):
        handed_on = [node for node in trace.calls if node in nodes and not nodes.issuperset(node.users)]
        if len(handed_on) != 1 or (exits and _entries(trace, nodes) != {exits[-1]}):
            return None
        following = members[position + 1] if position + 1 < len(members) else None
        if following is not None and not following.issuperset(set(handed_on[0].users) - nodes):
            return None
        exits += handed_on
    return tuple(exits) if len({shape(node) for node in exits}) == 1 else None


def _entries(trace: Trace, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    inside = set(nodes)
    return {source for node in inside for source in trace.inputs(node)} - inside


def is_inside(path: str, container: str) -> bool:
    """Whether a module's path is the container's or lies below it."""
    return not container or path == container or path.startswith(f"{container}.")
