"""The figures of a run's networks, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transprune.architecture import Architecture
from transprune.costs import CACHE, COSTS, Cost
from transprune.reports.words import (
    amount,
    compact,
    foretold,
    how_left,
    how_spent,
    is_kept,
    measured,
    metric_label,
    named,
    other_times,
    percent,
    spent,
    timed_in,
)
from transprune.runtime import RunFolder, print_table, read_journal
from transprune.runtime.files import disk_errors
from transprune.runtime.terminal import decimals, say
from transprune.space import DepthStage, SearchSpace, WidthGroup
from transprune.tas.probabilities import UNDECIDED

if TYPE_CHECKING:  # seconds of importing, which a table of finished runs need not wait for
    from transprune.latency.stopwatch import Latency
    from transprune.models.hugging_face import Origin
    from transprune.runs.run import Run
    from transprune.training.evaluation import Evaluation


def network_figures(
    evaluation: Evaluation | None, *, macs: int, params: int, latency: Latency, file: Path
) -> dict[str, float | str]:
    """What `result.json` says of one network: accuracy in percent, MACs a sample, its latency and where, bytes."""
    return {
        **(evaluation.to_json() if evaluation else {}),
        "macs": macs,
        "params": params,
        **asdict(latency),
        "file_bytes": file.stat().st_size,
    }


ROWS = (
    ("top-1 (%)", "top1", "{:.2f}"),
    ("top-5 (%)", "top5", "{:.2f}"),
    ("MACs", "macs", "{:,}"),
    ("parameters", "params", "{:,}"),
    ("latency (ms)", "latency_ms", "{:.4g}"),
    ("cache (bytes)", "cache", "{:,}"),
    ("weights on disk (bytes)", "file_bytes", "{:,}"),
)


def show_results(folder: RunFolder) -> None:
    """Prints teacher and student side by side."""
    result = folder.read_json("result.json")
    student, budgets = result["student"], result["budgets"]
    asked = ", ".join(budget["text"] for budget in budgets)
    title = f"{named(result['model'])} on {named(result['data'])}, {asked}"
    print_table(title, ["", "teacher", "student", "change"], _rows(result))
    if not result.get("is_trained", True):
        say(f"nothing was trained: the student has the teacher's weights, {how_left(folder.config)}")
    if "top1" not in student and "agreement" in result:
        say(f"without labels: the student answers as the teacher on {result['agreement']:.1f} % of the images")
    say(f"latency: the median time of a batch {timed_in(student)}")
    for budget in budgets:
        actual, target, how = spent(budget), budget["target"], how_spent(budget)
        kept, kind = "kept" if is_kept(budget) else "NOT kept", budget["kind"]
        said = f"{how}{amount(kind, actual)} of {amount(kind, target)} ({percent(actual / target)})"
        say(f"budget {kept}: {said}{foretold(budget)}")
        for sentence in other_times(result, folder.path) if kind == "latency" else ():
            say(sentence)
    _show_indecision(folder)
    if folder.has("report.html"):
        print(f"report: {folder.file('report.html')}")
    else:
        print(f"next: transprune export {folder.in_shell}; transprune report {folder.in_shell}")


def model_card(folder: RunFolder, origin: Origin | None) -> str:
    """A model card for the Hub: what the student is made from and how, its figures, and the licence of the origin."""
    result = folder.read_json("result.json") if folder.has("result.json") else None
    architecture = folder.read_json("architecture.json")
    name = architecture["model"]["name"].removeprefix("hf:")
    licence = origin.licence() if origin else ""
    on_hub = origin is not None and not Path(origin.place).is_dir()
    front = ["library_name: transformers", "tags: [transprune, pruning]"]
    front += [f"license: {licence}"] if licence else []
    front += [f"base_model: {name}"] if on_hub else []
    commands = [entry["command"] for entry in read_journal(folder.file("journal.jsonl")) if entry.get("command")]
    lines = ["---", *front, "---", "", f"# {Path(name).name}, smaller", ""]
    lines += [f"Made from `{name if on_hub else Path(name).name}` by transprune:", "", "```"]
    lines += [*dict.fromkeys(commands), "```"]
    if result is not None:
        lines += ["", "| | before | after |", "|---|---|---|"]
        lines += [f"| {row[0]} | {row[1]} | {row[2]} |" for row in _rows(result)]
    licensed = f"The origin's licence is {licence}." if licence else "The origin names no licence: look there for it."
    return "\n".join([*lines, "", licensed, ""])


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Each figure of teacher and student, and how it changed."""
    teacher, student = result["teacher"], result["student"]
    known = {key for _, key, _ in ROWS}
    own = [name for name in (*result.get("metrics", ()), "loss") if name not in known] if "metrics" in result else []
    return [
        [label, form.format(teacher[key]), form.format(student[key]), _change(key, teacher[key], student[key])]
        for label, key, form in (*((name, name, "{:.4g}") for name in own), *ROWS)
        if key in teacher and key in student
    ]


