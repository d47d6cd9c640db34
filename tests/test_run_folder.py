"""A run folder keeps one run: whole files, the same configuration, nobody else's things."""

import errno
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from transprune.errors import OptionError, RunFolderError
from transprune.runtime import RUN_FILES, RunFolder

CONFIG = {"model": "resnet20", "seed": 0, "weights": None, "search": {"epochs": 30, "ratios": (0.5, 1.0)}}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG)


@pytest.fixture
def full_disk(folder, monkeypatch):
    """A disk that fills up once the folder is there."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


# --- configuration ----------------------------------------------------------------------------------------------


def test_a_configuration_reads_back_without_its_nones(folder):
    assert folder.config == {"model": "resnet20", "seed": 0, "search": {"epochs": 30, "ratios": [0.5, 1.0]}}


def test_the_same_configuration_takes_up_the_same_run(folder):
    folder.write_text("report.html", "kept")
    later = {**CONFIG, "baseline": None, "distill": {"epochs": None}, "tie": []}  # with options that came after it
    again = RunFolder.create(folder.path, later)
    assert again.file("report.html").read_text() == "kept"


def test_another_configuration_is_refused_with_every_difference(folder):
    other = {"model": "resnet20", "seed": 1, "weights": "w.safetensors", "search": {"ratios": (0.5, 1.0)}}
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create(folder.path, other)
    message = str(caught.value)
    assert str(folder.path) in message
    assert "seed: 0 there, 1 now" in message
    assert "weights: nothing there, 'w.safetensors' now" in message
    assert "search.epochs: 30 there, nothing now" in message
    assert "--out" in message
    assert "--overwrite" in message
    assert "model" not in message
    assert "ratios" not in message


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"flip": True}, {"flip": 1}),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"ratios": [1, 2]}, {"ratios": [2, 1]}),
        ({"name": "1"}, {"name": 1}),
        ({"stage": {"depth": 1}}, {"stage": 1}),
    ],
)
def test_no_difference_is_overlooked(tmp_path, found, wanted):
    RunFolder.create(tmp_path, found)
    with pytest.raises(RunFolderError, match="another configuration"):
        RunFolder.create(tmp_path, wanted)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"rate": 1}, {"rate": 1.0}),
        ({"limit": float("nan")}, {"limit": float("nan")}),
        ({"data": Path("images")}, {"data": "images"}),
        ({"keep": {8: "x"}}, {"keep": {"8": "x"}}),
    ],
)
def test_two_ways_to_write_one_configuration_are_the_same_run(tmp_path, found, wanted):
    RunFolder.create(tmp_path, found)
    assert RunFolder.create(tmp_path, wanted).path == tmp_path


@pytest.mark.parametrize("value", [{1, 2}, [None], object(), torch.tensor(1)])
def test_a_value_that_toml_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(OptionError, match="cannot write the configuration"):
        RunFolder.create(tmp_path / "run", {"value": value})
    assert not (tmp_path / "run").exists()


def test_a_malformed_configuration_is_refused(folder):
    folder.file("config.toml").write_text("model = ")
    with pytest.raises(RunFolderError, match=r"config\.toml': it is no valid TOML"):
        RunFolder.create(folder.path, CONFIG)


# --- other people's files and overwriting -----------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"such as thesis\.txt.*never removed.*--out"):
        RunFolder.create(tmp_path, CONFIG, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwriting_spares_a_folder_whose_configuration_is_not_ours(tmp_path):
    (tmp_path / "config.toml").write_text('title = "my web site"\n')
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunFolderError, match="was not written by transprune"):
        RunFolder.create(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_overwriting_removes_all_files_of_the_run_and_nothing_else(folder):
    for name in set(RUN_FILES) - {"config.toml"}:
        folder.write_text(name, "old")
    folder.file(".result.json.123.tmp").write_text("left by a killed process")
    folder.file("notes.txt").write_text("mine")
    anew = RunFolder.create(folder.path, {"seed": 1}, overwrite=True)
    assert names(anew) == ["config.toml", "notes.txt"]
    assert anew.config == {"seed": 1}


def test_an_overwriting_that_is_interrupted_leaves_a_run(folder, monkeypatch):
    for name in set(RUN_FILES) - {"config.toml"}:
        folder.write_text(name, "old")
    unlink = Path.unlink

    def interrupted(path, missing_ok=False):
        if path.name == "architecture.json":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(folder.path, {"seed": 1}, overwrite=True)
    made_before = RUN_FILES[: RUN_FILES.index("architecture.json") + 1]
    assert names(folder) == sorted(made_before)
    assert folder.config["seed"] == 0


def test_an_overwriting_that_finds_no_space_leaves_a_run(folder, full_disk):
    with pytest.raises(RunFolderError, match="free some space"):
        RunFolder.create(folder.path, {"seed": 1}, overwrite=True)
    assert RunFolder.open(folder.path).config["seed"] == 0


def test_overwriting_a_missing_folder_just_makes_it(tmp_path):
    assert RunFolder.create(tmp_path / "a" / "b", CONFIG, overwrite=True).has("config.toml")


def test_a_start_that_was_killed_does_not_block_the_next(tmp_path):
    (tmp_path / ".config.toml.123.tmp").write_text("mod")
    assert RunFolder.create(tmp_path, CONFIG).has("config.toml")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError, match="a file has that name"):
        RunFolder.create(tmp_path / "run", CONFIG)


# --- opening and requiring --------------------------------------------------------------------------------------


def test_opening_finds_the_run_that_was_made(folder):
    assert RunFolder.open(folder.path).config == folder.config


def test_opening_a_missing_folder_or_one_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="there is no such folder"):
        RunFolder.open(tmp_path / "gone")
    with pytest.raises(RunFolderError, match=r"it has no config\.toml"):
        RunFolder.open(tmp_path)


def test_a_required_file_that_is_missing_is_refused_with_the_step_that_makes_it(folder):
    with pytest.raises(RunFolderError, match=r"has no architecture\.json.*run `transprune search`"):
        folder.require("architecture.json", made_by="search")
    folder.write_json("architecture.json", {})
    assert folder.require("architecture.json", made_by="search") == folder.file("architecture.json")


# --- files ------------------------------------------------------------------------------------------------------


def test_a_command_that_is_advised_can_be_given_to_a_shell(tmp_path):
    folder = RunFolder.create(tmp_path / "a run", {})
    with pytest.raises(RunFolderError, match=f"--resume '{tmp_path}/a run'`"):
        folder.require("student.safetensors", made_by="distill")


def test_json_reads_back_as_plain_values(folder):
    folder.write_json("result.json", {"top1": torch.tensor(99.5), "bad": float("nan"), "size": (1, 8), "name": "Σ"})
    assert folder.read_json("result.json") == {"top1": 99.5, "bad": "nan", "size": [1, 8], "name": "Σ"}


def test_malformed_or_missing_files_are_refused(folder):
    folder.write_text("result.json", "{")
    folder.write_text("student.safetensors", "not tensors at all")
    with pytest.raises(RunFolderError, match=r"result\.json': it is no valid JSON"):
        folder.read_json("result.json")
    with pytest.raises(RunFolderError, match=r"student\.safetensors': it is no valid safetensors"):
        folder.read_tensors("student.safetensors")
    with pytest.raises(RunFolderError, match=r"cannot read .*space\.json': No such file"):
        folder.read_json("space.json")


def test_a_safetensors_file_cut_short_is_refused(folder):
    content = folder.write_tensors("student.safetensors", {"weight": torch.ones(9)}).read_bytes()
    folder.write_bytes("student.safetensors", content[:-4])
    with pytest.raises(RunFolderError, match="no valid safetensors"):
        folder.read_tensors("student.safetensors")


def test_tensors_of_every_layout_read_back_bit_for_bit(folder):
    base = torch.randn(4, 3, 5, 5)
    tensors = {
        "plain": base,
        "shared": base,
        "view": base[1:, :2],
        "transposed": base.transpose(0, 3),
        "channels_last": base.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(7),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).bfloat16(),
        "mask": torch.tensor([True, False]),
    }
    folder.write_tensors("student.safetensors", tensors, {"model": "resnet20"})
    found = folder.read_tensors("student.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


def test_the_callers_tensors_do_not_change_when_read_ones_do(folder):
    weight = torch.ones(3)
    folder.write_tensors("student.safetensors", {"weight": weight})
    folder.read_tensors("student.safetensors")["weight"].zero_()
    assert torch.equal(weight, torch.ones(3))


def test_other_readers_of_safetensors_find_tensors_and_metadata(folder):
    from safetensors import safe_open

    metadata = {"model": "resnet20 Σ", "format": "pt"}
    path = folder.write_tensors("student.safetensors", {"b": torch.ones(3), "a": torch.zeros(2, 2)}, metadata)
    with safe_open(path, framework="pt") as file:
        assert {**metadata, "sha256": ANY} == file.metadata()
        assert torch.equal(file.get_tensor("b"), torch.ones(3))


@pytest.mark.parametrize("name", ["architecture.json", "student.safetensors"])
def test_no_changed_bit_gives_another_value(folder, name):
    """A bit that turns the checksum's own name into another leaves the rest as it was, and is the only one let in."""
    if name.endswith("json"):
        path, read = folder.write_json(name, {"widths": {"first": 12}, "Σ": [0.25, None]}), folder.read_json
    else:
        path, read = folder.write_tensors(name, {"a": torch.arange(3.0)}, {"model": "x"}), folder.read_tensors
    content, value, let_in = path.read_bytes(), repr(read(name)), 0
    for place in range(8 * len(content)):
        path.write_bytes(
            content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]
        )
        with suppress(RunFolderError):
            found = read(name)
            let_in += 1
            assert repr(found if name.endswith("safetensors") else without_misnamed_checksum(found)) == value
    assert let_in < 8 * len("sha256")


