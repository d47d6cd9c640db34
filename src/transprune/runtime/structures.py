"""Values with tensors in them, of any structure: a batch, the arguments of a forward, what a network returns.

Tensors may lie in tuples, lists, mappings, dataclasses, named tuples and other objects with attributes, beside flags,
texts and None. `parts_of` says what a value is made of, `mapped` makes another one of the same structure; all else
that takes values apart or puts them together goes through these two.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from transprune.errors import ModelError, first_line


class Inputs:
    """The arguments of a forward, where some are given by name beside others.

    A tuple gives arguments by position, a mapping gives them by name; this is both at once.

    Example:
        >>> Inputs(torch.zeros(8, 3), mask=torch.ones(8)).named.keys()
        dict_keys(['mask'])
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.positional, self.named = positional, named


def inputs_of(positional: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Inputs from the arguments of a call."""
    return Inputs(*positional, **named) if named else positional


@dataclass(frozen=True)
class Hole:
    """The place of a tensor in a value whose tensors are taken out."""

    number: int
    """How many tensors come before it."""


ATOMS = bool | int | float | complex | str | bytes | None | Enum | torch.dtype | torch.device | np.ndarray | np.generic
OPAQUE = type | nn.Module | FunctionType | MethodType | ModuleType | torch.Generator
"""Types of values that are never looked into."""
SHOWN = 4
"""How many entries of a list a message describes."""


def parts_of(value: Any) -> dict[Any, Any] | None:
    """What a value is made of, by key, place or attribute; None if it has no parts. Text keys are in order."""
    match value:
        case Tensor() | Hole():
            return None
        case Mapping():
            keys = list(value)
            return {key: value[key] for key in (sorted(keys) if all(isinstance(key, str) for key in keys) else keys)}
        case tuple() | list():
            return dict(enumerate(value))
    if isinstance(value, ATOMS | OPAQUE):
        return None
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value) if hasattr(value, each.name)}
    return dict(getattr(value, "__dict__", None) or {}) or None


def mapped(value: Any, change: Callable[[Any], Any], _above: tuple[int, ...] = ()) -> Any:
    """A value of the same structure with each tensor changed; what holds no tensor is the same object."""
    if isinstance(value, Tensor | Hole):
        return change(value)
    parts = None if id(value) in _above else parts_of(value)
    if parts is None:
        return value
    changed = {key: mapped(part, change, (*_above, id(value))) for key, part in parts.items()}
    return _with_parts(value, {key: part for key, part in changed.items() if part is not parts[key]}, changed)


def _with_parts(value: Any, changed: Mapping[Any, Any], parts: Mapping[Any, Any]) -> Any:
    if not changed:
        return value
    if isinstance(value, tuple | list):
        items = list(parts.values())
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    other = copy.copy(value)
    for key, part in changed.items():
        if isinstance(value, Mapping):
            other[key] = part
        else:
            object.__setattr__(other, key, part)
    return other


def leaves_in(
    value: Any, _above: tuple[int, ...] = (), *, is_left_out: Callable[[Any], bool] = lambda _: False
) -> Iterator[Any]:
    """The tensors of a value, or the holes where they were, in order; not those of parts that are left out."""
    if isinstance(value, Tensor | Hole):
        yield value
    elif id(value) not in _above and not is_left_out(value):
        for part in (parts_of(value) or {}).values():
            yield from leaves_in(part, (*_above, id(value)), is_left_out=is_left_out)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, in order.

    Example:
        >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor))


def is_cache(value: object) -> bool:
    """Whether something is a cache of `transformers`, which holds keys and values of what has been read."""
    return hasattr(value, "update") and hasattr(value, "get_seq_length")


def outputs_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a network's outputs, in order; not those of caches, which are there for its next call."""
    return (leaf for leaf in leaves_in(value, is_left_out=is_cache) if isinstance(leaf, Tensor))


def as_numbers(tensor: Tensor) -> Tensor:
    """The values of a tensor of any type, such as flags and labels, as numbers with which one can compute."""
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def emptied(value: Any) -> Any:
    """A value of the same structure with holes in the place of its tensors, which `filled` puts in again."""
    numbers = itertools.count()
    return mapped(value, lambda _: Hole(next(numbers)))


def filled(value: Any, tensors: Sequence[Any]) -> Any:
    """A value of the same structure with other tensors, in order."""
    remaining = iter(tensors)
    return mapped(value, lambda _: next(remaining))


def form_of(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """All of a value but its tensors, to compare: two values of one form can take each other's tensors.

    Lists and tuples are one kind, and so are mappings.
    """
    if isinstance(value, Tensor | Hole):
        return "tensor"
    parts = None if id(value) in _above else parts_of(value)
    if parts is None:
        return (type(value), value) if isinstance(value, ATOMS) and not isinstance(value, np.ndarray) else type(value)
    kind = "sequence" if isinstance(value, tuple | list) else "mapping" if isinstance(value, Mapping) else type(value)
    return kind, tuple((key, form_of(part, (*_above, id(value)))) for key, part in parts.items())


def to_plan(value: Any) -> Any:
    """The structure of a value in types that JSON has, from which `of_plan` makes another one.

    Raises:
        TypeError: It has objects in it that are no tensors, tuples, lists, mappings of texts, numbers or texts.
    """
    match value:
        case Tensor() | Hole():
            return {"tensor": True}
        case Inputs():
            return {"inputs": [to_plan(each) for each in value.positional], "named": to_plan(value.named)}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {"dict": {key: to_plan(value[key]) for key in value}}
        case tuple() | list() if not hasattr(value, "_fields"):
            return {"list" if isinstance(value, list) else "tuple": [to_plan(each) for each in value]}
        case None | bool() | int() | float() | str() if not isinstance(value, Enum):
            return value
    raise TypeError(f"{type(value).__name__} is a class of its own")


def of_plan(plan: Any) -> Any:
    """A value of the structure that `to_plan` described, with holes in the place of its tensors.

    Raises:
        ValueError: It is no such description.
    """
    match plan:
        case {"tensor": True}:
            return Hole(0)
        case {"inputs": [*positional], "named": {"dict": {**named}}}:
            return Inputs(*map(of_plan, positional), **{str(key): of_plan(part) for key, part in named.items()})
        case {"dict": {**parts}}:
            return {key: of_plan(part) for key, part in parts.items()}
        case {"list": [*items]}:
            return [of_plan(each) for each in items]
        case {"tuple": [*items]}:
            return tuple(of_plan(each) for each in items)
        case None | bool() | int() | float() | str():
            return plan
    raise ValueError(f"{plan!r} is no structure of inputs")


def as_inputs(example: Any) -> Any:
    """The example as a forward is given it: a single tensor is the only positional argument."""
    return (example,) if isinstance(example, Tensor) else example


def arguments_of(function: Callable[..., Any], inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of any structure as the positional and named arguments of a function, such as a network.

    A tuple gives positional arguments. A mapping gives them by name if the function has such arguments; a function that
    takes a single mapping gets it whole, as it gets anything else.
    """
    if isinstance(inputs, Inputs):
        return inputs.positional, dict(inputs.named)
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return inputs, {}
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        named = {key: inputs[key] for key in inputs}
        return ((), named) if _takes(function, named) else ((inputs,), {})
    return (inputs,), {}


def _takes(function: Callable[..., Any], named: Mapping[str, Any]) -> bool:
    signature = signature_of(function)
    try:
        return signature is not None and bool(signature.bind(**named))
    except TypeError:
        return False


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """What a function, or the forward of a network, takes; None if that is not known."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def bound(signature: inspect.Signature | None, inputs: Any) -> Any:
    """The values of all parameters of a function, whether inputs give them by position, by name or not at all.

    Raises:
        TypeError: The function does not take such inputs.
    """
    if signature is None:
        return inputs
    positional, named = arguments_of(_Taker(signature), inputs)
    try:
        call = signature.bind(*positional, **named)
    except TypeError:  # a mapping that was taken apart on the way
        if positional:
            raise
        call = signature.bind(named)
    call.apply_defaults()
    return tuple(call.arguments.values())


class _Taker:
    """A function that is known by its signature alone."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.__signature__ = signature

    def __call__(self, *positional: Any, **named: Any) -> None: ...


def called(function: Callable[..., Any], inputs: Any) -> Any:
    """What a function, such as a network, returns for inputs of any structure (see `arguments_of`).

    Example:
        >>> called(lambda image, scale=1: image.shape[0] * scale, {"image": torch.zeros(8, 3), "scale": 2})
        16

    Containers are handed over anew, so that a forward may write into them. Tensors are not: several networks are given
    the same.

    Raises:
        ModelError: The function wrote over a tensor of the inputs.
    """
    positional, named = arguments_of(function, _anew(inputs))
    tensors = [] if torch.compiler.is_compiling() else [each for each in tensors_in(inputs) if not each.is_inference()]
    before = [each._version for each in tensors]
    outputs = function(*positional, **named)
    if [each._version for each in tensors] != before:
        raise ModelError(
            f"cannot call {getattr(function, '__name__', type(function).__name__)}: it writes over its inputs, which "
            "others are given after it; expected one that works on a copy (`x = x.clone()` before the first operator "
            "that ends in `_` or has inplace=True)"
        )
    return outputs


def _anew(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """The same tensors in new containers."""
    parts = None if id(value) in _above else parts_of(value)
    if parts is None:
        return value
    anew = {key: _anew(part, (*_above, id(value))) for key, part in parts.items()}
    return _with_parts(value, anew, anew) if anew else copy.copy(value)


def on_device(value: Any, device: torch.device | str) -> Any:
    """The same value with its tensors on a device, as well as anything else with a method `to`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=torch.device(device).type != "cpu")  # copies to the CPU must be complete
    if hasattr(value, "to") and not isinstance(value, Mapping):
        return value.to(device)
    return mapped(value, lambda tensor: on_device(tensor, device))


SampleAxes = int | Sequence[int | None]
"""The axis of all tensors that counts samples, or that of each of them; None for those that all samples share."""


def has_samples(axis: SampleAxes) -> bool:
    """Whether any axis counts samples."""
    return isinstance(axis, int) or any(each is not None for each in axis)


def sliced(value: Any, places: slice, samples: int, axis: SampleAxes = 0) -> Any:
    """A value cut to some of its samples: slices of its tensors and lists with `samples` entries, all else unchanged.

    Example:
        >>> sliced({"image": torch.zeros(8, 3), "sizes": [1] * 8, "scale": torch.tensor(2.0)}, slice(0, 2), 8)["sizes"]
        [1, 1]
    """
    if not isinstance(axis, int):
        pairs = zip(tensors_in(value), axis, strict=True)
        return filled(value, [each if along is None else each[_along(along, places)] for each, along in pairs])
    if isinstance(value, Tensor):
        place = next((each for each in (axis, 0) if each < value.dim() and value.shape[each] == samples), None)
        return value if place is None else value[_along(place, places)]
    if isinstance(value, list) and len(value) == samples and not _shares_samples(value, samples):
        return value[places]
    parts = parts_of(value)
    if parts is None:
        return value
    cut = {key: sliced(part, places, samples, axis) for key, part in parts.items()}
    return _with_parts(value, {key: part for key, part in cut.items() if part is not parts[key]}, cut)


def _along(axis: int, places: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (places,)


def _shares_samples(values: list[Any], samples: int) -> bool:
    return any(isinstance(each, Tensor) and each.dim() > 0 and len(each) == samples for each in values)


def samples_in(inputs: Any, targets: Any = None, axis: SampleAxes = 0) -> int:
    """The number of samples of a batch: the size of that axis of the first input tensor that has one; 1 if none has.

    Inputs may begin with what all samples share, such as positions or a mask: where the first targets have as many
    entries as some input, that is the number. A list of tensors beside a list of as many targets, as detectors take,
    has one sample for each entry.

    Example:
        >>> samples_in({"positions": torch.zeros(1, 5), "tokens": torch.zeros(8, 5)}, torch.zeros(8))
        8
    """
    if not isinstance(axis, int):
        pairs = zip(tensors_in(inputs), axis, strict=True)
        return next((tensor.shape[along] for tensor, along in pairs if along is not None), 1)
    first = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
    if isinstance(first, list) and isinstance(targets, list) and len(first) == len(targets):
        return len(first)
    sizes = [tensor.shape[axis] for tensor in tensors_in(inputs) if tensor.dim() > axis]
    wanted = next((tensor.shape for tensor in tensors_in(targets)), ())
    agreed = [wanted[each] for each in (axis, 0) if each < len(wanted) and wanted[each] in sizes]
    return next(iter([*agreed, *sizes]), 1)


def joined(values: Sequence[Any], axis: SampleAxes = 0) -> Any:
    """Batches of one form as a single batch: their tensors one behind the other along the axis of their samples.

    Tensors without samples, of which the first input tensor decides how many there are, come from the first batch.
    """
    counts = [samples_in(value, axis=axis) for value in values]
    columns = list(zip(*(tensors_in(value) for value in values), strict=True))
    if isinstance(axis, int):
        return filled(values[0], [_joined(column, counts, axis) for column in columns])
    pairs = zip(columns, axis, strict=True)
    return filled(values[0], [column[0] if along is None else torch.cat(column, along) for column, along in pairs])


def _joined(tensors: tuple[Tensor, ...], counts: Sequence[int], axis: int) -> Tensor:
    for place in dict.fromkeys((axis, 0)):
        if all(each.dim() > place and each.shape[place] == count for each, count in zip(tensors, counts, strict=True)):
            return torch.cat(tensors, dim=place)
    return tensors[0]


def outline(value: Any) -> str:
    """A short description of a value for messages: types, keys and shapes.

    Example:
        >>> outline((torch.zeros(8, 3), {"label": torch.zeros(8)}))
        'a tuple of [8, 3] and a dict of label: [8]'
    """
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Inputs):
        return " and ".join([*map(outline, value.positional), *(f"{k}: {outline(v)}" for k, v in value.named.items())])
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of " + ", ".join(f"{key}: {outline(value[key])}" for key in value)
    if isinstance(value, tuple | list):
        more = [f"{len(value) - SHOWN + 1} more"] if len(value) > SHOWN else []
        items = [outline(item) for item in value[: SHOWN - len(more)]]
        return f"a {type(value).__name__} of " + (" and ".join([*items, *more]) or "nothing")
    parts = {key: part for key, part in (parts_of(value) or {}).items() if next(tensors_in(part), None) is not None}
    named = ", ".join(f"{key}: {outline(part)}" for key, part in parts.items())
    return f"a {type(value).__name__}" + (f" of {named}" if named else "")


def to_plain(value: Any) -> Any:
    """Converts a value to types that JSON has.

    Tensors and arrays become nested lists (scalars: numbers), tuples become lists, keys and paths become text, and
    numbers that are not finite become the texts `nan`, `inf` and `-inf`. Other values are returned unchanged.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network, known: Mapping[int, Any] | None = None) -> Network:
    """A deep copy of a network.

    Tensors that it keeps beside its parameters and that were computed from others, such as the weights that the old
    forms of `weight_norm` compute before each forward, are copied without their history, which `copy.deepcopy` refuses.

    Args:
        network: The network; untouched.
        known: What is put in the place of objects, by their ids.

    Raises:
        ModelError: It holds something that cannot be copied.
    """
    copies = dict(known or {})
    for module in network.modules():
        for kept in _pytree.tree_leaves(vars(module)):
            if isinstance(kept, Tensor) and not kept.is_leaf:
                copies.setdefault(id(kept), kept.detach().clone())
    try:
        return copy.deepcopy(network, copies)
    except Exception as error:  # what a network holds may refuse in any way
        raise ModelError(
            f"cannot copy the network {type(network).__name__}: {first_line(error)}; expected one that "
            f"copy.deepcopy(model) copies: keep open files, locks and the like outside of it, and detach what a "
            f"forward keeps"
        ) from error
