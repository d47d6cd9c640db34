"""A run reads its images as it did when it began, whatever becomes of the folder that they lie in."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from test_data import picture
from transprune.cli import main
from transprune.errors import RunFolderError
from transprune.runs import distill_step, measure_step, open_run, plan_run, prepare, resume_run
from transprune.runs.phases import SEARCH, complete, courses
from transprune.runs.steps import _check_batches, _point
from transprune.runtime import read_journal
from whole_runs import NET

CLASSES = ("a", "b", "c")
SHORT = [
    *("--preset", "quick", "--device", "cpu", "--teacher.epochs", "2", "--teacher.warm-up-epochs", "0"),
    *(
        "--search.epochs",
        "2",
        "--search.warm-up-epochs",
        "0",
        "--search.prior",
        "none",
        "--distill.epochs",
        "2",
        "--distill.warm-up-epochs",
        "0",
    ),
    *("--teacher.batch-size", "8", "--search.batch-size", "8", "--distill.batch-size", "8"),
]


def command(*more, budget="macs=0.6", out="run"):
    return ["run", "net.py:build", "--data", "imagefolder:images", "--budget", budget, "--out", out, *SHORT, *more]


def stripes(label, seed):
    """A picture of a class, nearly black: its pixels' mean is far from that of white ones."""
    pixels = np.asarray(picture(seed)) // 8
    pixels[label * 2] = 120
    return Image.fromarray(pixels)


def write_images(root, count=8):
    for part, first in (("train", 0), ("val", 100)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                stripes(label, first + number).save(folder / f"{number}.png")


def add_white_images(count=40):
    for number in range(count):
        Image.new("RGB", (8, 8), "white").save(f"images/train/a/white{number}.png")


def rename_class(old, new):
    for part in ("train", "val"):
        Path("images", part, old).rename(Path("images", part, new))


def content(folder="run"):
    """Every file of a run but the lines that each command adds."""
    return {
        path: path.read_bytes() for path in Path(folder).rglob("*") if path.name not in ("journal.jsonl", "run.log")
    }


def figures():
    result = json.loads(Path("run/result.json").read_text())
    return {name: [result[name][key] for key in ("top1", "loss")] for name in ("teacher", "student")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "net.py").write_text(NET)
        write_images(place / "images")
        main(command())
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of a finished run beside its images."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_the_folder_says_what_the_data_were(place):
    kept = json.loads(Path("run/data.json").read_text())
    described = json.loads(Path("run/architecture.json").read_text())["preprocessing"]
    assert kept["classes"] == described["classes"] == list(CLASSES)
    assert described["how"].startswith("the whole image is resized to 8 x 8 (rows x columns) bilinearly")
    assert kept["image_size"] == [3, 8, 8]
    assert (kept["mean"], kept["std"]) == (described["mean"], described["std"])
    assert (kept["training_images"], kept["test_images"]) == (24, 24)


@pytest.mark.parametrize("again", [["evaluate", "run", "--device", "cpu"], command()])
def test_more_training_images_change_no_figure_and_are_said(place, capfd, again):
    before = figures()
    add_white_images()
    main(again)
    assert figures() == before
    assert "it began with 24 training and 24 test images, and there are 64 training and 24" in capfd.readouterr().err
    said = [entry for entry in read_journal("run/journal.jsonl") if "training_images_before" in entry]
    assert [(entry["training_images_before"], entry["training_images"]) for entry in said] == [(24, 64)]
    assert "WARNING transprune.run: Evaluates other images" in Path("run/run.log").read_text()


def test_images_as_they_were_are_not_spoken_of(place, capfd):
    main(["evaluate", "run", "--device", "cpu"])
    assert "other images" not in capfd.readouterr().err


def test_an_image_of_another_size_leaves_the_runs_size_as_it_was(place):
    picture(0, size=(40, 60)).save("images/train/a/large.png")
    with open_run("run", device="cpu") as run:
        assert run.data.image_size == (3, 8, 8)


def test_exported_files_are_compared_on_images_normalised_as_before(place):
    with open_run("run", device="cpu") as run:
        (before,) = _check_batches(run, (24,))
    add_white_images()
    with open_run("run", device="cpu") as run:
        (now,) = _check_batches(run, (24,))
    assert torch.equal(before, now)


def all_ways_to_go_on():
    yield lambda: main(["evaluate", "run", "--device", "cpu"])
    yield lambda: main(["export", "run", "--device", "cpu"])
    yield lambda: main(["distill", "run", "--device", "cpu"])
    yield lambda: main(["run", "--resume", "run", "--device", "cpu"])
    yield lambda: main(command())
    yield lambda: main(command("--plan"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: rename_class("a", "z"), "'a' is missing and 'z' is new"),
        (lambda: [shutil.rmtree(f"images/{part}/b") for part in ("train", "val")], "'b' is missing"),
        (lambda: [shutil.copytree(f"images/{part}/b", f"images/{part}/d") for part in ("train", "val")], "'d' is new"),
    ],
)
def test_other_classes_are_refused_by_every_verb_and_nothing_is_overwritten(place, capsys, change, said):
    Path("run/student.safetensors").unlink()  # so that there is something to train
    change()
    before = content()
    for go_on in all_ways_to_go_on():
        with pytest.raises(SystemExit) as ended:
            go_on()
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert f"cannot go on with the run in 'run': its data have other classes than it began with: {said};" in message
        assert "start anew with --overwrite" in message
    assert content() == before
    assert not any(entry.get("phase") == "distill" for entry in read_journal("run/journal.jsonl")[-4:])


