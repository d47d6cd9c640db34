"""What is shown while something takes long: bars on a terminal, plain lines for phases elsewhere."""

import io
import os
import pty
import re
import select
import signal
import sys
from pathlib import Path

import pytest
from rich.progress import Progress

import torture
from transprune.runtime import interruption, processes, progress_bar, track
from transprune.runtime.interruption import deferred_signals
from transprune.runtime.terminal import REFRESH_SECONDS, SILENCE_SECONDS, TimeLeft, duration, phase_progress
from transprune.training.loop import brief, described

SEARCH = """
from transprune.runtime import terminal as module
from transprune.runtime.terminal import phase_progress
module.REFRESH_SECONDS = module.SILENCE_SECONDS = 0.0
with phase_progress("search", 2) as progress:
    for epoch in (1, 2):
        for step in (1, 2):
            progress.step(epoch, step, 2, lambda: f"loss 0.{epoch}{step}")
        progress.epoch(epoch, "loss 0.5  top-1 92.0 %  macs 1.10 × budget (expected 0.95)  entropy 0.81", 61.0)
"""
"""A program that shows two epochs of a search."""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def use_terminal(monkeypatch):
    """Makes standard error a terminal; gives what is written there."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return found


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


# --- bars -------------------------------------------------------------------------------------------------------


def run_bars():
    seen = []
    with progress_bar("timing", 2) as shown:
        for number in range(2):
            seen += track(range(3), "batches", 3)
            shown.advance(f"network {number} [best]")
    assert seen == [0, 1, 2] * 2


def test_bars_are_silent_when_standard_error_is_no_terminal(capsys):
    run_bars()
    assert capsys.readouterr() == ("", "")


def test_where_there_is_no_terminal_a_line_says_now_and_then_how_far_it_is(capsys, clock):
    with progress_bar("latency", 8) as shown:
        for seconds in (10, 20, 40, 50, 60, 71):
            clock[0] = float(seconds)
            shown.advance("operators")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("  about")[0] for line in said] == [
        "latency: 3 of 8  operators",
        "latency: 6 of 8  operators",
    ]


def test_a_terminal_shows_bars_within_bars_and_their_text(monkeypatch):
    terminal, starts = use_terminal(monkeypatch), []
    monkeypatch.setattr(Progress, "start", lambda display, start=Progress.start: starts.append(start(display)))
    for _ in range(2):
        run_bars()
    assert terminal.getvalue().count("network 1 [best]") >= 2
    assert "batches" in terminal.getvalue()
    assert len(starts) == 2  # the inner bars joined the display of the outer one


def test_prints_that_are_piped_stay_in_their_pipe_while_a_bar_is_shown(monkeypatch, capsys):
    use_terminal(monkeypatch)
    with progress_bar("timing", 1):
        print("a result")
    assert capsys.readouterr().out == "a result\n"


# --- the time left ----------------------------------------------------------------------------------------------


def test_the_time_left_goes_by_what_was_done_since_the_phase_was_taken_up(clock):
    left = TimeLeft(0.5)
    assert left.at(0.5) == "", "nothing is known yet"
    clock[0] = 3600.0
    assert left.at(0.6) == "about 4 h 0 min left"
    assert left.at(1.0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text


# --- phases -----------------------------------------------------------------------------------------------------


def test_without_a_terminal_each_epoch_is_one_plain_line_with_the_time_left(capsys, clock):
    with phase_progress("search", 3, done=1) as progress:
        clock[0] = 60.0
        progress.epoch(2, "loss 0.5", 60.0)
        progress.epoch(3, "loss 0.4", 60.0)
    assert capsys.readouterr() == (
        "",
        "search: epoch 2 of 3: loss 0.5  1 min 0 s  1 min 0 s left\nsearch: epoch 3 of 3: loss 0.4  1 min 0 s\n",
    )


def test_a_plain_line_of_a_search_fits_80_columns_and_a_terminal_has_all_figures(monkeypatch, capsys, clock):
    costs = {"expected_macs": 11.0, "actual_macs": 9.0, "target_macs": 10.0}
    figures = {"phase": "search", "epoch": 12, "loss": 0.00098, "top1": 99.61, "learning_rate": 0.1, **costs}
    figures |= {"validation_top1": 99.2, "entropy": 0.45}
    all_of_it = "loss 0.00098  top-1 99.6 %  validation 99.2 %  macs 0.90 × budget (expected 1.10)  entropy 0.45"
    assert described(figures) == all_of_it
    for is_on_terminal in (False, True):
        terminal = use_terminal(monkeypatch) if is_on_terminal else None
        with phase_progress("search", 30, done=11) as progress:
            for step in (1, 2):
                progress.step(12, step, 2, str)
            clock[0] += 42.0
            progress.epoch(12, described(figures), 61.0, brief=brief(figures))
        if terminal is None:
            line = capsys.readouterr().err
            assert line == "search: epoch 12 of 30: validation 99.2 %  macs 0.90 × budget  12 min 36 s left\n"
            assert len(line) <= 80
        else:
            assert "entropy 0.45" in terminal.getvalue().replace("\n", " ")
    learned = {"loss": 21.4731, "r2": 0.98, "test_r2": 0.5, "learning_rate": 0.1}
    assert brief(learned) == "loss 21.47  r2 0.98  test 0.5"
    assert brief({"loss": 0.0012, "learning_rate": 0.1}) == "loss 0.0012"


def test_without_a_terminal_a_long_epoch_is_not_silent_and_a_short_one_has_one_line(capsys, clock):
    with phase_progress("search", 2) as progress:
        for step in range(1, 11):
            clock[0] = step * SILENCE_SECONDS / 4
            progress.step(1, step, 10, lambda step=step: f"loss 0.{step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "search: epoch 1, step 4 of 10: loss 0.4  40 min 0 s left",
        "search: epoch 1, step 8 of 10: loss 0.8  30 min 0 s left",
    ]


def test_one_step_alone_tells_no_time(capsys, clock):
    with phase_progress("search", 2) as progress:
        for step in (1, 2, 3):
            clock[0] = step * SILENCE_SECONDS
            progress.step(1, step, 10, lambda: "loss 0.5")
    assert [" left" in line for line in capsys.readouterr().err.splitlines()] == [False, True, True]
    with progress_bar("latency", 8) as shown:
        for seconds in (700, 800):
            clock[0] += seconds
            shown.advance("operators")
    assert [" left" in line for line in capsys.readouterr().err.splitlines()] == [False, True]


def test_what_was_said_of_a_request_to_stop_stays_below_the_bars(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with deferred_signals() as request, phase_progress("search", 2) as progress:
        signal.raise_signal(signal.SIGINT)
        progress.epoch(1, "loss 0.5", 1.0)
        request.reason = None
    assert terminal.getvalue().rindex("once more ends at once") > terminal.getvalue().rindex("loss 0.5")
    assert interruption.tell == [interruption._write]


def test_a_terminal_shows_the_running_step_above_the_last_epoch(monkeypatch, clock):
    terminal = use_terminal(monkeypatch)
    with phase_progress("search", 4, done=1) as progress:
        progress.epoch(2, "entropy 0.81", 61.0)
        clock[0] = REFRESH_SECONDS
        progress.step(3, 1, 2, lambda: "loss 0.12")
    said = terminal.getvalue()
    assert (
        said.rindex("2/4") < said.rindex("epoch 3, step 1 of 2: loss 0.12") < said.rindex("epoch 2 of 4: entropy 0.81")
    )


def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch, clock):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with phase_progress("search", 1) as progress:
        clock[0] = 1e9
        progress.step(1, 1, 2, lambda: pytest.fail("the figures are asked of the first process alone"))
        progress.epoch(1, "loss 0.5", 1.0)
    assert capsys.readouterr() == ("", "")


# --- a real pipe and a real terminal ----------------------------------------------------------------------------


def show_search(place, variables):
    """The program, writing to a terminal or a pipe that has a name."""
    os.environ.update(variables)
    torture.write_to(Path(place))
    exec(SEARCH, {})


def said_through(ours, theirs, place, **variables):
    """What the program writes into our end; `place` is the name of theirs."""
    search = torture.start_copy(show_search, str(place), variables)
    while not select.select([ours], [], [], 0.1)[0] and search.wait(0) is None:
        pass  # until it has opened its end, ours is open for us alone
    os.close(theirs)
    os.set_blocking(ours, True)
    said = b""
    while part := _read(ours):
        said += part
    os.close(ours)
    assert search.wait(100) == 0
    return said.decode()


def test_a_pipe_gets_lines_without_control_characters(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ours = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    said = said_through(ours, os.open(tmp_path / "pipe", os.O_WRONLY), tmp_path / "pipe")
    assert re.search(r"[\x00-\x09\x0b-\x1f]", said) is None
    assert len(said.splitlines()) == 6
    assert re.search(r"entropy 0.81  1 min 1 s  \S.* left", said)


def shown_on_terminal(**variables):
    """What the program writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    return said_through(ours, theirs, os.ttyname(theirs), **{"TERM": "xterm-256color", "COLUMNS": "100", **variables})


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the program has ended
        return b""


def test_a_real_terminal_gets_a_bar_and_the_figures_below_it():
    said = shown_on_terminal()
    assert "\x1b[" in said
    assert "━" in said
    assert "2/2" in said
    assert "entropy 0.81" in said


def test_colours_are_left_out_where_NO_COLOR_asks_for_it():  # noqa: N802 (its name)
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", shown_on_terminal()) is not None
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", shown_on_terminal(NO_COLOR="1")) is None


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    said = shown_on_terminal(TERM="dumb")
    assert "\x1b" not in said
    assert said.count("search: epoch ") == 6
