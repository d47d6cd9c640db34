"""The command line: runs that stop, go on, and are refused."""

import json

import pytest
import torch

import torture
from test_data import write_folder
from transprune.cli import main
from transprune.data import MemorySplit, make_loader
from transprune.errors import RunFolderError
from transprune.options import CheckpointOptions
from transprune.runs import open_run
from transprune.runtime import Checkpoints, FolderLock, read_journal


def commands(place, folder):
    (search, distill) = torture.training_alone(place, folder)
    return search, distill


def ended(arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A search that was stopped by its time limit in its first step."""
    place = tmp_path_factory.mktemp("stopped")
    search, _ = commands(place, place / "run")
    return place, [*search, "--max-minutes", "1e-9"], ended([*search, "--max-minutes", "1e-9"])


def test_a_time_limit_ends_with_its_exit_code_and_leaves_a_checkpoint(stopped):
    place, _, code = stopped
    assert code == 75
    state = Checkpoints(place / "run").find("teacher")
    assert (state["epoch"], state["steps"]) == (1, 1)
    assert read_journal(place / "run" / "journal.jsonl")[-1]["reason"] == "--max-minutes"


def test_every_way_to_go_on_makes_a_step(stopped, capsys):
    place, search, _ = stopped
    for number, arguments in enumerate(
        [
            search,
            [*search, "--resume"],
            ["search", "--resume", str(place / "run"), "--device", "cpu", "--max-minutes", "1e-9"],
            ["run", str(place / "run"), "--resume", "--device", "cpu", "--max-minutes", "1e-9"],
        ],
        start=2,
    ):
        assert ended(arguments) == 75
        assert Checkpoints(place / "run").find("teacher")["steps"] == number
        assert "to go on, give the same command again, or `transprune run --resume" in capsys.readouterr().err
    begun = [entry for entry in read_journal(place / "run" / "journal.jsonl") if entry.get("status") == "begin"]
    assert [entry.get("resumed") for entry in begun] == [None, *({"epoch": 1, "step": step} for step in (1, 2, 3, 4))]


def test_a_damaged_checkpoint_is_said_on_the_terminal(stopped, capfd):
    place, search, _ = stopped
    path = place / "run" / "checkpoint.safetensors"
    before = Checkpoints(place / "run").find("teacher")["steps"]
    path.write_bytes(path.read_bytes()[:-1])
    assert ended(search) == 75
    assert "checkpoint.safetensors' is damaged (its checksum does not fit) and removed" in capfd.readouterr().err
    assert Checkpoints(place / "run").find("teacher")["steps"] == before, "one step back, one step made"


def test_another_number_of_processes_is_a_decision_in_the_journal(stopped):
    place, search, _ = stopped
    kept = Checkpoints(place / "run")
    state = kept.find("teacher")
    kept.save("teacher", {**state, "processes": state["processes"] * 2})
    assert ended(search) == 75
    decision = [entry for entry in read_journal(place / "run" / "journal.jsonl") if entry["event"] == "decision"][-1]
    assert decision["what"] == "Phase 'teacher' goes on with 1 process instead of 2"
    assert (decision["processes"], decision["processes_before"]) == (1, 2)
    assert kept.find("teacher")["steps"] == state["steps"] + 1


def test_two_runs_on_one_folder_are_refused(stopped, capsys):
    place, search, _ = stopped
    lock = FolderLock(place / "run")
    before = (place / "run" / "journal.jsonl").read_bytes()
    for arguments in (search, [*search, "--overwrite"], ["distill", str(place / "run")]):
        assert ended(arguments) == 2
        assert "another process is at work on it" in capsys.readouterr().err
    assert (place / "run" / "journal.jsonl").read_bytes() == before
    lock.release()
    open_run(place / "run", device="cpu").close()


def test_nothing_to_go_on_with_is_refused(tmp_path, capsys):
    search, _ = commands(tmp_path, tmp_path / "run")
    assert ended([*search, "--resume"]) == 2
    assert ended(["run", "--resume", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("there is no such folder") == 2
    assert not (tmp_path / "run").exists()
    assert ended([*search, "--resume", "--overwrite"]) == 2


def test_a_configuration_with_a_value_of_another_type_is_refused(stopped, tmp_path):
    text = (stopped[0] / "run" / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("seed = 0", 'seed = "none"'))
    with pytest.raises(RunFolderError, match="seed is 'none', expected a whole number"):
        open_run(tmp_path)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_rest_of_an_epoch_is_its_last_batches(kind, tmp_path):
    from transprune.data import load_data

    data = (
        load_data("digits")
        if kind == "memory"
        else load_data(f"imagefolder:{write_folder(tmp_path, count=6, size=(70, 80))}", image_size=(3, 66, 66))
    )
    assert isinstance(data.train, MemorySplit) == (kind == "memory")
    loader = make_loader(data.train, data, batch_size=5, train=True, seed=0, device="cpu", workers=0)
    whole = list(loader.batches(3))
    for first in (0, 1, len(whole) - 1, len(whole)):
        rest = list(loader.batches(3, first=first))
        assert len(rest) == len(whole) - first
        assert all(torch.equal(one[0], other[0]) for one, other in zip(rest, whole[first:], strict=True))


def test_options_of_safety_are_no_part_of_a_run(stopped):
    config = (stopped[0] / "run" / "config.toml").read_text()
    for name in (*vars(CheckpointOptions()), "on_divergence", "resume"):
        assert name not in config
    assert json.loads((stopped[0] / "run" / "space.json").read_text())["format"] == 2
