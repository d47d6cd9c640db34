"""The journal survives crashes and holds valid JSON; the log holds readable lines; both say what disks refuse."""

import errno
import io
import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from transprune.errors import OptionError, RunFolderError
from transprune.runtime import Journal, attach_run_log, print_table, read_journal

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


# --- journal ----------------------------------------------------------------------------------------------------


def test_each_record_is_in_the_file_as_soon_as_it_is_made(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for epoch in (1, 2):
        journal.record("epoch", phase="search", epoch=epoch)
        assert len(path.read_text().splitlines()) == epoch
    assert read_journal(path) == journal.entries


def test_a_record_begins_with_its_time_and_event():
    journal = Journal()
    journal.record("decision", what="depth", why="budget")
    (entry,) = journal.entries
    assert list(entry) == ["time", "event", "what", "why"]
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None


def test_values_of_torch_and_numpy_become_plain_numbers_and_lists(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).record(
        "epoch",
        loss=torch.tensor(0.5, requires_grad=True),
        half=torch.tensor(0.25, dtype=torch.bfloat16),
        top1=np.float32(92.5),
        macs=np.int64(7),
        is_best=np.bool_(True),
        widths={"conv1": torch.tensor([1, 2]), 3: np.ones((1, 2))},
        size=(1, 8),
        where=Path("run"),
        nothing=None,
    )
    (entry,) = read_journal(path)
    del entry["time"], entry["event"]
    assert entry == {
        "loss": 0.5,
        "half": 0.25,
        "top1": 92.5,
        "macs": 7,
        "is_best": True,
        "widths": {"conv1": [1, 2], "3": [[1.0, 1.0]]},
        "size": [1, 8],
        "where": "run",
        "nothing": None,
    }
    assert type(entry["macs"]) is int
    assert entry["is_best"] is True


def test_numbers_that_are_not_finite_keep_a_line_valid_json(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).record("epoch", loss=float("nan"), losses=torch.tensor([np.inf, -np.inf, 1.0]))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    entry = json.loads(path.read_text(), parse_constant=refuse)
    assert entry["loss"] == "nan"
    assert entry["losses"] == ["inf", "-inf", 1.0]


def test_texts_with_line_breaks_stay_on_one_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = "first\nsecond\r\u2028third Σ"
    Journal(path).record("warning", text=text)
    assert len(path.read_bytes().splitlines()) == 1
    assert read_journal(path)[0]["text"] == text


def test_a_second_journal_goes_on_where_the_first_ended(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).record("start")
    Journal(path).record("phase")
    assert [entry["event"] for entry in read_journal(path)] == ["start", "phase"]


@pytest.mark.parametrize("kept", range(1, 30))
def test_a_journal_cut_anywhere_reads_and_goes_on(tmp_path, kept):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.record("start", command="run")
    first = path.stat().st_size
    journal.record("epoch", loss=1)
    os.truncate(path, first + kept)
    assert [entry["event"] for entry in read_journal(path)] == ["start"]
    Journal(path).record("again")
    assert [entry["event"] for entry in read_journal(path)] == ["start", "again"]


def test_a_last_line_without_its_line_break_is_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "start"}')
    Journal(path).record("again")
    assert [entry["event"] for entry in read_journal(path)] == ["start", "again"]