def without_misnamed_checksum(found):
    return {key: value for key, value in found.items() if not re.fullmatch("[0-9a-f]{64}", str(value))}


def test_a_file_changed_by_hand_is_refused_until_its_checksum_is_removed(folder):
    path = folder.write_json("architecture.json", {"widths": {"first": 12}})
    path.write_text(path.read_text().replace("12", "10"))
    with pytest.raises(RunFolderError, match=r'its checksum does not fit\); restore it, remove its line "sha256"'):
        folder.read_json("architecture.json")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "sha256" not in line))
    assert folder.read_json("architecture.json") == {"widths": {"first": 10}}


def test_equal_tensors_give_equal_files(folder):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    metadata = {str(key): "x" for key in range(9)}
    contents = {folder.write_tensors("student.safetensors", tensors, metadata).read_bytes() for _ in range(5)}
    assert len(contents) == 1


def test_tensors_begin_at_a_multiple_of_eight_bytes(folder):
    for length in range(8):
        path = folder.write_tensors("student.safetensors", {"a": torch.ones(3)}, {"note": "Σ" + "x" * length})
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(folder, full_disk):
    folder.file("result.json").write_text("old")
    before = names(folder)
    with pytest.raises(RunFolderError, match=r"cannot write .*result\.json': No space left on device; free some space"):
        folder.write_json("result.json", "new and longer")
    assert folder.file("result.json").read_text() == "old"
    assert names(folder) == before


