"""What one-change figures are worth, where the truth of every network is known.

    python benchmarks/scores.py nas-bench-macro_cifar10.json

Derives from single changes in the table of NAS-Bench-Macro (Su et al., 2021): regret in points of accuracy, and how
many networks had to be looked up, for plain sums (1 approach, no repetitions) and for rounds. Raw figures go to
`benchmarks/scores/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transprune.scores.rounds import rounds_towards

OUT = Path(__file__).parent / "scores"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)


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
            {choice: accuracy[around] - accuracy[changed(around, at, choice)] for choice in "012"} for at in range(8)
        ]
        seen.update(changed(around, at, choice) for at in range(8) for choice in "012")
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
    for name, rows in found.items():
        mean = sum(row["regret"] for row in rows) / len(rows)
        print(f"{name}: mean regret {mean:.3f}, {max(row['look_ups'] for row in rows):.0f} look-ups at most")
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
