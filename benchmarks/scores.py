"""What one-change figures are worth, where the truth of every network is known.

    python benchmarks/scores.py nas-bench-macro_cifar10.json

Derives from single changes in the table of NAS-Bench-Macro (Su et al., 2021): regret in points of accuracy, and how
many networks had to be looked up, for plain sums (1 approach, no repetitions) and for rounds. Beside them: a network
at random that spends at least 95 % of the budget (the mean of all), the best of as many of them as the rounds looked
up (the mean of 1,000 draws), and the largest network within the budget whose blocks are spread evenly over the places.
Raw figures go to `benchmarks/scores/`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from transprune.scores.rounds import rounds_towards

OUT = Path(__file__).parent / "scores"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
PLACES = 8
LEAST_SPENT = 0.95
DRAWS = 1000
DEFAULT, MORE = "1 approaches, 0 repetitions", "2 approaches, 2 repetitions"
"""What the library does by itself, and the most rounds that were worth it here."""


def table(path: Path) -> dict[str, Any]:
    """Regrets of plain sums and of rounds, by share of the most FLOPs."""
    networks = json.loads(path.read_text())
    accuracy = {name: float(each["mean_acc"]) for name, each in networks.items()}
    flops = {name: int(each["flops"]) for name, each in networks.items()}
    full = max(flops, key=lambda name: flops[name])

    def changed(name: str, place: int, choice: str) -> str:
        return name[:place] + choice + name[place + 1 :]

    def derived(around: str, most: float, seen: set[str]) -> str:
        lost = [
            {choice: accuracy[around] - accuracy[changed(around, at, choice)] for choice in "012"}
            for at in range(PLACES)
        ]
        seen.update(changed(around, at, choice) for at in range(PLACES) for choice in "012")
        return min(
            (name for name in flops if flops[name] <= most),
            key=lambda name: (sum(row[choice] for row, choice in zip(lost, name, strict=True)), -flops[name]),
        )

    def rounds(share: float, approaches: int, repetitions: int) -> dict[str, float]:
        seen: set[str] = set()

        def find(around: str, way: float) -> str:
            return derived(around, share**way * flops[full], seen)

        def lost(name: str) -> float:
            seen.add(name)
            return -accuracy[name]

        best = rounds_towards(full, find, lost, approaches=approaches, repetitions=repetitions)
        known = max((name for name in seen if flops[name] <= share * flops[full]), key=lambda name: accuracy[name])
        truth = max(accuracy[name] for name in flops if flops[name] <= share * flops[full])
        return {
            "share": share,
            "regret": truth - accuracy[best.found],
            "regret_of_all_seen": truth - accuracy[known],
            "look_ups": len(seen),
        }

    found = {
        f"{approaches} approaches, {repetitions} repetitions": [
            rounds(share, approaches, repetitions) for share in SHARES
        ]
        for approaches, repetitions in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3))
    }
    rounds_at = {name: [round(row["look_ups"]) for row in rows] for name, rows in found.items()}
    found |= others(accuracy, flops, {name: rounds_at[name] for name in (DEFAULT, MORE)})
    for name, rows in found.items():
        mean = sum(row["regret"] for row in rows) / len(rows)
        print(f"{name}: mean regret {mean:.3f}, {max(row['look_ups'] for row in rows):.0f} look-ups at most")
    return found


def even(level: int) -> str:
    """The network whose choices sum to `level`, as evenly as they can: 4 is 01010101, and 8 is 11111111."""
    return "".join(str(level * (place + 1) // PLACES - level * place // PLACES) for place in range(PLACES))


def others(
    accuracy: dict[str, float], flops: dict[str, int], look_ups: dict[str, list[int]]
) -> dict[str, list[dict[str, float]]]:
    """Regrets of networks at random, of the best of as many as rounds looked up, and of blocks spread evenly."""
    generator = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {}
    for at, share in enumerate(SHARES):
        most = share * max(flops.values())
        within = [name for name in flops if flops[name] <= most]
        spent = [accuracy[name] for name in within if flops[name] >= LEAST_SPENT * most]
        levels = [even(level) for level in range(2 * PLACES + 1)]
        uniform = max((name for name in levels if flops[name] <= most), key=flops.__getitem__)
        reached = {"at random": (sum(spent) / len(spent), 1), "uniform": (accuracy[uniform], 1)}
        for rounds, counts in look_ups.items():
            best = [max(generator.sample(spent, min(counts[at], len(spent)))) for _ in range(DRAWS)]
            reached[f"best at random, look-ups as {rounds}"] = (sum(best) / DRAWS, counts[at])
        truth = max(accuracy[name] for name in within)
        for method, (value, count) in reached.items():
            found.setdefault(method, []).append({"share": share, "regret": truth - value, "look_ups": count})
    return found


def main() -> None:
    """Runs what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    (OUT / "nas-bench-macro.json").write_text(json.dumps(table(arguments.file), indent=1) + "\n")


if __name__ == "__main__":
    main()