def _show_indecision(folder: RunFolder) -> None:
    """Prints why the search has not decided, if that is so."""
    for entry in read_journal(folder.file("journal.jsonl")):
        if entry.get("what") == UNDECIDED:
            say(f"{UNDECIDED}: {entry['why']}")


def show_frontier(folder: RunFolder) -> None:
    """Prints the points of a frontier."""
    record = folder.read_json("frontier.json")
    kind, teacher, metric = record["kind"], record["teacher"], record.get("metric", "top1")
    rows = [
        [
            ", ".join(budget["text"] for budget in point["budgets"]),
            amount(kind, point["searched"][kind]),
            *(measured(metric, point[name][metric]) if point[name] else "–" for name in ("searched", "uniform")),
        ]
        for point in record["points"]
    ]
    print(f"{record['model']} on {record['data']}")
    label = metric_label(metric)
    title = f"teacher: {amount(kind, teacher[kind])}, {label} {measured(metric, teacher[metric])}"
    print_table(title, ["budget", "student", f"searched, {label}", f"uniform, {label}"], rows)
    print(f"curve: {folder.file('frontier.html')}")


def _change(key: str, teacher: float, student: float) -> str:
    if key.startswith("top"):
        return f"{student - teacher:+.2f}"
    return f"× {student / teacher:.3f}" if teacher else ""


def show_comparison(runs: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each run, which fits 80 columns, what differs between them, and their seeds together."""
    from transprune.reports import comparison as sides  # draws, which takes a second to import

    metrics = list(dict.fromkeys(run["metric"] for run in runs))
    result = metric_label(metrics[0]) if len(metrics) == 1 else "result"
    costs = sides.COSTS[:3]
    rows = []
    for place, run in enumerate(runs, start=1):
        change = sides.change_of(run)
        shown = [sides.cost_of(run, key, unit) for key, _, unit in costs]
        shares = [f"{cost}{'' if share is None else f' ({percent(share, 0)})'}" for cost, share in shown]
        rows.append([place, sides.result_of(run)[0], "" if change is None else f"{change:+.3g}", *shares])
    print_table("students; in brackets: of the teacher", ["", result, "change", *(name for _, name, _ in costs)], rows)
    for place, run in enumerate(runs, start=1):
        say(f"{place:>2}  {run['run']}: {sides.subject_of(run)}, {sides.settings_of(run)}")
    where = sides.timed(runs)
    if where:
        say(f"latency {where[0] if len(where) == 1 else 'measured in different ways'}")
    if sides.other_pace(runs):
        say(sides.other_pace(runs))
    for option, values in sides.differing(runs):
        if option not in sides.FIRST:
            say(f"{option}: {values}")
    for each in sides.seeds_together(runs):
        spread = sides.said_of_spread(each["student"], each["metric"])
        say(f"{each['count']} seeds ({each['places']}): {metric_label(each['metric'])} {spread}")


def write_comparison(runs: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Writes the page of a comparison.

    Raises:
        RunFolderError: The file cannot be written.
    """
    with disk_errors("write", file):
        from transprune.reports.comparison import comparison_page

        file.write_text(comparison_page(runs, file.resolve()), encoding="utf-8")


def show_measurements(content: dict[str, Any]) -> None:
    """Prints what was measured, a table for each runtime, which fits 80 columns."""
    say(f"on {content['environment']['cpu']}, {content['options']['threads']} CPU thread(s)")
    by_runtime: dict[str, list[Mapping[str, Any]]] = {}
    for each in content["measurements"]:
        by_runtime.setdefault(each["runtime"], []).append(each)
    for runtime, found in by_runtime.items():
        print_table(
            f"torch on {content['device']}" if runtime == "torch" else runtime,
            ["batch", "network", "median (ms)", "quartiles (ms)", "samples/s", "peak memory", "file"],
            [
                [
                    each["batch_size"],
                    each["network"],
                    _in_digits(each["latency_ms"]),
                    f"{_in_digits(each['lower_ms'])} – {_in_digits(each['upper_ms'])}",
                    f"{each['throughput']:,.0f}",
                    "?" if each["peak_memory_bytes"] is None else compact(each["peak_memory_bytes"], "B"),
                    compact(each["file_bytes"], "B"),
                ]
                for each in found
            ],
        )


def _in_digits(milliseconds: float) -> str:
    """A time in four digits."""
    return f"{milliseconds:,.{max(0, decimals(milliseconds))}f}"


def show_quantised(content: dict[str, Any]) -> None:
    """Prints the student in 32 and in 8 bits."""
    units = {"latency_ms": ("latency (ms)", ".3f"), "file_bytes": ("file (bytes)", ",")}
    rows = []
    for name in content["float"]:
        label, form = units.get(name, (name, ".4g"))
        rows.append([label, *(format(content[bits][name], form) for bits in ("float", "int8"))])
    print_table(
        f"the student in onnxruntime, {content['threads']} CPU thread(s), batch {content['batch_size']}",
        ["", "32 bits", "8 bits"],
        rows,
    )


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
        [[stage.name, _depth(stage), _kept(stage, architecture)] for stage in space.stages],
    )
    _show_costs(space, architecture, run.costs.values())
    _show_indecision(run.folder)
    print(f"next: transprune distill {run.folder.in_shell}")


