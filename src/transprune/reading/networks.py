"""A caller's network: what wraps it, and what it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from inspect import signature
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from transprune.errors import ModelError
from transprune.runtime.structures import Network, copied

INNER = ("_orig_mod", "_forward_module")
"""Names under which `torch.compile` and Lightning Fabric keep the network that they wrap."""

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
"""Modules of torch that hold the network that they wrap as `module`."""

HANDLE = "ultralytics.engine.model.Model"
"""A module whose `train` begins a training and whose `eval` and call predict; by name, so that nothing is imported."""

REPLACED = "_original_forward"
"""Name under which accelerate keeps the original forward of a network when it replaces it."""


def names_of(kind: type) -> list[str]:
    """The full names of a class and its base classes, the furthest first, by which modules of others are known."""
    return [f"{each.__module__}.{each.__qualname__}" for each in reversed(kind.__mro__)]


def unwrapped(network: nn.Module) -> nn.Module:
    """The plain network inside its wrappers, if any.

    Known are `AveragedModel`, `DataParallel`, `DistributedDataParallel` (also as accelerate prepares it), Lightning
    Fabric and `torch.compile`. The parameters are the same tensors, without a prefix such as `module.` in their names.
    If accelerate replaced the forward, for mixed precision, the result is a shallow copy with the original one.

    Raises:
        ModelError: It cannot be copied, or is no network.
    """
    refuse_handle(network)
    check_copyable(network)
    return inside(network)


def inside(network: nn.Module) -> nn.Module:
    """The same, of a network that need only run."""
    while True:
        inner = network.module if isinstance(network, WRAPPERS) else None
        for name in INNER:
            inner = inner or network._modules.get(name)
        if not isinstance(inner, nn.Module):
            return _with_own_forward(network) if REPLACED in vars(network) else network
        network = inner


def refuse_handle(network: nn.Module) -> None:
    """Checks that a network is not ultralytics' object around one, whose methods do other things than a module's.

    Raises:
        ModelError: It is.
    """
    if HANDLE in names_of(type(network)):
        raise ModelError(
            f"cannot use the {type(network).__name__}: it is what ultralytics works with, and no network; expected the "
            "network that it holds, its `.model`"
        )


def check_copyable(network: nn.Module) -> None:
    """Checks that a network can be copied, and that it says of itself what is in it.

    Raises:
        ModelError: It or a part of it was compiled by `torch.jit`, a lazy module of it has not run, it keeps a state
            that is no tensor, or a method of its class tells of other parameters than it has.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"cannot use the {type(network).__name__}: torch.jit has compiled {repr(path) if path else 'it'}, so "
                "it cannot be read or cut; expected the nn.Module that it was made from"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ModelError(
                f"cannot use the {type(network).__name__}: {repr(path) if path else 'it'} has an extra state "
                "(`get_extra_state`), which would be lost in files of tensors; expected a network whose state are its "
                "parameters and buffers"
            )
    for name in TELLING:
        if getattr(type(network), name) is not getattr(nn.Module, name) and not _tells_all(network, name):
            raise ModelError(
                f"cannot use the {type(network).__name__}: its class overrides `{name}`, which tells of other things "
                f"than it holds, so neither costs nor weights can be told by it; expected a class with torch's own "
                f"`{name}`: give the other another name"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"cannot use the {type(network).__name__}: its {name!r} has no shape yet, as in a lazy module that has "
                f"not run; expected a network that was called once, model(example), before"
            )


TELLING = ("parameters", "named_parameters", "buffers", "named_buffers", "state_dict")
"""Methods by which a network tells what it holds."""


def _tells_all(network: nn.Module, name: str) -> bool:
    """Whether a method gives what torch's own would."""
    try:
        told, held = getattr(network, name)(), getattr(nn.Module, name)(network)
        if isinstance(held, Mapping):
            return list(told) == list(held)
        pairs = zip(told, held, strict=True)
        return all(
            one is other or (type(one) is tuple and one[0] == other[0] and one[1] is other[1]) for one, other in pairs
        )
    except (TypeError, ValueError):  # it takes or gives something else
        return False


def _with_own_forward(network: nn.Module) -> nn.Module:
    own = copy.copy(network)
    for name in ("forward", REPLACED):
        vars(own).pop(name, None)
    return own


