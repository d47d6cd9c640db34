"""Rules of elementwise operators, reductions and softmax, and of operators that create tensors or are unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from transprune.models.resnet import ResidualSum
from transprune.reading.axes import Axis, FreeSum, StageEnd, fix, fixed, has_samples, is_atom, mark, multiply, settle
from transprune.reading.coupling import Axes, Call, OperatorRule, Use
from transprune.reading.trace import is_own


def elementwise(call: Call) -> Axes:
    """Combines tensors entry by entry; axes of one entry are broadcast."""
    return broadcast(call, call.tensors(), call.shape)


def broadcast(call: Call, tensors: Sequence[Axes], sizes: Sequence[int]) -> Axes:
    """The axes of tensors that are broadcast to the given sizes; axes that meet are unified."""
    result: list[Axis | None] = [None] * len(sizes)
    for axes in tensors:
        for offset, axis in enumerate(reversed(axes), start=1):
            place = len(sizes) - offset
            known = result[place] if place >= 0 else None
            if place < 0 or axis.size != sizes[place]:
                continue
            if known is None:
                result[place] = axis
            else:
                call.unify(known, axis)
    return [call.fixed(size) if axis is None else axis for axis, size in zip(result, sizes, strict=True)]


def addition(call: Call) -> Axes:
    """Adds. The sides of a `ResidualSum` without a shortcut may differ in width."""
    main, other = call.axes("self"), call.axes("other")
    path = call.coupling.trace.module_path(call.node)
    module = call.coupling.trace.module(call.node)
    if (
        main is None
        or other is None
        or not isinstance(module, ResidualSum)
        or not isinstance(module.shortcut, nn.Identity)
        or len(call.shape) != 4  # a projection is a 2-D convolution
        or [axis.size for axis in main] != [axis.size for axis in other]
    ):
        return elementwise(call)
    name = f"{path}.shortcut"
    earlier = [use for use in call.coupling.uses if use.name == name]
    for use in earlier:  # one shortcut cannot serve all sums of a module that adds several times
        call.unify(use.outputs, use.inputs)
    if earlier or not is_separable(main[1]) or not is_separable(other[1]):
        return elementwise(call)
    for position in (0, 2, 3):
        call.unify(main[position], other[position])
    total = Axis(main[1].size, FreeSum(name, main[1], other[1]), is_unbound=False)
    call.coupling.add(
        Use(
            name=name,
            operator="projection",
            node=call.node,
            inputs=other[1],
            outputs=main[1],
            positions=(main[0], *main[2:]),
        )
    )
    return [main[0], total, *main[2:]]


def is_separable(axis: Axis) -> bool:
    """Whether an axis is one run of channels, which a projection can bring to another width."""
    return is_atom(axis) or isinstance(settle(axis).form, StageEnd | FreeSum)


def without_rule(call: Call, why: str = "which has no rule") -> Any:
    """An unknown operator: whatever it reads keeps its size, and the reason names it."""
    for axes in _all_axes(call.tensors()):
        for axis in axes:
            if not call.coupling.may_count_samples(axis):
                fix(axis, f"it reaches the operator {call.where}, {why}")
    if is_own(call.node) and call.node not in call.coupling.constants:
        name = call.coupling.trace.module_path(call.node) or call.node.name
        call.coupling.costs.append((name, f"its MACs are not counted: the operator {call.where} has no rule"))
    return fixed_axes(call, call.node.meta.get("val"))


def _all_axes(values: Sequence[Any]) -> list[Axes]:
    found: list[Axes] = []
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], list):
            found += _all_axes(value)
        elif isinstance(value, list):
            found.append(value)
    return found


def fixed_axes(call: Call, value: object) -> Any:
    """New fixed axes for a result of one or several tensors; only the axis of samples is carried over."""
    if isinstance(value, Tensor):
        sources = _all_axes(call.tensors())
        samples = next((axis for source in sources for axis in map(settle, source) if axis.is_batch), None)
        axes = [
            samples if samples is not None and size == samples.size else call.fixed(int(size)) for size in value.shape
        ]
        for source in sources:
            if axes and source and source[0].size == axes[0].size and has_samples(source[0]):
                axes[0] = source[0]
        return axes
    if isinstance(value, list | tuple):
        return [fixed_axes(call, each) for each in value]
    return []


def item(call: Call) -> Any:
    """Takes one of several results."""
    source, index = call.node.args[:2]
    assert isinstance(source, fx.Node)
    return call.coupling.values[source][index]


def first(call: Call) -> Axes:
    """Gives the result the axes of the first tensor."""
    return call.coupling.axes(call.node, call.node.all_input_nodes[0])


def created(call: Call) -> Axes:
    """Creates a tensor of one value or of random ones; its axes become whatever they are combined with."""
    sizes = call.shape
    axes = [call.new_axis(place, size) for place, size in enumerate(sizes)]
    if call["size"] is not None:
        call.rewrite(size=list(axes))
    return axes


def counted(call: Call) -> Axes:
    """Creates a tensor whose entries differ; its size is fixed, unless it counts samples."""
    sizes, length = call.shape, COUNTS.get(call.operator, "")
    step, end = call["step"], call[length]
    is_stepped = call.operator == "arange" and call["start"] in (None, 0) and isinstance(step, int) and step > 1
    if is_stepped and end == step * (call.coupling.trace.batch or 0):  # where each sample begins
        samples = call.new_axis(0, sizes[0])
        call.rewrite(**{length: multiply([samples, call.fixed(step)])})
        return [samples]
    is_plain = call.operator != "arange" or (call["start"] in (None, 0) and call["step"] in (None, 1))
    if is_plain and type(call[length]) is int and set(sizes) == {call.coupling.trace.batch}:
        samples = call.new_axis(0, sizes[0])
        call.rewrite(**dict.fromkeys((length, "m") if "m" in call.arguments else (length,), samples))
        return [samples] * len(sizes)
    return [fixed(size, f"the operator {call.where} counts it") for size in sizes]


COUNTS = {"arange": "end", "linspace": "steps", "eye": "n"}
"""The argument that says how many entries there are."""
HANDS_ON = (
    *("clone", "contiguous", "detach", "alias", "lift_fresh_copy"),
    *("to", "_to_copy", "type_as", "float", "half", "double", "lift", "detach_copy", "alias_copy", "rrelu"),
    *("zero", "fill", "real", "imag", "conj", "_conj", "_conj_physical", "resolve_conj", "resolve_neg"),
)
"""Operators whose result has the axes of their first tensor."""
ELEMENTWISE = (
    *("sub", "mul", "div", "relu", "relu6", "hardtanh", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid"),
    *("leaky_relu", "elu", "selu", "celu", "mish", "softplus", "log_sigmoid", "where", "masked_fill", "pow", "rsub"),
    *("square", "multiply", "divide", "subtract", "true_divide", "maximum", "minimum", "clamp", "clamp_min", "lerp"),
    *("add_relu", "addcmul", "addcdiv", "logical_not", "ne", "eq", "gt", "lt", "ge", "le", "clip", "floor_divide"),
    *("complex", "polar", "copy"),
    *("__and", "__or", "__xor"),  # as `&`, `|` and `^` are traced
)

_LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
_CREATED = (
    *("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty"),
    *("rand", "randn", "randint"),
)


def reduced_positions(call: Call, rank: int) -> list[int]:
    """Positions of the reduced axes; all if none are named."""
    dims = call["dim"]
    if dims is None or dims == []:
        return list(range(rank))
    return [int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def reduction(call: Call) -> Any:
    """Reduces axes, which disappear or keep one entry. Only a sum ignores entries that are zero."""
    axes = call.axes("self") or call.axes("input") or []
    if not axes:
        return []
    positions = reduced_positions(call, len(axes))
    for position in positions:
        mark(axes[position], inexact=call.operator != "sum")
    left = [
        call.fixed(1) if position in positions else axis
        for position, axis in enumerate(axes)
        if position not in positions or call["keepdim"]
    ]
    value = call.node.meta.get("val")
    return left if isinstance(value, Tensor) else [left for _ in value or ()]


def softmax(call: Call) -> Axes:
    """Normalises along one axis; each result depends on all entries along it."""
    axes = call.axes("self") or []
    if axes and call["dim"] is not None:
        mark(axes[int(call["dim"]) % len(axes)], inexact=True)
    return axes


REDUCTIONS = (
    *("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "prod", "logsumexp"),
    *("linalg_vector_norm", "all", "any", "count_nonzero"),
)


def extremum(call: Call) -> Any:
    """`max` and `min`, which combine two tensors entry by entry or reduce one."""
    return elementwise(call) if "other" in call.arguments else reduction(call)


RULES: dict[str, OperatorRule] = {
    **dict.fromkeys((*HANDS_ON, *_LIKE), OperatorRule(axes=first)),
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout"), OperatorRule(axes=first, in_training={"train": True})
    ),
    **dict.fromkeys(ELEMENTWISE, OperatorRule(axes=elementwise)),
    **dict.fromkeys(_CREATED, OperatorRule(axes=created)),
    **dict.fromkeys(("arange", "linspace", "eye", "scalar_tensor", "tensor"), OperatorRule(axes=counted)),
    "add": OperatorRule(axes=addition),
    "getitem": OperatorRule(axes=item),
    **dict.fromkeys(REDUCTIONS, OperatorRule(axes=reduction)),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin"), OperatorRule(axes=softmax)),
    **dict.fromkeys(("max", "min"), OperatorRule(axes=extremum)),
}
