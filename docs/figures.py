"""Draws the figures of `how-it-works.md` into `docs/images`, from the library's own functions and one recorded search.

    python docs/figures.py            # from the record in benchmarks/digits-search
    python docs/figures.py --search   # makes the record anew first: a few minutes on two cores

The record is a search on scikit-learn's digits: ResNet-20, half of its MACs, seed 0, one thread, the teacher of the
preset `quick` and the search of the preset `demo`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import transprune
from transprune.runtime import to_plain
from transprune.runtime.environment import environment
from transprune.tas.expected_cost import budget_penalty
from transprune.tas.mixing import align_channels
from transprune.tas.sampling import draw_candidates

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
RECORD = ROOT / "benchmarks" / "digits-search"

plt.rcParams.update(
    {"svg.hashsalt": "transprune", "svg.fonttype": "path", "font.size": 9, "figure.facecolor": "white"}
    | {"axes.spines.top": False, "axes.spines.right": False}
)


def show_entropy(figures: Mapping[str, Any]) -> None:
    """Prints how undecided the search still is."""
    print("epoch", figures["epoch"], f"entropy {figures['entropy']:.2f}", flush=True)


def record_search() -> None:
    """Searches, and writes the figures of every epoch with the space and the environment."""
    torch.set_num_threads(1)
    data = transprune.load_data("digits")
    teacher = transprune.train(transprune.resnet(20, image_channels=1), data, transprune.get_preset("quick").teacher)
    print(f"teacher: {transprune.evaluate(teacher, data).top1:.1f} % top-1")
    found = transprune.search(
        teacher,
        data,
        "macs=0.5",
        transprune.get_preset("demo").search,
        setup=transprune.Setup(on_epoch=show_entropy),
    )
    RECORD.mkdir(parents=True, exist_ok=True)
    content = {
        "candidates": {group.name: group.candidates for group in found.space.groups},
        "depths": {stage.name: stage.candidates for stage in found.space.stages},
        "architecture": found.architecture.to_json(),
        "target": found.target,
        "actual": found.actual,
        "history": found.history,
    }
    (RECORD / "search.json").write_text(json.dumps(to_plain(content), indent=1) + "\n")
    (RECORD / "environment.json").write_text(json.dumps(to_plain(environment()), indent=1) + "\n")


def gumbel() -> Figure:
    """Mixing weights of eight candidates at three sampling temperatures, forty draws each."""
    logits = torch.tensor([[0.0, 0.2, 0.5, 1.0, 1.5, 1.0, 0.5, 0.0]])
    everyone = torch.ones_like(logits, dtype=torch.bool)
    figure, plots = plt.subplots(1, 4, figsize=(8, 2.4), sharey=True, layout="constrained")
    plots[0].barh(range(8), logits.softmax(1)[0], color="0.5")
    plots[0].set(title="probabilities", xlabel="probability", ylabel="candidate")
    for axes, temperature in zip(plots[1:], (10.0, 1.0, 0.1), strict=True):
        generator = torch.Generator().manual_seed(0)
        shown = np.zeros((8, 40))
        for draw in range(40):
            drawn = draw_candidates(logits, everyone, temperature=temperature, samples=2, generator=generator)
            shown[drawn.indices[0], draw] = drawn.weights[0]
        image = axes.imshow(shown, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1)
        axes.set(title=f"τ = {temperature:g}", xlabel="draw")
    figure.colorbar(image, ax=plots[-1], label="mixing weight")
    return figure


def alignment() -> Figure:
    """Six channels brought to eight, stretched and padded."""
    values = torch.tensor([[1.0, 3.0, 2.0, 5.0, 4.0, 6.0]])
    shown = {"6 channels": values, "interpolated to 8": align_channels(values, 8, "interpolate")}
    shown["padded to 8"] = align_channels(values, 8, "pad")
    figure, plots = plt.subplots(1, 3, figsize=(8, 2), sharey=True, layout="constrained")
    for axes, (title, row) in zip(plots, shown.items(), strict=True):
        bars = axes.bar(range(row.shape[1]), row[0], color=["C0"] * 6 + ["C1"] * 2 if "padded" in title else "C0")
        axes.bar_label(bars, fmt="%g", fontsize=8)
        axes.set(title=title, xlabel="channel", xticks=range(row.shape[1]), ylim=(0, 7))
    plots[0].set_ylabel("value")
    return figure


def penalty() -> Figure:
    """The penalty and its slope in its three regions."""
    costs = torch.linspace(0.6, 1.4, 801, requires_grad=True)
    values = torch.stack([budget_penalty(cost, cost.detach(), 1.0, 0.05) for cost in costs])
    slope = torch.autograd.grad(values.sum(), costs)[0]
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    shares = costs.detach().numpy()
    axes.plot(shares, values.detach().numpy(), label="penalty")
    axes.plot(shares, slope.numpy(), "--", label="its gradient")
    axes.axvspan(0.95, 1.05, color="0.9", label="tolerance: no penalty")
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set(xlabel="cost / budget (expected and most probable alike)", ylim=(-1.8, 1.8))
    axes.legend(loc="upper left", fontsize=8)
    return figure


def probabilities(record: dict) -> Figure:
    """How the probabilities of six groups moved, and the cost with them."""
    history, chosen = record["history"], record["architecture"]["widths"]
    names = [list(record["candidates"])[place] for place in (0, 1, 5, 7, 12, 17)]
    figure, plots = plt.subplots(2, 4, figsize=(9, 4.2), layout="constrained")
    maps, costs, entropies = [*plots[:, :3].flat], plots[0, 3], plots[1, 3]
    highest = max(max(figures["width_probabilities"][name]) for figures in history for name in names)
    for axes, name in zip(maps, names, strict=True):
        moved = np.array([figures["width_probabilities"][name] for figures in history]).T
        widths = record["candidates"][name]
        image = axes.imshow(moved, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=highest)
        axes.set(title=name.removesuffix(".conv"), yticks=range(len(widths)), yticklabels=widths)
        axes.plot(len(history) - 0.5, widths.index(chosen[name]), "<", color="C3", clip_on=False, markersize=8)
    for axes in plots[1, :3]:
        axes.set_xlabel("epoch")
    for axes in plots[:, 0]:
        axes.set_ylabel("channels")
    figure.colorbar(image, ax=maps, label="probability", location="bottom", shrink=0.4)
    epochs = [figures["epoch"] for figures in history]
    _costs(costs, epochs, record)
    entropies.plot(epochs, [figures["entropy"] for figures in history])
    entropies.set(xlabel="epoch", title="entropy", ylim=(0, 1.05))
    return figure


def _costs(axes: Axes, epochs: list[int], record: dict) -> None:
    for key, label in (("expected_macs", "expected"), ("actual_macs", "most probable")):
        axes.plot(epochs, [figures[key] / 1e6 for figures in record["history"]], label=label)
    axes.axhline(record["target"] / 1e6, color="0.4", linestyle=":", label="budget")
    axes.set(title="million MACs", ylim=(0, 1.1 * max(figures["actual_macs"] for figures in record["history"]) / 1e6))
    axes.legend(fontsize=7, loc="lower right")


def gain() -> Figure:
    """How long a network takes before and after: searched for half of the MACs, and for half of the time."""
    recorded = json.loads((ROOT / "benchmarks" / "latency" / "budget-search-resnet20-threads1.json").read_text())
    by_budget = {row["budget"]: row for row in recorded["rows"]}
    halves = [by_budget[f"{kind}=0.5"] for kind in ("macs", "latency")]
    bars = [("the network as trained", halves[0]["full_ns"], halves[0]["teacher_top1"], "#7f8790")]
    bars += [
        (f"searched for {row['budget']}", row["student_ns"], row["student_top1"], color)
        for row, color in zip(halves, ("#d9650f", "#1f7fc4"), strict=True)
    ]
    figure, axes = plt.subplots(figsize=(7, 1.9), layout="constrained")
    for place, (name, nanoseconds, top1, color) in enumerate(reversed(bars)):
        axes.barh(place, nanoseconds / 1000, 0.6, color=color)
        axes.text(nanoseconds / 1000 + 2, place, f"{nanoseconds / 1000:.0f} µs, {top1:.2f} % top-1", va="center")
        axes.text(-2, place, name, va="center", ha="right")
    axes.set(xlabel="time of one image in onnxruntime, one thread, batch 1 (µs)", xlim=(0, 200), yticks=[])
    return figure


def main() -> None:
    """Draws everything."""
    if "--search" in sys.argv[1:]:
        record_search()
    record = json.loads((RECORD / "search.json").read_text())
    drawn = {"gumbel": gumbel(), "alignment": alignment(), "penalty": penalty(), "probabilities": probabilities(record)}
    drawn["gain"] = gain()
    for name, figure in drawn.items():
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