def test_other_classes_are_refused_by_measuring_too(place):
    rename_class("a", "z")
    with open_run("run", device="cpu") as run, pytest.raises(RunFolderError, match="'z' is new"):
        measure_step(run)


def test_training_on_another_number_of_images_is_refused(place):
    Path("run/student.safetensors").unlink()
    add_white_images(1)
    before = content()
    with (
        open_run("run", device="cpu") as run,
        pytest.raises(RunFolderError, match=r"with 24 .*, and there are 25"),
    ):
        distill_step(run)
    with pytest.raises(RunFolderError, match="began with 24 training images"):
        plan_run(options(), "run", device="cpu")
    assert content() == before
    Path("images/train/a/white0.png").unlink()
    with open_run("run", device="cpu") as run:
        distill_step(run)
    assert Path("run/student.safetensors").is_file()


def options(**changes):
    with open_run("run", device="cpu") as run:
        return replace(run.options, **changes)


def test_starting_anew_takes_the_data_as_they_are(place):
    wanted = options()
    rename_class("a", "z")
    with prepare(wanted, "run", device="cpu", overwrite=True) as run:
        assert run.data.classes == ("b", "c", "z")
    assert json.loads(Path("run/data.json").read_text())["classes"] == ["b", "c", "z"]


def test_a_folder_of_an_earlier_version_takes_the_data_as_they_are(place):
    Path("run/data.json").unlink()
    add_white_images()
    with resume_run("run", device="cpu") as run:
        assert min(run.data.mean) > 0.5
    assert not Path("run/data.json").exists(), "nobody knows what they were when the run began"


def test_a_damaged_file_is_refused(place):
    Path("run/data.json").write_text('{"classes": ["a"]}')
    with open_run("run", device="cpu") as run, pytest.raises(RunFolderError, match="image_size is missing"):
        _ = run.data


def test_the_points_of_a_frontier_read_the_images_as_the_frontier_began(place):
    wanted = options(budget=("macs=0.5,0.7",))
    with prepare(wanted, "frontier", device="cpu") as run:
        mean = run.data.mean
        for name in ("teacher.safetensors", "shared.safetensors"):
            run.folder.write_tensors(name, {"x": torch.zeros(1)})
        add_white_images()
        _, course, *_ = courses(wanted, run.space, run.costs)
        with _point(run, course, False) as point:
            assert point.data.mean == mean
            with pytest.raises(RunFolderError, match="began with 24 training images"):
                complete(point, SEARCH)
    kept = [Path("frontier", name, "data.json").read_bytes() for name in (".", "macs-0.5")]
    assert kept[0] == kept[1]
    rename_class("a", "z")
    with pytest.raises(RunFolderError, match=r"cannot go on with the run in 'frontier': .*'z' is new"):
        prepare(wanted, "frontier", device="cpu")


def test_a_run_says_at_its_beginning_which_files_it_left_out_and_a_plan_does(place, capfd):
    wanted = options()
    Path("images/train/a/extra.gif").write_bytes(b"")
    said = "1 file is no image by the ending (1 .gif)"
    for begin in ({"overwrite": True}, {}):
        with prepare(wanted, "run", device="cpu", **begin):
            pass
    entries = [entry for entry in read_journal("run/journal.jsonl") if "left_out" in entry]
    assert [(entry["why"], entry["left_out"]) for entry in entries] == [(said, {".gif": 1})]
    main(command("--plan", out="other"))
    assert f"left out: {said}" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        main(command("--max-minutes", "1e-9", out="other"))
    assert f"Left out files beside the images: {said}" in capfd.readouterr().err