@contextmanager
def untouched(network: nn.Module, *, with_hooks: bool = True) -> Iterator[None]:
    """Puts back what is written into a network while it runs, or its copies do, through hooks that they share with it.

    That is the modules' attributes, such as modes, and buffers.

    Args:
        network: The network.
        with_hooks: Whether what its hooks have collected is put back, too.
    """
    before: list[tuple[Any, Any]] = [(holder, copy.copy(holder)) for holder in _holders(network, with_hooks=with_hooks)]
    buffers = [each for each in network.buffers() if not (is_lazy(each) or each.is_inference())]
    contents = [(each, each._version, each.detach().clone()) for each in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, kept in contents:
                if buffer._version != version:
                    buffer.copy_(kept)
        for holder, content in before:
            if isinstance(holder, list):
                holder[:] = content
            elif {key: id(value) for key, value in holder.items()} != {key: id(content[key]) for key in content}:
                holder.clear()
                holder.update(content)


def _holders(network: nn.Module, *, with_hooks: bool) -> list[dict[Any, Any] | list[Any]]:
    """The attributes of the modules, and of what their hooks know if asked for, and dicts and lists in these."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [vars(module) for module in network.modules()]
    for module in network.modules() if with_hooks else ():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            waiting += [cell.cell_contents for cell in getattr(hook, "__closure__", None) or () if _is_filled(cell)]
            waiting.append(getattr(hook, "__self__", None))
            names, known = getattr(getattr(hook, "__code__", None), "co_names", ()), getattr(hook, "__globals__", {})
            waiting += [known[name] for name in names if isinstance(known.get(name), dict | list | nn.Module)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            waiting += [vars(module) for module in value.modules()]
            continue
        if not isinstance(value, dict | list | type | ModuleType):
            value = getattr(value, "__dict__", None)
        if isinstance(value, dict | list) and id(value) not in found:
            found[id(value)] = value
            inner = value.values() if isinstance(value, dict) else value
            waiting += [each for each in inner if isinstance(each, dict | list)]
    return list(found.values())


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def forming_hooks(module: nn.Module) -> dict[str, Callable[[nn.Module, Any], Any]]:
    """The hooks that compute a tensor of a module from its parameters before each forward, by the name of the tensor.

    The old forms of `weight_norm` and `spectral_norm` are such hooks, and the masks of `torch.nn.utils.prune`.
    """
    named = ((getattr(hook, "name", getattr(hook, "_tensor_name", "")), hook) for hook in _before_forward(module))
    return {name: hook for name, hook in named if isinstance(vars(module).get(name), Tensor)}


def _before_forward(module: nn.Module) -> Iterable[Callable[[nn.Module, Any], Any]]:
    return module._forward_pre_hooks.values()


@torch.no_grad()
def form_tensors(network: nn.Module) -> None:
    """Computes the tensors that hooks would compute before the next forward, from parameters that are new."""
    with evaluating(network):
        for module in network.modules():
            for form in forming_hooks(module).values():
                form(module, None)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode for a while: in training, reading a weight may change what it is computed from."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        set_mode(network, training=False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def set_mode(network: nn.Module, *, training: bool) -> None:
    """Puts a network into training or evaluation mode, without calling a `train` of its own, which may do anything."""
    for module in network.modules():
        module.training = training


def switched(network: Network, *, training: bool) -> Network:
    """A network that was put into a mode by the `train` of its classes, as one that keeps norms frozen needs it.

    A `train` that takes no mode is something else, such as the start of a training, and is not called; an `eval` of its
    own is not either.
    """
    own = getattr(network.train, "__func__", network.train)
    if own is not nn.Module.train and list(signature(network.train).parameters)[:1] == ["mode"]:
        network.train(training)
        return network
    network.training = training
    for child in network.children():
        switched(child, training=training)
    return network


def in_evaluation(model: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, as it is read."""
    refuse_handle(model)
    network = without_caches(copied(model))
    set_mode(network, training=False)
    return network


def without_caches(network: Network) -> Network:
    """The network, which returns no keys and values for a next token any more: they would fix the widths of heads.

    Args:
        network: A copy of a caller's network; its configuration is written to.
    """
    for config in _with_caches(network):
        config.use_cache = False
    return network


def has_caches(network: nn.Module) -> bool:
    """Whether a network is set to return keys and values for a next token."""
    return bool(_with_caches(network))


def _with_caches(network: nn.Module) -> list[Any]:
    configurations: Iterator[Any] = (getattr(module, "config", None) for module in network.modules())
    return [each for each in configurations if getattr(each, "use_cache", None) is True]


def blueprint(network: nn.Module) -> tuple[Any, ...]:
    """All that decides which operators a network runs: its modules, their settings, the shapes of its tensors.

    Networks with equal blueprints differ only in weights and mode: a copy has that of the original, even after sorting
    or training. An object that cannot be inspected counts by its class.
    """
    numbers: dict[int, int] = {}  # shared tensors have one number
    return tuple(
        (
            path,
            module.code if isinstance(module, fx.GraphModule) else type(module),
            tuple(
                (name, numbers.setdefault(id(tensor), len(numbers)), tensor.shape, tensor.dtype)
                for name, tensor in (*module._parameters.items(), *module._buffers.items())
                if tensor is not None
            ),
            None if isinstance(module, fx.GraphModule) else _content(_settings(module)),
        )
        for path, module in network.named_modules(remove_duplicate=False)
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, except its tensors and submodules."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in ("training", "_parameters", "_buffers", "_modules", *forming_hooks(module))
    }


def _content(value: Any, above: frozenset[int] = frozenset()) -> tuple[Any, ...]:
    """All that can be compared about a value; `above` are the ids of the objects around it, to end cycles."""
    if isinstance(value, ATOMS):
        return type(value), value
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, Tensor):
        is_told = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
        if isinstance(value, nn.Parameter) or not is_told:
            return value.shape, value.dtype
        return value.shape, value.dtype, value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    parts = () if id(value) in above else _parts(value)
    return type(value), *(_content(part, above | {id(value)}) for part in parts)


def _parts(value: Any) -> Iterable[Any]:
    match value:
        case dict():
            return [part for key in sorted(value, key=repr) for part in (key, value[key])]  # copies may reorder them
        case list() | tuple():
            return value
        case set() | frozenset():
            return sorted(value, key=repr)
        case partial():
            return value.func, value.args, value.keywords
        case MethodType():
            return (value.__func__,)
    is_opaque = isinstance(value, nn.Module) or hasattr(value, "__deepcopy__")
    return () if is_opaque else (getattr(value, "__dict__", None),)


PLAIN = bool | int | float | complex | str | bytes | None | Enum | torch.dtype | torch.device
ATOMS = PLAIN | type | FunctionType | BuiltinFunctionType
"""Types of values that are compared directly, or shared by the copies of a network."""
