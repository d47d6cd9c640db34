"""The table of the raw results: `python benchmarks/model_coverage.py` writes it into `docs/coverage.md`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from isolated import RESULTS, Record
from model_list import MODELS, ListedModel
from other_networks import OTHERS

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"
ENOUGH = 0.5
"""Searched share of the MACs from which a network counts as searchable."""


def write_page(checks: Mapping[str, str]) -> None:
    ours, theirs = (read_results(name) for name in ("transprune", "torch_pruning"))
    PAGE.write_text(page(ours, theirs, checks))


def read_results(name: str) -> Record:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {"models": {}}


def page(ours: Record, theirs: Record, checks: Mapping[str, str]) -> str:
    found, compared = ours["models"], theirs["models"]
    rows = [row(model, found.get(model.name), compared.get(model.name)) for model in MODELS]
    parts = [
        "# Which networks can be searched",
        f"`{ours['command']}` reads, shrinks and checks small, untrained instances of many architectures "
        f"([the list](../benchmarks/model_list.py)), each in a process of its own with "
        f"{ours['limit_seconds']:.0f} s of processor time. "
        f"{machine(ours['environment'])}",
        f"**{summary({model.name: found[model.name] for model in MODELS if model.name in found})}**",
        "What is checked on each: " + "; ".join(f"*{name}*: {claim}" for name, claim in checks.items()) + ".",
    ]
    if compared:
        parts.append(comparison(theirs))
    parts.append("\n".join([*HEAD, *rows]))
    return "\n\n".join([*parts, *others(found)]) + "\n"


def others(found: Mapping[str, Record]) -> list[str]:
    """The part about networks that are no classifiers."""
    measured = {each.name: found[each.name] for each in OTHERS if each.name in found}
    if not measured:
        return []
    rows = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in [name, *own_cells(each)]) + " |"
        for name, each in measured.items()
    ]
    return [
        "## Networks that are no classifiers",
        "Small forms of other architectures, and of every kind of input and wrapper "
        f"([the list](../benchmarks/other_networks.py)): {counted(measured)}. Instead of *zeroing*, one step of "
        "a search and one of a distillation at 16 samples are run on each that is read; a network that is refused "
        "says why.",
        "\n".join([*OTHER_HEAD, *rows]),
    ]


def machine(environment: Record) -> str:
    packages = ", ".join(f"{name} {environment[name]}" for name in ("transprune", "torch", "torchvision", "timm"))
    return (
        f"{environment['cpu']}, {environment['platform']}, one thread a network; "
        f"Python {environment['python']}, {packages}."
    )


def summary(found: Mapping[str, Record]) -> str:
    searchable = [record for record in found.values() if record.get("searched_share", 0) >= ENOUGH]
    correct = sum(record["outcome"] == "works" for record in searchable)
    return (
        f"{correct} of {len(found)} networks are searchable for at least half their MACs and shrink correctly "
        f"(outcomes: {counted(found)})."
    )


def counted(records: Mapping[str, Record]) -> str:
    outcomes = Counter(record["outcome"] for record in records.values())
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


def comparison(theirs: Record) -> str:
    counts = counted(theirs["models"])
    return (
        f"The last column: Torch-Pruning {theirs['environment']['torch_pruning']} at half the channels "
        f"(`{theirs['command']}`), the MACs that are left, or how it ends: {counts} of {len(theirs['models'])}."
    )


HEAD = (
    "| network | parameters | MACs | groups, stages | searched MACs | smallest | seconds | result | Torch-Pruning |",
    "|---|---:|---:|---:|---:|---:|---:|---|---|",
)


OTHER_HEAD = (
    "| network | parameters | MACs | groups, stages | searched MACs | smallest | seconds | result |",
    "|---|---:|---:|---:|---:|---:|---:|---|",
)


def row(model: ListedModel, record: Record | None, compared: Record | None) -> str:
    cells = [f"{model.name} ({model.size})", *(own_cells(record) if record else [""] * 7), against(compared)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def own_cells(record: Record) -> list[str]:
    return [
        *(millions(record.get(cost)) for cost in ("params", "macs")),
        f"{record['groups']}, {record['stages']}" if "groups" in record else "",
        *(percent(record.get(share)) for share in ("searched_share", "smallest_share")),
        f"{record['seconds']:.0f}",
        result(record),
    ]


def result(record: Record) -> str:
    """The outcome with what speaks against it, short."""
    failed = [f"{name}: {record['details'].get(name, '')}" for name, holds in failures(record)]
    reasons = [
        f"{reason} ({count})" for reason, count in record.get("fixed", []) if "output of the network" not in reason
    ]
    where = f"{record['stage']}: " if "stage" in record else ""
    error = [where + record["error"]] if "error" in record else []
    return shortened("; ".join([record["outcome"], *error, *failed, *reasons[:2]]))


def failures(record: Record) -> list[tuple[str, bool | None]]:
    return [(name, holds) for name, holds in record.get("checks", {}).items() if holds is not True]


def against(compared: Record | None) -> str:
    if compared is None:
        return ""
    if compared["outcome"] == "works":
        return percent(compared["after"]["macs"] / compared["before"]["macs"])
    if compared["outcome"] == "timeout":
        return f"timeout, {compared['seconds']:.0f} s"
    return shortened(f"{compared['outcome']} {compared.get('error', '')}".strip(), 60)


def shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def millions(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.1f} M" if count >= SMALL else f"{count:,}"


SMALL = 50_000
"""Counts below are written out."""


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
