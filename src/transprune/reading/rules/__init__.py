"""One rule an operator: what it does to the axes of the tensors that it reads, and the axes of its result."""

from __future__ import annotations

import torch
from torch import fx

from transprune.reading.coupling import Rule
from transprune.reading.rules import lookups, pointwise, reductions, shapes, weighted
from transprune.reading.rules.pointwise import elementwise, without_rule
from transprune.reading.trace import operator

RULES: dict[str, Rule] = {**pointwise.RULES, **reductions.RULES, **shapes.RULES, **lookups.RULES, **weighted.RULES}


def rule_of(node: fx.Node) -> Rule:
    """The rule of a call: by the operator's name, else as an elementwise one where torch says that it is."""
    rule = RULES.get(operator(node))
    if rule is not None:
        return rule
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return elementwise if is_pointwise else without_rule
