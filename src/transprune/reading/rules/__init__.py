"""One rule for each operator: what it does to axes, what it costs, and how it runs at other sizes.

The rules of torch's operators are in the modules of this package, and `register_rule` adds others. All of them are
`OperatorRule` records in one table, `RULES`. To add one to transprune itself, write its function in the module of its
topic, and name it in the `RULES` at the end of that module.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx

from transprune.errors import ModelError, OptionError
from transprune.reading.axes import Axis, fixed, settle
from transprune.reading.coupling import Call, Function, OperatorRule, Use
from transprune.reading.rules import lookups, pointwise, shapes, weighted
from transprune.reading.rules.pointwise import elementwise, without_rule
from transprune.reading.trace import operator as operator_name

RULES: dict[str, OperatorRule] = {
    **pointwise.RULES,
    **shapes.RULES,
    **lookups.RULES,
    **weighted.RULES,
}
"""By the operator's name without its overload: `conv2d`, `torchvision::nms`."""
_ELEMENTWISE, _UNKNOWN = OperatorRule(axes=elementwise), OperatorRule(axes=without_rule)


def rule_of(node: fx.Node) -> OperatorRule:
    """The rule of a call, by the operator's name; operators that torch tags as pointwise need none of their own."""
    rule = RULES.get(operator_name(node))
    if rule is not None:
        return rule
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return _ELEMENTWISE if is_pointwise else _UNKNOWN


def constant_cost(call: Call) -> Any:
    """A call whose cost was counted, since no rule says it or another: whatever it reads keeps its size."""
    macs = call.coupling.constants[call.node]
    is_known = rule_of(call.node) is not _UNKNOWN
    reason = f"the operator {call.where} costs {macs:,} MACs for a sample whatever is chosen, as counted"
    path = call.coupling.trace.module_path(call.node)
    name = f"{path or 'network'}.{call.node.name}"
    one = fixed(1, reason)
    call.coupling.add(Use(name=name, operator="constant", node=call.node, inputs=one, outputs=one, kernel=macs))
    call.coupling.costs.append((name, reason))
    return without_rule(call, "whose cost no rule says" if is_known else "which has no rule")


def register_rule(
    operator: Any,
    axes: Callable[[Call], Any],
    *,
    run: Function | None = None,
    in_training: Mapping[str, Any] | None = None,
    weight_outputs: int | None = None,
    replace: bool = False,
) -> None:
    """Teaches transprune an operator, so that widths that reach it can be searched and its cost is counted.

    The rule holds for all networks that are read afterwards, and everywhere: in `inspect`, the supernet of a search,
    `shrink`, and the counting of costs. `docs/own-operator.md` writes a rule from start to end.

    Args:
        operator: A function of torch's `library.custom_op`, an operator (`torch.ops.lab.scale`), or its name
            (`"lab::scale"`; without a namespace one of torch's own, such as `"rot90"`).
        axes: Takes the `Call` and records what the operator does to axes: which must agree (`call.unify`), which must
            stay whole (`call.fix`), and what it costs (`call.add_layer`). It returns a list of the axes of the result,
            or a list of such lists for several results.
        run: Computes the operator from its arguments by name, if the operator itself cannot compute smaller tensors.
        in_training: Arguments that differ in training, such as `{"train": True}`; networks are traced in evaluation
            mode.
        weight_outputs: For an operator that is linear in its arguments `weight` and `bias`, the axis of `weight` that
            becomes the outputs. A supernet then mixes candidates in the weights, which is faster than in the result.
        replace: Whether the rule may replace an existing one.

    Raises:
        OptionError: There is no such operator, it has a rule already, or a function does not take one argument.

    Example:
        >>> def swap_rows_and_columns(call):
        ...     *before, rows, columns = call.axes("self")
        ...     return [*before, columns, rows] if call["k"] % 2 else [*before, rows, columns]
        >>> register_rule("rot90", swap_rows_and_columns)
    """
    name = _name_of(operator)
    attempted = f"cannot register a rule for the operator {name!r}"
    if name in RULES and not replace:
        raise OptionError(f"{attempted}: it has one already; to put this one in its place, add replace=True")
    for role, function, example in (("axes", axes, "def axes(call)"), ("run", run, "def run(arguments)")):
        if (function is not None or role == "axes") and not _takes_one_argument(function):
            raise OptionError(f"{attempted}: {role} is {_described(function)}; expected a function `{example}`")
    RULES[name] = OperatorRule(
        axes=partial(_checked_axes, axes), run=run, in_training=dict(in_training or {}), weight_outputs=weight_outputs
    )


