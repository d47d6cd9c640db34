"""Shrinking as zeroing: what a shrunk network computes is what the whole one does with its other channels at zero.

The kept channels are read off the student: each weight of a copy is set to its own index along one dimension, the copy
is shrunk, and the student's weights then tell which indices were kept. Nothing is asked of the library but `shrink`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shrink = Callable[[nn.Module], nn.Module]
"""Shrinks a network of the model's class to one certain architecture."""
Kept = Mapping[str, Sequence[Tensor]]
"""By the path of a parameter the kept indices along each of its dimensions."""


@torch.no_grad()
def kept_indices(model: nn.Module, shrink: Shrink) -> Kept:
    """Which indices of every parameter a student keeps; a parameter that it lacks keeps none."""
    student = dict(shrink(model).named_parameters())
    kept = {name: [torch.arange(size) for size in value.shape] for name, value in model.named_parameters()}
    shapes = {name: student[name].shape if name in student else (0,) * len(kept[name]) for name in kept}
    for dimension in range(max(map(len, shapes.values()))):
        cut = [name for name, sizes in shapes.items() if len(kept[name]) > dimension]
        cut = [name for name in cut if shapes[name][dimension] < len(kept[name][dimension])]
        if cut:
            numbers = dict(shrink(numbered(model, dimension)).named_parameters())
            for name in cut:
                kept[name][dimension] = numbers_along(numbers.get(name), dimension)
    return kept


def numbers_along(parameter: nn.Parameter | None, dimension: int) -> Tensor:
    """The indices that `numbered` left along a dimension; none where there is no parameter."""
    if parameter is None:
        return torch.zeros(0, dtype=torch.int64)
    return parameter.movedim(dimension, 0).reshape(parameter.shape[dimension], -1)[:, 0].long()


def numbered(model: nn.Module, dimension: int) -> nn.Module:
    """A copy whose weights are their own indices along a dimension."""
    network = copy.deepcopy(model)
    for parameter in network.parameters():
        if parameter.dim() > dimension:
            numbers = torch.arange(parameter.shape[dimension], dtype=parameter.dtype)
            parameter.copy_(numbers.view(-1, *[1] * (parameter.dim() - dimension - 1)).expand_as(parameter))
    return network


@torch.no_grad()
def zeroed(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of the model whose weights are zero where they are not kept; its norms see the kept channels only."""
    network = copy.deepcopy(model)
    for name, parameter in network.named_parameters():
        for dimension, indices in enumerate(kept[name]):
            dropped = torch.ones(parameter.shape[dimension], dtype=torch.bool)
            dropped[indices] = False
            parameter.movedim(dimension, 0)[dropped] = 0
    for name, module in network.named_modules():
        hook = norm_of_kept(module)
        channels = kept.get(f"{name}.weight", [torch.zeros(0)])[0]
        if hook is not None and 0 < len(channels) < len(module.weight):
            module.register_forward_hook(partial(hook, kept=channels))
    return network


def norm_of_kept(module: nn.Module) -> Callable[..., Tensor] | None:
    """What computes a norm over the kept channels alone; None for a module that is no norm over channels."""
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return layer_norm_of_kept
    return group_norm_of_kept if isinstance(module, nn.GroupNorm) else None


def layer_norm_of_kept(module: nn.LayerNorm, inputs: tuple[Tensor], _: Tensor, *, kept: Tensor) -> Tensor:
    axis = 1 if "2d" in type(module).__name__ else -1
    features = inputs[0].movedim(axis, -1)
    bias = None if module.bias is None else module.bias[kept]
    outputs = torch.zeros_like(features)
    outputs[..., kept] = F.layer_norm(features[..., kept], (len(kept),), module.weight[kept], bias, module.eps)
    return activated(module, outputs.movedim(-1, axis))


def group_norm_of_kept(module: nn.GroupNorm, inputs: tuple[Tensor], _: Tensor, *, kept: Tensor) -> Tensor:
    outputs = torch.zeros_like(inputs[0])
    for group in range(module.num_groups):
        indices = kept[kept // (module.num_channels // module.num_groups) == group]
        if len(indices):
            weight, bias = (None if own is None else own[indices] for own in (module.weight, module.bias))
            outputs[:, indices] = F.group_norm(inputs[0][:, indices], 1, weight, bias, module.eps)
    return activated(module, outputs)


def activated(module: nn.Module, outputs: Tensor) -> Tensor:
    """What timm's norms with an activation of their own make of the normalised features."""
    activation = getattr(module, "act", None)
    return activation(outputs) if isinstance(activation, nn.Module) else outputs


NORMS_WITHIN_MODULES = {"layer_norm": nn.LayerNorm, "group_norm": nn.GroupNorm}
OVER_CHANNELS = {"rms_norm", "instance_norm", "linalg_vector_norm", "var", "var_mean", "std"}


def hindrances(model: nn.Module, example: Tensor) -> list[str]:
    """The operators for which a channel at zero is not a missing channel; the norms that `zeroed` masks are none."""
    program = torch.export.export(model, (example,), strict=False)
    found = set()
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if name in OVER_CHANNELS or (name in {"mean", "amax"} and averages_channels(node)):
            found.add(name)
        if name == "conv1d" and node.args[0].meta["val"].shape[1] == 1:
            found.add("conv1d along channels")
        if name == "layer_norm" and (len(node.args) < 3 or node.args[2] is None):
            found.add("layer_norm without weights")
        if name in NORMS_WITHIN_MODULES and not isinstance(module_of(model, node), NORMS_WITHIN_MODULES[name]):
            found.add(name)
        if name == "batch_norm" and not isinstance(module_of(model, node), nn.modules.batchnorm._BatchNorm):
            found.add("batch_norm of weights")
    return sorted(found)


def averages_channels(node: torch.fx.Node) -> bool:
    sizes = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    dimensions = node.args[1] if len(node.args) > 1 else range(len(sizes))
    channels = {4: 1, 3: 2, 2: 1}.get(len(sizes))
    return channels in {int(each) % len(sizes) for each in dimensions}  # type: ignore[arg-type, union-attr]


def module_of(model: nn.Module, node: torch.fx.Node) -> nn.Module:
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {"": ("", "")}).values()]
    return model.get_submodule(paths[-1])
