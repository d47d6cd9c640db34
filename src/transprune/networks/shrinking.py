"""The smaller network that an architecture describes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from transprune.analysis.inspection import inspect
from transprune.analysis.trace import Example
from transprune.architecture import Architecture
from transprune.errors import OptionError
from transprune.layers import Layer
from transprune.networks.initialisation import initialise
from transprune.networks.surgery import put_module
from transprune.residual import ResidualSum, projection
from transprune.space import SearchSpace

StudentWeights = Literal["inherit", "scratch"]


def shrink(
    model: nn.Module, architecture: Architecture, example: Example, *, weights: StudentWeights = "inherit"
) -> nn.Module:
    """Builds the smaller network: an ordinary module of the model's own classes, with the model's parameter names.

    Blocks beyond the depth of a stage are dropped, layers are cut to the first channels of their widths, and residual
    sums whose two sides come to differ get a 1×1 projection on the shortcut. The model itself is untouched.

    Args:
        model: The network that the architecture is for.
        architecture: Widths and depths; those it does not name keep their full size. A width above the full one is
            possible, its new channels start at random.
        example: An input batch, or a tuple of the forward's positional arguments.
        weights: `inherit` keeps the first channels' weights (a new projection starts as the identity on the channels
            that both sides have); `scratch` draws new ones, as the paper does.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        SpaceError: The architecture does not belong to the model.
        OptionError: `weights` is unknown.
    """
    if weights not in ("inherit", "scratch"):
        raise OptionError(f"cannot shrink with weights={weights!r}; expected 'inherit' or 'scratch'")
    space = inspect(model, example)
    space.check(architecture)
    student = copy.deepcopy(model)
    for layer in space.layers:
        if not layer.is_repeat and space.is_kept(layer.name, architecture):
            _resize(
                student, layer, space.resolve(layer.inputs, architecture), space.resolve(layer.outputs, architecture)
            )
    for stage in space.stages:
        _cut(student, space, stage.name, architecture.depths.get(stage.name, stage.depth))
    if weights == "scratch":
        initialise(student)
    return student


def _cut(student: nn.Module, space: SearchSpace, stage: str, depth: int) -> None:
    container = student.get_submodule(stage)
    blocks = OrderedDict(list(container.named_children())[:depth])
    put_module(student, stage, nn.Sequential(blocks).train(container.training))


def _resize(student: nn.Module, layer: Layer, inputs: int, outputs: int) -> None:
    module = student.get_submodule(layer.name)
    if layer.operator == "projection":
        if inputs != outputs:
            _project(student, layer, inputs, outputs)
        return
    resized: nn.Module
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and layer.operator == "conv":
            return  # a convolution of several groups keeps its widths
        resized = _convolution(module, inputs, outputs)
    elif isinstance(module, nn.Linear):
        resized = nn.Linear(inputs, outputs, module.bias is not None)
    elif isinstance(module, nn.BatchNorm2d):
        resized = nn.BatchNorm2d(outputs, module.eps, module.momentum, module.affine, module.track_running_stats)
    else:
        return
    _inherit(resized, module)
    put_module(student, layer.name, resized)


def _convolution(module: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        groups=outputs if module.groups > 1 else 1,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )


def _project(student: nn.Module, layer: Layer, inputs: int, outputs: int) -> None:
    total = student.get_submodule(layer.name.removesuffix(".shortcut"))
    assert isinstance(total, ResidualSum)  # only residual sums have projections
    reference = next(student.parameters())
    added = projection(inputs, outputs, has_norm=total.has_norm).to(reference)
    nn.init.dirac_(next(added.parameters()))
    total.shortcut = added.train(total.training)


@torch.no_grad()
def _inherit(resized: nn.Module, module: nn.Module) -> None:
    """Copies the first channels of every parameter and buffer, and whether it trains."""
    resized.train(module.training)
    own = dict(module.named_parameters())
    resized.to(next(module.parameters(), torch.zeros(())))
    for name, target in [*resized.named_parameters(), *resized.named_buffers()]:
        source: Tensor = own[name] if name in own else module.get_buffer(name)
        overlap = tuple(slice(0, min(sizes)) for sizes in zip(target.shape, source.shape, strict=True))
        target[overlap] = source[overlap]
        target.requires_grad_(source.requires_grad)
