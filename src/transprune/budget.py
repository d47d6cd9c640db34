"""What the smaller network may cost."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from transprune.architecture import Architecture
from transprune.costs import CACHE, COSTS, Cost
from transprune.errors import BudgetError
from transprune.space import SearchSpace

_THOUSANDS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS: Mapping[str, Mapping[str, int]] = {
    "macs": _THOUSANDS,
    "params": _THOUSANDS,
    "latency": _TIMES,
    "file": _BYTES,
    "cache": _BYTES,
}
"""The worth of each kind's units, ascending. A kind without the empty unit needs a unit in every figure."""
_TEXT = re.compile(r"(?P<kind>[a-z_]+)=(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[a-z]*|\s?%)", re.IGNORECASE | re.ASCII)
_EXPONENT = re.compile(r"(?P<kind>[a-z]+)=(?P<number>(?:\d+(?:\.\d*)?|\.\d+)e[+-]?\d{1,2})", re.IGNORECASE | re.ASCII)
_GROUPS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+", re.ASCII)
"""One figure, with its digits grouped by commas."""
_NO_CACHE = (
    ", since it does not return keys and values in a cache of transformers (`use_cache` in its configuration) that are "
    "among what it computes"
)
_FLOPS = ("flop", "flops")
"""What others count: a multiply-add as one or as two of them."""


@dataclass(frozen=True)
class Limit:
    """A budget in a search space: the most that an architecture may cost."""

    cost: Cost
    most: int

    def is_kept(self, space: SearchSpace, architecture: Architecture) -> bool:
        """Whether an architecture stays within the limit."""
        return space.cost(self.cost, architecture) <= self.most

    def __str__(self) -> str:
        return self.cost.written(self.most)


