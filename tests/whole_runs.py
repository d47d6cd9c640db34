"""What several modules do with whole runs of a small network: the commands, and what is counted while they run."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from transprune.reading import trace
from transprune.runtime import read_journal
from transprune.training.loop import Loop

NET = """
from torch import nn

def build(classes, image_channels):
    return nn.Sequential(
        nn.Conv2d(image_channels, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Conv2d(10, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, classes),
    )
"""
FAST = [
    *("--data", "digits", "--preset", "quick", "--device", "cpu"),
    *("--teacher.epochs", "2", "--teacher.warm-up-epochs", "0"),
    *("--search.epochs", "3", "--search.batch-size", "256", "--search.prior", "none"),
    *("--distill.epochs", "1", "--distill.warm-up-epochs", "0"),
]


@contextmanager
def counted_traces():
    """Classes of the networks that are traced, one for each time."""
    found, exported = [], trace._export

    def counted(network, inputs):
        found.append(type(network).__name__)
        return exported(network, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_export", counted)
        yield found


@contextmanager
def counted_steps():
    """The steps of every phase of a run."""
    made, run_epoch = Counter(), Loop.run_epoch

    def counted(loop, *arguments):
        figures = run_epoch(loop, *arguments)
        made[loop.phase] += len(loop.batches)
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run_epoch", counted)
        yield made


def assert_as_planned(plan, steps, out):
    """A run did what its plan had said: epochs and steps of every phase, the space and the budgets."""
    epochs, journals = Counter(), {}
    for path in Path(out).rglob("journal.jsonl"):
        folder = "" if path.parent == Path(out) else path.parent.name
        journals[folder] = read_journal(path)
        for entry in journals[folder]:
            if entry["event"] == "epoch":
                epochs[folder, entry["phase"]] += 1
                assert epochs[folder, entry["phase"]] == entry["epoch"]
    assert {(phase["folder"], phase["phase"]): phase["epochs"] for phase in plan["phases"]} == epochs
    for name in {phase["phase"] for phase in plan["phases"]}:
        assert sum(phase["steps"] for phase in plan["phases"] if phase["phase"] == name) == steps[name]
    (space,) = [entry for entry in journals[""] if entry["event"] == "space"]
    for key in ("groups", "stages", "architectures", "fixed"):
        assert plan[key] == space[key]
    for said, recorded in zip(plan["budgets"], space["budgets"], strict=True):
        assert {key: said[key] for key in recorded} == recorded
    assert plan["seconds"] == pytest.approx(sum(phase["seconds"] for phase in plan["phases"]))
    assert all(phase["seconds"] > 0 for phase in plan["phases"])