def test_readers_never_find_a_part_of_a_file(folder, monkeypatch):
    folder.write_json("result.json", {"top1": 1})
    replace = Path.replace

    def watched(path, target):
        assert json.loads(Path(target).read_text())["top1"] == 1
        assert json.loads(path.read_text())["top1"] == 2
        assert path.parent == Path(target).parent
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    folder.write_json("result.json", {"top1": 2})
    assert folder.read_json("result.json") == {"top1": 2}


def test_content_and_name_are_on_the_disk_before_a_write_returns(folder, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor):
        calls.append("folder" if os.path.samestat(os.fstat(descriptor), folder.path.stat()) else "content")
        fsync(descriptor)

    def watched_replace(path, target):
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    folder.write_text("result.json", "{}")
    assert calls == ["content", "rename", "folder"]


def test_files_are_readable_by_whoever_the_user_allows(folder):
    before = os.umask(0o022)
    try:
        mode = folder.write_text("report.html", "x").stat().st_mode
    finally:
        os.umask(before)
    assert mode & 0o777 == 0o644


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_is_answered_also_for_steps_without_out(folder, monkeypatch, reason):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync", refuse)
    way_out = r"\(with --out where a run begins; for a later step copy the run there\)$"
    with pytest.raises(RunFolderError, match=rf"cannot write .*result\.json': {os.strerror(reason)}; .*{way_out}"):
        folder.write_json("result.json", {})


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_that_must_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied; give yourself the permission"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_names_that_are_no_text_are_kept_in_json_and_refused_in_the_configuration(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"seed": 0})
    folder.write_json("result.json", {"classes": ["\udcff", "é"]})
    assert folder.read_json("result.json") == {"classes": ["\udcff", "é"]}
    assert folder.write_text("report.html", "\udcff").read_bytes() == b"?"
    with pytest.raises(OptionError, match="is not in UTF-8; rename it, or make a link"):
        RunFolder.create(tmp_path / "other", {"data": "imagefolder:\udcff"})
