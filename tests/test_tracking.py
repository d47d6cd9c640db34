"""Trackers are told everything, change nothing, and TensorBoard shows what the journal holds, once."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torture
from fake_run import fake_run
from transprune.cli import main
from transprune.reports.tensorboard import TensorBoardTracker, heat_map, scalars
from transprune.runtime import Journal, read_journal

pytestmark = pytest.mark.usefixtures("few_digits")

TRACKER = """
import json
def write(entry):
    with open("told.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\\n")
def fail(entry):
    raise OSError("no network")
"""


@pytest.fixture
def warnings_of_runs():
    """What the library warns of."""
    said, logger = [], logging.getLogger("transprune.run")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def shown(folder, part):
    """What TensorBoard reads of a part of a run."""
    return EventAccumulator(str(folder / "tensorboard" / part), size_guidance={"images": 0, "scalars": 0}).Reload()


def steps(events):
    return [event.step for event in events]


# --- trackers ---------------------------------------------------------------------------------------------------


def test_a_tracker_is_told_earlier_records_then_each_new_one_as_the_file_holds_it(tmp_path):
    journal, told = Journal(tmp_path / "journal.jsonl"), []
    journal.record("start", version="1")
    journal.follow(told.append)
    journal.record("epoch", loss=np.float32(0.5))
    assert told == read_journal(tmp_path / "journal.jsonl")


def test_a_tracker_cannot_change_what_is_recorded():
    journal = Journal()
    journal.follow(lambda entry: entry["widths"].clear())
    journal.record("epoch", widths={"stem": [0.5, 0.5]})
    assert journal.entries[0]["widths"] == {"stem": [0.5, 0.5]}


def test_a_tracker_that_fails_is_warned_of_once_and_the_others_are_told(warnings_of_runs):
    def fail(entry):
        raise OSError("no network")

    journal, told = Journal(), []
    journal.follow(fail)
    journal.follow(told.append)
    for _ in range(3):
        journal.record("epoch")
    assert len(told) == 3
    assert len(warnings_of_runs) == 1
    assert "fail failed on a record 'epoch' (OSError: no network); the run goes on" in warnings_of_runs[0]


# --- TensorBoard ------------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(tmp_path):
    """A finished run whose journal was shown, and its tracker."""
    folder = fake_run(tmp_path / "run", epochs=5)
    journal = Journal(folder / "journal.jsonl")
    journal.follow(TensorBoardTracker(folder))
    journal.record("configuration", model="resnet20", search={"epochs": 5, "width_samples": None})
    journal.record("result", **json.loads((folder / "result.json").read_text()))
    return folder, journal


def test_every_figure_of_an_epoch_is_a_curve(tracked):
    folder, _ = tracked
    events = shown(folder, "search")
    epochs = [e for e in read_journal(folder / "journal.jsonl") if e["event"] == "epoch" and e["phase"] == "search"]
    for name in ("loss", "top1", "expected_macs", "actual_macs", "target_macs", "entropy", "temperature"):
        assert [e.value for e in events.Scalars(name)] == pytest.approx([e[name] for e in epochs], rel=1e-6)
        assert steps(events.Scalars(name)) == [1, 2, 3, 4, 5]
    shares = [e["actual_macs"] / e["target_macs"] for e in epochs]
    assert [e.value for e in events.Scalars("share_of_budget/actual_macs")] == pytest.approx(shares, rel=1e-6)
    assert "learning_rate" in shown(folder, "teacher").Tags()["scalars"]


def test_every_epoch_of_a_search_has_heat_maps_of_its_probabilities(tracked):
    events = shown(tracked[0], "search")
    for name in ("probabilities/width", "probabilities/depth"):
        assert steps(events.Images(name)) == [1, 2, 3, 4, 5]
    assert "probabilities/width" not in shown(tracked[0], "teacher").Tags()["images"]


def test_a_heat_map_shows_which_candidate_is_probable():
    one, other = ({"stem": [1 - first, first], "head": [first, 1 - first]} for first in (0.0, 1.0))
    assert heat_map(one).shape[2] == 3
    assert not np.array_equal(heat_map(one), heat_map(other))
    assert heat_map(one)[:, :, 0].max() == heat_map(other)[:, :, 0].max()


def test_configuration_decisions_and_result_are_texts(tracked):
    events = shown(tracked[0], "run")
    (configuration,) = events.Tensors("configuration/text_summary")
    assert b'model = "resnet20"' in configuration.tensor_proto.string_val[0]
    (result,) = events.Tensors("result/text_summary")
    assert b"| top1 | " in result.tensor_proto.string_val[0]
    assert events.Tensors("decisions/text_summary")


def test_a_phase_that_is_run_again_from_a_checkpoint_has_every_epoch_once(tracked):
    folder, journal = tracked
    last = [e for e in read_journal(folder / "journal.jsonl") if e["event"] == "epoch" and e["phase"] == "search"][-1]
    again = {name: value for name, value in last.items() if name not in ("time", "event")} | {"loss": 7.0}
    for tracker in (None, TensorBoardTracker(folder)):  # in the same process, and in a new one
        journal = Journal(folder / "journal.jsonl") if tracker else journal
        if tracker:
            journal.follow(tracker)
            journal.record("start", version="1")
        journal.forget(lambda entry: entry.get("phase") == "search" and entry.get("epoch") == 5)
        journal.record("phase", phase="search", status="begin", resumed={"epoch": 5, "step": 0})
        assert steps(shown(folder, "search").Scalars("loss")) == [1, 2, 3, 4]
        journal.record("epoch", **again)
        losses = shown(folder, "search").Scalars("loss")
        assert steps(losses) == [1, 2, 3, 4, 5]
        assert losses[-1].value == 7.0


def test_what_is_not_finite_is_shown_as_such():
    assert np.isnan(scalars({"event": "epoch", "epoch": 1, "loss": "nan"})["loss"])


# --- the command line -------------------------------------------------------------------------------------------


def test_a_run_tells_the_trackers_that_the_command_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(torture.NETWORK)
    Path("mine.py").write_text(TRACKER)
    main(
        [
            "run",
            "net.py:build",
            *torture.OPTIONS,
            "--out",
            "run",
            "--tensorboard",
            "--tracker",
            "mine.py:fail",
            "mine.py:write",
        ]
    )
    told = [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]
    assert told == read_journal("run/journal.jsonl")
    assert told[-1]["event"] == "decision"
    assert {entry["event"] for entry in told} >= {"start", "configuration", "space", "phase", "epoch", "result"}
    assert {path.name for path in Path("run/tensorboard").iterdir()} == {"run", "teacher", "search", "distill"}
    assert capsys.readouterr().err.count("the tracker fail failed") == 1