def _kept(stage: DepthStage, architecture: Architecture) -> str:
    """How many blocks are kept, and which where these are not the first."""
    kept = stage.kept_in(architecture)
    which = "" if kept == tuple(range(len(kept))) else f" ({', '.join(stage.blocks[place] for place in kept)})"
    return f"{len(kept)}{which}"


def _depth(stage: DepthStage) -> str:
    """How many blocks there are, or branches where these are counted."""
    return f"{stage.depth} branches" if stage.parts else str(stage.depth)


def _show_costs(space: SearchSpace, architecture: Architecture, costs: Iterable[Cost]) -> None:
    """Prints what an architecture has of each kind of cost."""
    for cost in (*costs, CACHE):
        chosen, full = space.cost(cost, architecture), space.cost(cost, space.full_architecture())
        if full or cost is not CACHE:
            print(f"{cost.name}: {cost.written(chosen)} of {cost.written(full)} ({100 * chosen / full:.1f} %)")


def show_derived(folder: RunFolder) -> None:
    """Prints what a derivation chose, and how to go on."""
    from transprune.runs.run import costs_in

    space = SearchSpace.from_json(folder.read_json("space.json"))
    architecture = Architecture.from_json(folder.read_json("architecture.json"))
    _show_costs(space, architecture, costs_in(folder, space).values())
    steps = ("evaluate", "export", "distill") if folder.has("student.safetensors") else ("distill",)
    print("next: " + "; ".join(f"transprune {step} {folder.path}" for step in steps))


def show_space(name: str, space: SearchSpace) -> None:
    """Prints groups, stages, what is fixed, what each layer costs, and the attainable range of each budget."""
    print_table(
        f"{name}: {len(space.groups)} widths",
        ["layer", "width", "candidates", "layers that share it"],
        [[group.name, _width(group), " ".join(map(str, group.candidates)), _others(group)] for group in space.groups],
    )
    print_table(
        f"{name}: {len(space.stages)} depths",
        ["stage", "blocks", "candidates"],
        [[stage.name, _depth(stage), " ".join(map(str, stage.candidates))] for stage in space.stages],
    )
    print_table(f"{name}: not searched", ["layer", "reason"], [[fixed.name, fixed.reason] for fixed in space.fixed])
    print_table(
        f"{name}: what costs",
        ["layer", "kind", "MACs", "parameters"],
        [
            [name, operator, f"{macs:,}", f"{params:,}"]
            for name, operator, macs, params in layer_costs(space)
            if macs or params
        ],
    )
    print_table(
        "attainable budgets",
        ["", "unpruned", "smallest", "share"],
        [
            [kind, f"{full:,}", f"{smallest:,}", f"{smallest / full:.3f}" if full else ""]
            for kind, (smallest, full) in attainable(space).items()
        ],
    )
    print(f"{float(space.count()):.3g} architectures")


def space_as_json(space: SearchSpace) -> dict[str, Any]:
    """A search space, what its layers cost in the unpruned network, and the attainable range of each budget."""
    return {
        **space.to_json(),
        "costs": [
            {"name": name, "operator": operator, "macs": macs, "params": params}
            for name, operator, macs, params in layer_costs(space)
        ],
        "attainable": {
            kind: {"smallest": smallest, "unpruned": full} for kind, (smallest, full) in attainable(space).items()
        },
    }


def layer_costs(space: SearchSpace) -> list[tuple[str, str, int, int]]:
    """Name, operator, MACs a sample and parameters of every layer of the unpruned network."""
    return [
        (layer.name, layer.operator, layer.macs(*sizes), layer.params(*sizes))
        for layer in space.layers
        for sizes in [(layer.inputs.total, layer.outputs.total)]
    ]


def attainable(space: SearchSpace) -> dict[str, tuple[int, int]]:
    """The least and the unpruned cost by kind; without a cache nothing is said of it."""
    from transprune.tas.derivation import least_cost

    full = space.full_architecture()
    costs = [*COSTS.values(), *([CACHE] if space.cost(CACHE, full) else [])]
    return {cost.kind: (least_cost(space, cost), space.cost(cost, full)) for cost in costs}


def _width(group: WidthGroup) -> str:
    return str(group.width) if group.unit == 1 else f"{group.width} × {group.unit}"


def _others(group: WidthGroup) -> str:
    others = [layer for layer in group.layers if layer != group.name]
    shown = ", ".join(others[:3])
    return f"{shown}, and {len(others) - 3} more" if len(others) > 3 else shown
