"""What the smaller network may cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from transprune.errors import BudgetError
from transprune.layers import COST_KINDS, CostKind
from transprune.space import SearchSpace

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_TEXT = re.compile(r"(?P<kind>[a-z_]+)=(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[KMG]?)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Budget:
    """An upper bound on a cost, as a share of the unpruned network's or as an absolute figure.

    Example:
        >>> Budget.parse("macs=0.5")
        Budget(kind='macs', amount=0.5, is_share=True)
        >>> Budget.parse("macs=20.4M").amount
        20400000.0
    """

    kind: CostKind
    amount: float
    """A share in (0, 1], or MACs a sample, or parameters."""
    is_share: bool

    def __post_init__(self) -> None:
        if self.kind not in COST_KINDS:
            raise BudgetError(f"cannot use the budget kind {self.kind!r}; expected one of {', '.join(COST_KINDS)}")
        if not math.isfinite(self.amount) or self.amount <= 0 or (self.is_share and self.amount > 1):
            raise BudgetError(
                f"cannot use the budget {self.kind}={self.amount:g}; expected a share in (0, 1] such as "
                f"{self.kind}=0.5, or a figure above 1 such as {self.kind}=20.4M"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `macs=0.5` (a share) or `macs=20.4M` (absolute; K, M, G are powers of 1000).

        A figure of at most 1 without a unit is a share.

        Raises:
            BudgetError: The text is malformed, of an unknown kind, or not above zero.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None or match["kind"].lower() not in COST_KINDS:
            raise BudgetError(
                f"cannot read the budget {text!r}; expected KIND=SHARE such as macs=0.5 or KIND=FIGURE such as "
                f"macs=20.4M, where KIND is {' or '.join(COST_KINDS)}"
            )
        unit = match["unit"].upper()
        amount = float(Decimal(match["number"]) * _UNITS[unit])
        kind: CostKind = "macs" if match["kind"].lower() == "macs" else "params"
        return cls(kind=kind, amount=amount, is_share=not unit and amount <= 1)

    def target(self, space: SearchSpace) -> int:
        """The most that an architecture may cost.

        Raises:
            BudgetError: No architecture of the space costs that little, or the unpruned network costs less already;
                the message states the attainable range.
        """
        full = space.cost(self.kind, space.full_architecture())
        smallest = space.cost(self.kind, space.smallest_architecture())
        # The share as it is written, not as the nearest binary fraction: 0.7 of 10 is 7.
        target = math.floor(full * Fraction(repr(float(self.amount))) if self.is_share else self.amount)
        if not smallest <= target <= full:
            raise BudgetError(
                f"cannot keep the budget {self}: it allows {target:,} {self.kind}, and the attainable range of "
                f"this search space is {smallest:,} ({math.ceil(1000 * smallest / full) / 1000:.3f} of the unpruned "
                f"network) to {full:,} (1.000)"
            )
        return target

    def __str__(self) -> str:
        if self.is_share:
            return f"{self.kind}={_decimal(self.amount)}"
        # A figure of at most 1 needs a unit, or it would read as a share.
        smallest = "K" if self.amount <= 1 else ""
        unit = next((unit for unit in "GMK" if self.amount >= _UNITS[unit]), smallest)
        return f"{self.kind}={_decimal(self.amount, _UNITS[unit])}{unit}"


def _decimal(amount: float, unit: int = 1) -> str:
    """A number without an exponent, exactly as many digits as it needs."""
    digits = f"{Decimal(repr(float(amount))) / unit:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