@dataclass(frozen=True)
class Budget:
    """An upper bound on a cost, as a share of the unpruned network's or as an absolute figure.

    Example:
        >>> Budget.parse("macs=0.5")
        Budget(kind='macs', amount=0.5, is_share=True)
        >>> Budget.parse("macs=20.4M").amount
        20400000.0
    """

    kind: str
    """The kind of cost (`transprune.costs`)."""
    amount: float
    """A share in (0, 1], or MACs per sample, parameters, nanoseconds per batch, or bytes of the file or the cache."""
    is_share: bool

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise BudgetError(f"cannot use the budget kind {self.kind!r}; expected one of {', '.join(UNITS)}")
        if not math.isfinite(self.amount) or self.amount <= 0 or (self.is_share and self.amount > 1):
            raise BudgetError(
                f"cannot use the budget {self.kind}={self.amount:g}; expected a share in (0, 1] such as "
                f"{self.kind}=0.5, or a figure above 1 such as {self.kind}={_example(self.kind)}"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `macs=0.5` or `macs=50%` (a share), `macs=20.4M`, `latency=4ms` or `file=64KB`.

        A figure of at most 1 without a unit is a share. K, M and G are powers of 1000. Units of time are ns, us, ms and
        s, those of a file or cache B, KB, MB and GB.

        Raises:
            BudgetError: The text is malformed, of an unknown kind, or not above zero.
        """
        match = _TEXT.fullmatch(text.strip())
        units = UNITS.get(match["kind"].lower(), {}) if match else {}
        found = {unit.lower(): unit for unit in units}
        is_per_cent = match is not None and match["unit"].strip() == "%"
        is_share = is_per_cent or (match is not None and not match["unit"] and Decimal(match["number"]) <= 1)
        if match is None or not units or not (is_share or match["unit"].lower() in found):
            raise BudgetError(
                f"cannot read the budget {text!r}; expected KIND=SHARE such as macs=0.5 or KIND=FIGURE such as "
                f"macs=20.4M, latency=4ms or file=64KB, where KIND is {' or '.join(UNITS)}{_meant(text)}"
            )
        worth = Decimal(1 if is_share else units[found[match["unit"].lower()]]) / (100 if is_per_cent else 1)
        amount = float(Decimal(match["number"]) * worth)
        return cls(kind=match["kind"].lower(), amount=amount, is_share=is_share)

    def limit(self, space: SearchSpace, costs: Mapping[str, Cost] = COSTS) -> Limit:
        """The most that an architecture may cost.

        Args:
            space: The search space.
            costs: How each kind is counted.

        Raises:
            BudgetError: No such kind is among the costs, no architecture of the space costs that little, or the
                unpruned network costs less already; the message states the attainable range. `check_attainable` covers
                spaces whose cheapest architecture may not be the smallest.
        """
        if self.kind not in costs and self.kind != CACHE.kind:
            raise BudgetError(
                f"cannot tell what the budget {self} allows: {self.kind} is measured, and only {', '.join(costs)} are "
                f"known here; expected costs={{**COSTS, {self.kind!r}: …}} with what "
                f"{'file_size' if self.kind == 'file' else 'measure_latency'} gives, or search or compress, which "
                "measure it themselves"
            )
        cost = costs.get(self.kind, CACHE)
        full = space.cost(cost, space.full_architecture())
        if not full:
            raise BudgetError(
                f"cannot use the budget {self}: the unpruned network has {cost.written(0)}"
                f"{_NO_CACHE if self.kind == 'cache' else ''}; expected a budget of another kind, such as macs=0.5"
            )
        least = space.cost(cost, space.smallest_architecture()) if space.smallest_is_cheapest(cost) else 0
        # The share as it is written, not as the nearest binary fraction: 0.7 of 10 is 7.
        target = math.floor(full * Fraction(repr(float(self.amount))) if self.is_share else self.amount)
        limit = Limit(cost, target)
        if target > full:
            raise BudgetError(
                f"cannot search within the budget {self}: it allows {limit}, and the unpruned network has "
                f"{cost.written(full)} already; expected a budget below that, such as {self.kind}=0.5"
            )
        if target < least:
            share = Budget(kind=self.kind, amount=self.amount / 100, is_share=True) if 1 < self.amount <= 100 else None
            meant = f" (a share is {share}, or {self.kind}={self.amount:g}%)" if share and not self.is_share else ""
            raise out_of_reach(f"{self}: it allows {limit}{meant}, and", limit.cost, least, full)
        return limit

    def __str__(self) -> str:
        if self.is_share:
            return f"{self.kind}={_decimal(self.amount)}"
        # A figure of at most 1 needs a unit, or it would read as a share.
        units = [(unit, worth) for unit, worth in UNITS[self.kind].items() if unit or self.amount > 1]
        unit, worth = next((pair for pair in reversed(units) if self.amount >= pair[1]), units[0])
        return f"{self.kind}={_decimal(self.amount, worth)}{unit}"


def out_of_reach(asked: str, cost: Cost, least: int, full: int) -> BudgetError:
    """The error of a budget that no architecture keeps.

    Args:
        asked: The budget in words.
        cost: Its kind.
        least: What the cheapest architecture costs.
        full: What the unpruned network costs.
    """
    return BudgetError(
        f"cannot keep the budget {asked} the attainable range of this search space is {cost.written(least)} "
        f"({math.ceil(1000 * least / full) / 1000:.3f} of the unpruned network) to {cost.written(full)} (1.000)"
    )


def _meant(text: str) -> str:
    """A hint for a budget in FLOPs, with an exponent or without its unit; empty for other texts."""
    kind, equals, amount = text.strip().partition("=")
    if equals and kind.lower() in _FLOPS:
        return f"; a multiply-add is one MAC and, as some count, two FLOPs; did you mean macs={amount.strip()}?"
    match = _TEXT.fullmatch(text.strip())
    if match and not match["unit"] and "" not in UNITS.get(match["kind"].lower(), {"": 1}):
        unit, name = ("B", "bytes") if UNITS[match["kind"].lower()] is _BYTES else ("ms", "milliseconds")
        return f"; {match['number']} of what? Did you mean {match['kind']}={match['number']}{unit}, in {name}?"
    match = _EXPONENT.fullmatch(text.strip())
    if match and "" in UNITS.get(match["kind"].lower(), {}) and float(match["number"]) > 0:
        return f"; did you mean {_without_unit(match['kind'].lower(), float(match['number']))}?"
    return ""


def _without_unit(kind: str, figure: float) -> Budget:
    """The budget of a figure without a unit: a share if it is at most 1."""
    return Budget(kind=kind, amount=figure, is_share=figure <= 1)


def _example(kind: str) -> str:
    """An absolute figure of a kind."""
    return {"latency": "4ms", "file": "64KB", "cache": "64KB"}.get(kind, "20.4M")


def parse_budgets(budgets: Budget | str | Sequence[Budget | str]) -> tuple[Budget, ...]:
    """One or several budgets, parsed where they are text.

    Raises:
        BudgetError: There is none, one is malformed, or two are of the same kind.
    """
    several = [budgets] if isinstance(budgets, Budget | str) else budgets
    if not isinstance(several, Sequence) or not all(isinstance(each, Budget | str) for each in several):
        raise BudgetError(
            f"cannot read the budget {budgets!r}: expected text such as 'macs=0.5' or a Budget, or several of these"
        )
    found = tuple(Budget.parse(each) if isinstance(each, str) else each for each in several)
    if not found:
        raise BudgetError(
            "cannot search without a budget: expected what the smaller network may cost, such as macs=0.5 for half of "
            "the MACs (--budget macs=0.5 on the command line)"
        )
    kinds = [budget.kind for budget in found]
    if len(set(kinds)) < len(kinds):
        raise BudgetError(
            f"cannot keep the budgets {', '.join(map(str, found))}: expected one or several of different kinds"
        )
    return found


Limits = Limit | Budget | str | Sequence[Limit] | Sequence[Budget | str]
"""The most that an architecture may cost of each kind: limits in its space, or budgets such as `macs=0.5`."""


def limits_of(given: Limits, space: SearchSpace, costs: Mapping[str, Cost] = COSTS) -> list[Limit]:
    """The limits in a search space of what is given; errors as in `parse_budgets` and `Budget.limit`."""
    several = [given] if isinstance(given, Limit | Budget | str) else given
    if isinstance(several, Sequence) and several and all(isinstance(each, Limit) for each in several):
        return list(several)  # type: ignore[arg-type]
    return [budget.limit(space, costs) for budget in parse_budgets(several)]  # type: ignore[arg-type]


def points(budgets: Sequence[str]) -> list[tuple[str, ...]]:
    """The budgets of each point of a frontier: one of the texts may name several amounts, `macs=0.3,0.5,0.7`.

    Example:
        >>> points(["macs=0.3,0.5", "params=0.4"])
        [('macs=0.3', 'params=0.4'), ('macs=0.5', 'params=0.4')]

    Raises:
        BudgetError: A budget is malformed, two points are the same, or more than one text names several amounts.
    """
    several = [text for text in budgets if "," in text]
    if len(several) > 1:
        raise BudgetError(
            f"cannot draw a frontier along {' and '.join(several)}: expected several amounts of one kind of cost only"
        )
    alternatives = [_each_amount(text) for text in budgets]
    found = [tuple(map(str, parse_budgets(each))) for each in itertools.product(*alternatives)]
    if len(set(found)) < len(found):
        raise BudgetError(f"cannot draw a frontier along {several[0]}: expected amounts that differ")
    return found


def _each_amount(text: str) -> list[str]:
    kind, _, amounts = text.partition("=")
    if re.fullmatch(r"0,\d+", amounts, re.ASCII):
        raise BudgetError(
            f"cannot read the budget {text!r}: a comma stands between several amounts; "
            f"did you mean {kind}={amounts.replace(',', '.')}?"
        )
    if _GROUPS.fullmatch(amounts) and "" in UNITS.get(kind.lower(), {}):
        figure = amounts.replace(",", "")
        raise BudgetError(
            f"cannot read the budget {text!r}: a comma stands between several amounts; "
            f"did you mean {kind}={figure} (or {_without_unit(kind.lower(), float(figure))})?"
        )
    return [f"{kind}={amount.strip()}" for amount in amounts.split(",")] if "," in text else [text]


def _decimal(amount: float, unit: int = 1) -> str:
    """A number without an exponent or trailing zeros."""
    digits = f"{Decimal(repr(float(amount))) / unit:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