def test_a_malformed_line_before_the_last_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "start"}\n{"event": \n{"event": "end"}\n')
    with pytest.raises(RunFolderError, match="line 2 is no JSON object"):
        read_journal(path)


def test_a_missing_journal_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot read .*journal\.jsonl': No such file"):
        read_journal(tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"), [({"time": 1}, "rename the field"), ({"value": object()}, "type object.*convert it")]
)
def test_a_field_that_cannot_be_recorded_is_refused_and_writes_nothing(tmp_path, fields, message):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(OptionError, match=message):
        journal.record("epoch", **fields)
    assert journal.entries == []
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_must_not_be_written_is_refused_with_advice(tmp_path, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(RunFolderError, match=r"cannot write .*journal\.jsonl': Read-only file system; .*--out"):
        Journal(tmp_path / "journal.jsonl").record("start")


@needs_dev_full
def test_a_full_disk_stops_the_journal():
    with pytest.raises(RunFolderError, match="'/dev/full': No space left on device; free some space"):
        Journal("/dev/full").record("start")


# --- log --------------------------------------------------------------------------------------------------------


def test_the_log_holds_what_was_said_inside_the_block_and_only_that(tmp_path):
    path = tmp_path / "run.log"
    logger = logging.getLogger("transprune.search")
    logger.info("before")
    with attach_run_log(path):
        logger.info("epoch %d of %d Σ", 1, 2)
        logger.debug("too fine")
        logging.getLogger("another.package").warning("not ours")
    logger.info("after")
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert line.endswith("INFO    transprune.search: epoch 1 of 2 Σ")
    datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_the_log_is_appended_to_and_leaves_the_logger_as_it_was(tmp_path, monkeypatch):
    logger = logging.getLogger("transprune")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    before = (logger.level, list(logger.handlers))
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError), attach_run_log(tmp_path / "run.log"):
            _ = logger.warning("run %d", number), 1 / 0
    assert (logger.level, list(logger.handlers)) == before
    assert len((tmp_path / "run.log").read_text().splitlines()) == 2


@needs_dev_full
def test_a_full_disk_stops_the_run_at_the_line_that_did_not_fit():
    reached = []
    with pytest.raises(RunFolderError, match="'/dev/full': No space left on device; free some space"):  # noqa: SIM117
        with attach_run_log("/dev/full"):
            reached.append(logging.getLogger("transprune.search").info("started"))
    assert reached == []


def test_a_log_in_a_missing_folder_is_refused(tmp_path):
    with (
        pytest.raises(RunFolderError, match=r"cannot write .*run\.log': No such file"),
        attach_run_log(tmp_path / "gone" / "run.log"),
    ):
        pass


def test_a_mistake_in_a_log_call_does_not_stop_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transprune"), "propagate", False)  # pytest's own handler is strict
    with attach_run_log(tmp_path / "run.log"):
        logging.getLogger("transprune").info("%d", "no number")
    assert "Logging error" in capsys.readouterr().err


# --- tables ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_in_a_pipe_is_plain_and_aligned(capsys):
    rows = [["top-1", "99.20 %", "[8]"], ["macs", "40,813,194", "-"], ["ms", 1.5, ""]]
    print_table("Costs", ["", "teacher", "size"], rows)
    assert capsys.readouterr().out.splitlines() == [
        "Costs",
        "          teacher  size",
        "-----  ----------  ----",
        "top-1     99.20 %  [8]",
        "macs   40,813,194  -",
        "ms            1.5",
    ]


def test_a_table_on_a_terminal_shows_every_cell_as_it_is(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")
    print_table("Sizes", ["layer", "shape"], [["conv1", "[1, 8, 8]"], ["[red]", 3]])
    for text in ("Sizes", "layer", "[1, 8, 8]", "[red]"):
        assert text in terminal.getvalue()


def test_a_table_on_a_narrow_terminal_breaks_texts_and_no_figure(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    texts, figures = ["a" * 50, "4 8 12 " * 12], ["40,813,194", "123.46 MB", "1.234 ms", "99.20 %"]
    print_table("Costs", ["layer", "candidates", "macs", "file", "median", "top-1"], [[*texts, *figures]])
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(figure in line for line in lines) for figure in figures)
    assert terminal.getvalue().count("a") - "layer candidates macs median".count("a") == 50


def test_a_table_without_rows_shows_its_heading(capsys):
    print_table("", ["layer", "width"], [])
    assert capsys.readouterr().out == "layer  width\n-----  -----\n"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        print_table("", ["layer", "width"], [["conv1"]])
