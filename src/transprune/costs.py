"""Kinds of cost: what an architecture may be asked to keep small.

The cost of an architecture is a sum of whole numbers, one for every part of the input and every part of the output of
every kept layer (`SearchSpace.cost`); most layers have one of each. A kind of cost says what each of them is, and that
is all that the expected cost, the derivation and the budgets need to know: MACs and parameters come from the rules of
`transprune.layer_costs`, another kind may come from measurements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from transprune.layer_costs import Layer


class Cost(ABC):
    """One kind of cost."""

    kind: str
    """The word for it in budgets, figures and files, such as `macs`."""
    name: str
    """The word for it in sentences and tables, such as `MACs`."""
    is_monotone = True
    """Whether larger sizes never cost less."""

    @abstractmethod
    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """What a part of a layer's input costs together with a part of its output; at least 0.

        Args:
            layer: The layer.
            part: Positions among `layer.inputs.parts` and `layer.outputs.parts`.
            inputs: Elements of the part of the input.
            outputs: Elements of the part of the output.
        """

    def written(self, amount: float) -> str:
        """An amount with its unit, for a sentence."""
        return f"{amount:,.0f} {self.name}"


class Macs(Cost):
    """Multiply-adds for one sample."""

    kind, name = "macs", "MACs"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """MACs are linear in the output, and in the input but for a bias, which goes with the first part."""
        return layer.macs(inputs, outputs) - (layer.macs(0, outputs) if part[0] else 0)


class Params(Cost):
    """Trained parameters."""

    kind, name = "params", "parameters"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """Parameters are linear in the output, and in the input but for a bias and a norm."""
        return layer.params(inputs, outputs) - (layer.params(0, outputs) if part[0] else 0)


MACS, PARAMS = Macs(), Params()
COSTS: Mapping[str, Cost] = {cost.kind: cost for cost in (MACS, PARAMS)}
"""The kinds that need nothing but the search space."""