def _checked_axes(axes: Callable[[Call], Any], call: Call) -> Any:
    """The axes that a registered rule returns, checked.

    Raises:
        ModelError: They do not match the result.
    """
    found, value = axes(call), call.node.meta.get("val")
    if _sizes(found) != _shape(value):
        name = getattr(axes, "__name__", repr(axes))
        raise ModelError(
            f"cannot read the operator {call.where}: its rule {name!r} gives axes of the sizes {_sizes(found)}, and "
            f"its result has the shape {_shape(value)}; expected an axis for each axis of the result"
        )
    for use in call.coupling.uses:
        if use.node is call.node and use.operator in ("conv", "linear"):
            _check_along(axes, call, found, use)
    return found


def _check_along(axes: Callable[[Call], Any], call: Call, found: Any, use: Use) -> None:
    """Checks that the outputs are the axis that the rule says, along which a supernet mixes candidates.

    Raises:
        ModelError: They are another one.
    """
    outputs = settle(use.outputs)
    places = [place for place, axis in enumerate(found) if isinstance(axis, Axis) and settle(axis) is outputs]
    if use.along % len(found) not in places:
        name = getattr(axes, "__name__", repr(axes))
        way_out = f"along={places[0]}" if places else "outputs that are an axis of the result"
        raise ModelError(
            f"cannot read the operator {call.where}: its rule {name!r} says add_layer(..., along={use.along}), and "
            f"axis {use.along % len(found)} of the result is not the outputs; expected {way_out}"
        )


def _sizes(axes: Any) -> Any:
    return [_sizes(each) for each in axes] if isinstance(axes, list | tuple) else getattr(axes, "size", axes)


def _shape(value: Any) -> Any:
    return [_shape(each) for each in value] if isinstance(value, list | tuple) else list(getattr(value, "shape", ()))


def _name_of(operator: Any) -> str:
    """The key of an operator among the rules.

    Raises:
        OptionError: torch does not know it.
    """
    if isinstance(operator, torch._ops.OpOverload):
        qualified = operator._schema.name
    elif isinstance(operator, torch._ops.OpOverloadPacket):
        qualified = operator._qualified_op_name
    else:
        qualified = getattr(operator, "_qualname", operator)  # a function of torch's library.custom_op has one
    if not isinstance(qualified, str):
        raise OptionError(
            f"cannot register a rule for {operator!r}; expected a function of torch's library.custom_op, an operator "
            f"such as torch.ops.lab.scale, or its name, such as 'lab::scale'"
        )
    namespace, _, name = qualified.rpartition("::")
    namespace = namespace or "aten"
    known = getattr(torch.ops, namespace)
    if not hasattr(known, name) and not hasattr(known, f"{name}_"):
        close = difflib.get_close_matches(name, dir(known), n=1)
        hint = f"did you mean {namespace}::{close[0]}? " if close else ""
        raise OptionError(
            f"cannot register a rule for the operator '{namespace}::{name}', which torch does not know; {hint}expected "
            f"one that is defined before its rule is registered"
        )
    name = name.rstrip("_")
    return name if namespace == "aten" else f"{namespace}::{name}"


def _takes_one_argument(function: object) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _described(function: object) -> str:
    if not callable(function):
        return repr(function)
    return f"{getattr(function, '__name__', repr(function))}{inspect.signature(function)}"
