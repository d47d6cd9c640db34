"""A checkpoint is whole or noticed; one process at a time holds a folder; a full disk costs nothing that was there."""

import contextlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transprune.errors import OptionError, RunFolderError, StoppedError
from transprune.options import CheckpointOptions
from transprune.runtime import Checkpoints, FolderLock, Journal, RunFolder, read_journal
from transprune.runtime.checkpoint import CHECKPOINT, FORMAT, PREVIOUS
from transprune.runtime.interruption import Terminated, deferred_signals, raising_on_termination
from transprune.runtime.tensors import decode_tree, encode_tree

STATE = {"epoch": 3, "weights": {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0)}, "rates": [0.1, None]}


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and repr(first) == repr(second)  # not a number equals itself


# --- trees ------------------------------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
TENSORS = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]).map(
    lambda dtype: torch.randn(2, 3).to(dtype)
)
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_tree_reads_back_as_it_was(tree):
    assert same(decode_tree(encode_tree(tree)), tree)


def test_generator_states_read_back():
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    assert same(decode_tree(encode_tree(states)), states)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j])
def test_what_no_tree_may_hold_is_refused(value):
    with pytest.raises(TypeError, match="is neither a tensor nor a plain value"):
        encode_tree({"value": value})


def test_every_changed_byte_and_every_missing_end_is_noticed():
    content = encode_tree(STATE)
    for place in range(len(content)):
        with pytest.raises(ValueError):  # noqa: PT011 (any message)
            decode_tree(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError):  # noqa: PT011
            decode_tree(content[:place])
    with pytest.raises(ValueError, match="checksum"):
        decode_tree(content + b"x")


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_the_last_checkpoint_of_the_phase_is_found(tmp_path):
    kept = Checkpoints(tmp_path / "new" / "folder")
    assert kept.find("search") is None
    kept.save("search", {"epoch": 1})
    kept.save("search", STATE)
    assert same(kept.find("search"), STATE)
    assert kept.find("distill") is None
    kept.clear()
    assert kept.find("search") is None
    assert list(kept.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_it_taken(tmp_path, damage, caplog):
    kept = Checkpoints(tmp_path)
    kept.save("search", {"epoch": 1})
    kept.save("search", {"epoch": 2})
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes({"cut": content[:middle], "emptied": b""}.get(damage, content[:-1] + b"\xff"))
    assert kept.find("search") == {"epoch": 1}
    assert not path.exists()
    kept.save("search", {"epoch": 3})
    assert (tmp_path / PREVIOUS).exists(), "the damaged one must not push the good one out"
    path.write_bytes(b"")
    assert kept.find("search") == {"epoch": 1}


def test_two_damaged_checkpoints_are_none(tmp_path):
    kept = Checkpoints(tmp_path)
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_bytes(b"x" * 100)
    assert kept.find("search") is None


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(encode_tree({"format": FORMAT + 1, "phase": "search", "state": {}}))
    with pytest.raises(RunFolderError, match=r"it is of format 2, and this version reads up to 1; update transprune"):
        Checkpoints(tmp_path).find("search")
    assert (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("moment", ["content", "keep", "rename", "folder"])
def test_a_crash_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, moment, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save("search", {"epoch": 1})
    fsync, replace, calls = os.fsync, Path.replace, []

    def crash(name):
        calls.append(name)
        if name == moment:
            raise KeyboardInterrupt

    def watched_fsync(descriptor):
        crash("folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "content")
        fsync(descriptor)

    def watched_replace(path, target):
        crash("keep" if path.name == CHECKPOINT else "rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    with pytest.raises(KeyboardInterrupt):
        kept.save("search", {"epoch": 2})
    monkeypatch.undo()
    assert calls == ["content", "keep", "rename", "folder"][: len(calls)]
    assert Checkpoints(tmp_path).find("search") == {"epoch": 2 if moment == "folder" else 1}


def test_checkpoints_come_by_steps_and_by_the_clock(tmp_path, monkeypatch):
    saved = []
    by_steps = Checkpoints(tmp_path, CheckpointOptions(checkpoint_minutes=None, checkpoint_steps=3))
    by_clock = Checkpoints(tmp_path, CheckpointOptions(checkpoint_minutes=2))
    now = time.monotonic()
    for step in range(1, 9):
        by_steps.after_step("search", lambda step=step: saved.append(("steps", step)))
        monkeypatch.setattr(time, "monotonic", lambda step=step: now + 60 * step)
        by_clock.after_step("search", lambda step=step: saved.append(("clock", step)))
    assert [step for kind, step in saved if kind == "steps"] == [3, 6]
    assert [step for kind, step in saved if kind == "clock"] == [2, 4, 6, 8]


def test_the_time_limit_ends_a_run_with_a_checkpoint(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, CheckpointOptions(checkpoint_minutes=None, max_minutes=1), go_on="do it again")
    kept.after_step("search", lambda: 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    with pytest.raises(StoppedError, match=r"stopped in phase 'search' \(--max-minutes\): .* to go on, do it again"):
        kept.after_step("search", lambda: 2)
    assert kept.find("search") == 2


@pytest.mark.parametrize("name", ["checkpoint_minutes", "checkpoint_steps", "max_minutes"])
def test_options_of_checkpoints_out_of_range_are_refused(name):
    for value in (0, -1, math.nan):
        with pytest.raises(OptionError, match=f"cannot use {name}=.*: expected (more than 0|int or None)"):
            CheckpointOptions(**{name: value})


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_step(tmp_path, number, capfd):
    kept, steps = Checkpoints(tmp_path, CheckpointOptions(checkpoint_minutes=None)), []

    def work():
        for step in (1, 2, 3):
            if step == 2:
                signal.raise_signal(number)
            steps.append(step)
            kept.after_step("search", lambda step=step: step)

    with pytest.raises(StoppedError) as stopped, kept.listening():
        work()
    assert steps == [1, 2]
    assert kept.find("search") == 2
    assert stopped.value.reason == number.name
    assert "stops after this step; once more ends at once" in capfd.readouterr().err


@pytest.fixture
def ctrl_c_raises():
    """As where Python starts; a job in the background of a script may be told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_a_second_signal_ends_at_once():
    steps = []

    def work():
        steps.append("first signal")
        signal.raise_signal(signal.SIGINT)
        steps.append("second signal")
        signal.raise_signal(signal.SIGINT)
        steps.append("never")

    with pytest.raises(KeyboardInterrupt), deferred_signals():
        work()
    assert steps == ["first signal", "second signal"]


def test_a_signal_that_nobody_answered_acts_at_the_end_of_the_block():
    with pytest.raises(Terminated), raising_on_termination(), deferred_signals():
        signal.raise_signal(signal.SIGTERM)


def test_a_terminal_that_is_closed_is_said_by_name():
    with pytest.raises(Terminated, match="SIGHUP"), raising_on_termination():
        signal.raise_signal(signal.SIGHUP)


def test_what_nohup_started_goes_on_without_a_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising_on_termination(), deferred_signals() as request:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert request.reason is None


def test_the_handlers_of_the_caller_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with raising_on_termination(), deferred_signals():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- the lock ---------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    first = FolderLock(tmp_path)
    with pytest.raises(RunFolderError, match="another process is at work on it; wait for its end or stop it"):
        FolderLock(tmp_path)
    first.release()
    second = FolderLock(tmp_path)
    first.release()
    with pytest.raises(RunFolderError, match="another process is at work"):
        FolderLock(tmp_path)
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_holds_nothing_and_neither_do_its_children(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom transprune.runtime.files import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n    print('held', flush=True)\n    time.sleep(60)\n    os._exit(0)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(RunFolderError, match="another process is at work"):
        FolderLock(tmp_path)
    process.kill()
    process.wait()
    FolderLock(tmp_path).release()
    os.killpg(process.pid, signal.SIGKILL)  # the child, which sleeps on
    process.stdout.close()


# --- disks ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A folder on a disk that holds so much; where no disk may be mounted, files that may not grow beyond it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_to_free(tmp_path):
    small = torch.zeros(1000)
    with small_disk(tmp_path, 256):
        kept = Checkpoints(tmp_path)
        kept.save("search", {"weights": small})
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(RunFolderError, match=r"checkpoint\.safetensors': .*; free some space on that disk, and"):
            kept.save("search", {"weights": torch.zeros(100_000)})
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert torch.equal(kept.find("search")["weights"], small)


def test_a_journal_on_a_full_disk_goes_on_when_there_is_space_again(tmp_path):
    with small_disk(tmp_path, 64):
        journal = Journal(tmp_path / "journal.jsonl")
        journal.record("start")
        with pytest.raises(RunFolderError, match="free some space"):
            journal.record("epoch", values=list(range(100_000)))
        journal.record("again")
        assert [entry["event"] for entry in read_journal(journal.path)] == ["start", "again"]


READ_ONLY = """
import os, sys
from transprune.runtime import Checkpoints, RunFolder
os.setuid(65534)
for act in (lambda: Checkpoints(sys.argv[1]).save("search", 1), lambda: RunFolder(sys.argv[1]).write_text("x", "y")):
    try:
        act()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become somebody who may not write")
def test_a_folder_that_must_not_be_written_is_refused_and_left_alone(tmp_path):
    Checkpoints(tmp_path).save("search", {"epoch": 1})
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    printed = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert printed.count("RunFolderError cannot write") == 2, printed
    assert printed.count("Permission denied; give yourself the permission to that folder") == 2
    assert Checkpoints(tmp_path).find("search") == {"epoch": 1}


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = RunFolder.create(tmp_path, {"seed": 0})
    folder.file(".checkpoint.safetensors.123.tmp").write_bytes(b"half")
    folder.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_run_folder_of_a_newer_format_is_refused_with_advice(tmp_path):
    (tmp_path / "config.toml").write_text("format = 2\n")
    with pytest.raises(RunFolderError, match=r"it is of format 2, and this version reads up to 1; update transprune"):
        _ = RunFolder.open(tmp_path).config


# --- journal ----------------------------------------------------------------------------------------------------


def test_a_journal_forgets_what_will_be_run_again(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for epoch in (1, 2, 3):
        journal.record("epoch", epoch=epoch)
    journal.forget(lambda entry: entry.get("epoch", 0) > 1)
    journal.record("epoch", epoch=2)
    assert [entry["epoch"] for entry in read_journal(journal.path)] == [1, 2]
    assert [entry["epoch"] for entry in journal.entries] == [1, 2]
