"""Rules of operators that reduce axes, and of softmax and the like, which normalise along one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from transprune.reading.axes import mark
from transprune.reading.coupling import Axes, Call, OperatorRule
from transprune.reading.rules.pointwise import elementwise


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
    *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "prod", "logsumexp"),
    *("linalg_vector_norm", "all", "any", "count_nonzero"),
)


def extremum(call: Call) -> Any:
    """`max` and `min`, which combine two tensors entry by entry or reduce one."""
    return elementwise(call) if "other" in call.arguments else reduction(call)


RULES: dict[str, OperatorRule] = {
    **dict.fromkeys(REDUCTIONS, OperatorRule(axes=reduction)),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin"), OperatorRule(axes=softmax)),
    **dict.fromkeys(("max", "min"), OperatorRule(axes=extremum)),
}
