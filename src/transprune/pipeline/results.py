"""The figures of a run's networks, and the table that shows them."""

from __future__ import annotations

from pathlib import Path

from transprune.architecture import Architecture
from transprune.layers import COST_KINDS
from transprune.pipeline.run import Run
from transprune.runtime import RunFolder, print_table
from transprune.space import SearchSpace
from transprune.training.evaluation import Evaluation


def network_figures(
    evaluation: Evaluation, *, macs: int, params: int, latency_ms: float, file: Path
) -> dict[str, float]:
    """What `result.json` says of one network: accuracy in percent, MACs a sample, milliseconds a forward, bytes."""
    return {
        **evaluation.to_json(),
        "macs": macs,
        "params": params,
        "latency_ms": latency_ms,
        "file_bytes": file.stat().st_size,
    }


ROWS = (
    ("top-1 (%)", "top1", "{:.2f}"),
    ("top-5 (%)", "top5", "{:.2f}"),
    ("MACs", "macs", "{:,}"),
    ("parameters", "params", "{:,}"),
    ("latency (ms, batch 1)", "latency_ms", "{:.3f}"),
    ("weights on disk (bytes)", "file_bytes", "{:,}"),
)


def show_results(folder: RunFolder) -> None:
    """Prints teacher and student side by side."""
    result = folder.read_json("result.json")
    teacher, student, budget = result["teacher"], result["student"], result["budget"]
    rows = [
        [label, form.format(teacher[key]), form.format(student[key]), _change(key, teacher[key], student[key])]
        for label, key, form in ROWS
    ]
    print_table(f"{result['model']} on {result['data']}, {budget['text']}", ["", "teacher", "student", "change"], rows)
    share = budget["actual"] / budget["target"]
    kept = "kept" if budget["actual"] <= budget["target"] else "NOT kept"
    print(f"budget {kept}: {budget['actual']:,} of {budget['target']:,} {budget['kind']} ({100 * share:.1f} %)")
    print(f"report: {folder.file('report.html')}")


def _change(key: str, teacher: float, student: float) -> str:
    if key.startswith("top"):
        return f"{student - teacher:+.2f}"
    return f"× {student / teacher:.3f}" if teacher else ""


def show_architecture(run: Run) -> None:
    """Prints what a search chose, and what it costs."""
    space = run.space
    architecture = Architecture.from_json(run.folder.read_json("architecture.json"))
    print_table(
        f"{run.options.model}: widths chosen",
        ["layer", "full", "chosen"],
        [
            [group.name, group.width, architecture.widths[group.name] if is_kept else "dropped"]
            for group in space.groups
            for is_kept in [space.is_kept(group.name, architecture)]
        ],
    )
    print_table(
        f"{run.options.model}: depths chosen",
        ["stage", "full", "chosen"],
        [[stage.name, stage.depth, architecture.depths[stage.name]] for stage in space.stages],
    )
    for kind in COST_KINDS:
        cost, full = space.cost(kind, architecture), space.cost(kind, space.full_architecture())
        print(f"{kind}: {cost:,} of {full:,} ({100 * cost / full:.1f} %)")
    print(f"next: transprune distill {run.folder.path}")


def show_space(name: str, space: SearchSpace) -> None:
    """Prints groups, stages, what is fixed, and the attainable range of each budget."""
    print_table(
        f"{name}: {len(space.groups)} widths",
        ["layer", "width", "candidates"],
        [[group.name, group.width, " ".join(map(str, group.candidates))] for group in space.groups],
    )
    print_table(
        f"{name}: {len(space.stages)} depths",
        ["stage", "blocks", "candidates"],
        [[stage.name, stage.depth, " ".join(map(str, stage.candidates))] for stage in space.stages],
    )
    print_table(f"{name}: not searched", ["layer", "reason"], [[fixed.name, fixed.reason] for fixed in space.fixed])
    ranges = []
    for kind in COST_KINDS:
        full = space.cost(kind, space.full_architecture())
        smallest = space.cost(kind, space.smallest_architecture())
        ranges.append([kind, f"{full:,}", f"{smallest:,}", f"{smallest / full:.3f}"])
    print_table("attainable budgets", ["", "unpruned", "smallest", "share"], ranges)
    print(f"{float(space.count()):.3g} architectures")
