"""A model of the user's own code goes through the whole job on the command line."""

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import transprune
from transprune.cli import main
from transprune.data import load_data
from transprune.models.by_name import build_model
from transprune.runs import RunOptions, prepare, steps
from transprune.runtime import read_journal
from transprune.training.train import Fit

pytestmark = pytest.mark.usefixtures("few_digits")

NET = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features):
        return (self.second(self.first(features).relu()) + features).relu()


class Net(nn.Module):
    def __init__(self, classes, image_channels):
        super().__init__()
        self.stem = nn.Conv2d(image_channels, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16), Block(16))
        self.classifier = nn.Linear(16, classes)

    def forward(self, images):
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


def build(classes, image_channels):
    return Net(classes, image_channels)


def of_five_classes(image_channels):
    return Net(5, image_channels)


class WithMore(Net):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, images.mean(dim=(2, 3))) if self.training else logits
"""

FAST = [
    *("--preset", "quick", "--teacher.epochs", "3", "--distill.epochs", "3", "--search.epochs", "2"),
    *("--search.prior", "none"),
    *("--search.batch-size", "128", "--device", "cpu", "--data", "digits"),
]
OPTIONS = ["--keep", "stem", "--divisor", "4", "--weights", "given.safetensors", "--weights-partial"]


def search(*more):
    main(["search", "net.py:build", "--budget", "macs=0.6", "--out", "out", *FAST, *OPTIONS, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, few_digits):
    """A folder with the user's code and weights of another classifier, and a run of them in `out`."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "net.py").write_text(NET)
        given = build_model("net.py:of_five_classes", classes=10, image_channels=1).state_dict()
        save_file({**given, "teacher_of_teacher": torch.zeros(1)}, "given.safetensors")
        search()
        for step in ("distill", "evaluate", "export"):
            main([step, "out", "--device", "cpu"])
        main(["report", "out"])
    return place


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def read(name: str):
    return json.loads((Path("out") / name).read_text())


def test_the_run_ends_within_its_budget():
    (budget,) = read("result.json")["budgets"]
    assert budget["actual"] == read("result.json")["student"]["macs"] <= budget["target"]
    assert all((Path("out") / name).stat().st_size for name in ("student.onnx", "student.safetensors", "report.html"))


def test_a_layer_that_is_kept_keeps_its_width_and_the_others_have_multiples_of_the_divisor():
    space, architecture = read("space.json"), read("architecture.json")
    assert {"name": "stem", "reason": "it is kept as asked"} in space["fixed"]
    assert architecture["widths"].keys() == {f"blocks.{block}.first" for block in range(3)}
    assert all(width % 4 == 0 for group in space["groups"] for width in group["candidates"])
    assert all(width % 4 == 0 for width in architecture["widths"].values())


def test_the_options_stand_in_the_configuration_and_the_same_ones_take_the_run_up(capsys):
    config = tomllib.loads(Path("out/config.toml").read_text())
    assert (config["keep"], config["only"], config["divisor"]) == (["stem"], [], 4)
    assert config["weights_partial"] is True
    before = Path("out/architecture.json").stat().st_mtime_ns
    search()
    assert Path("out/architecture.json").stat().st_mtime_ns == before
    for option in (["--only", "blocks*"], ["--keep", "blocks"], ["--divisor", "8"], ["--no-weights-partial"]):
        with pytest.raises(SystemExit):
            search(*option)
        capsys.readouterr()


def test_the_journal_and_the_log_say_what_of_the_weights_did_not_fit():
    (entry,) = [entry for entry in read_journal(Path("out/journal.jsonl")) if "unexpected" in entry]
    assert entry["what"] == "The teacher is trained from the given weights"
    assert entry["missing"] == []
    assert entry["unexpected"] == []
    assert entry["left_out"] == ["teacher_of_teacher"]
    assert entry["reshaped"] == [
        "classifier.weight has shape [5, 16], expected [10, 16]",
        "classifier.bias has shape [5], expected [10]",
    ]
    log = Path("out/run.log").read_text()
    assert "2 of another shape or type: classifier.weight" in log
    assert "left out, since it is no part of the network: teacher_of_teacher" in log


def test_where_weights_are_missing_the_teacher_is_trained():
    epochs = [entry for entry in read_journal(Path("out/journal.jsonl")) if entry["event"] == "epoch"]
    assert [entry["epoch"] for entry in epochs if entry["phase"] == "teacher"] == [1, 2, 3]


def test_that_training_starts_from_what_fits_of_the_weights(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Fit, "run", lambda fit: started.append(fit.network.state_dict()))
    options = RunOptions(
        model="net.py:build",
        data="digits",
        budget=("macs=0.6",),
        preset="quick",
        weights="given.safetensors",
        weights_partial=True,
    )
    steps.teach_step(prepare(options, tmp_path / "out", device="cpu"))
    given = load_file("given.safetensors")
    same = {name for name, value in started[0].items() if name in given and torch.equal(value, given[name])}
    assert same == started[0].keys() - {"classifier.weight", "classifier.bias"}


def test_the_student_is_loaded_with_the_model_and_is_the_one_that_was_measured():
    spec = importlib.util.spec_from_file_location("net_of_test", "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    student = transprune.load("out", model=module.build(10, 1))
    assert isinstance(student, module.Net)
    assert transprune.evaluate(student, load_data("digits")).top1 == pytest.approx(
        read("result.json")["student"]["top1"]
    )


def test_the_exported_program_classifies_like_the_student_without_its_code():
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = transprune.load("out", model=build_model("net.py:build", classes=10, image_channels=1))
    loaded = torch.export.load("out/student.pt2").module()
    assert torch.allclose(loaded(images), student(images), atol=1e-5)


def test_where_the_batch_is_fixed_the_log_and_the_journal_say_so(tmp_path, monkeypatch):
    copied = tmp_path / "copied"
    shutil.copytree("out", copied)
    monkeypatch.setattr(steps, "export_program", lambda student, example: torch.export.export(student, (example,)))
    main(["export", str(copied), "--device", "cpu"])
    decision = [entry for entry in read_journal(copied / "journal.jsonl") if entry["event"] == "decision"][-1]
    assert decision["takes_any_batch"] is False
    assert "one image at a time" in decision["why"]
    assert "one image at a time" in (copied / "run.log").read_text()
    first = next(entry for entry in read_journal(Path("out/journal.jsonl")) if "takes_any_batch" in entry)
    assert first["takes_any_batch"] is True


def test_the_steps_need_the_code_but_not_the_weights_file(tmp_path, monkeypatch, capsys):
    Path("given.safetensors").rename("moved")
    try:
        main(["export", "out", "--device", "cpu"])
    finally:
        Path("moved").rename("given.safetensors")
    out = str(Path("out").resolve())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", out, "--device", "cpu"])
    assert "there is no file 'net.py'" in capsys.readouterr().err


REFUSED = {
    "other classes": (["net.py:of_five_classes"], r"of 2 images its forward gives \[2, 5\], expected .*\[2, 10\]"),
    "more than logits": (
        ["net.py:WithMore"],
        r"its forward gives a tuple of \[2, 10\] and \[2, 1\], expected the logits",
    ),
    "no such function": (["net.py:biuld"], "did you mean 'build'"),
    "a pattern to keep without a match": (
        ["net.py:build", "--keep", "stam"],
        "keep 'stam': no layer or stage has such a name; expected one of .* did you mean 'stem'",
    ),
    "a pattern to search without a match": (
        ["net.py:build", "--only", "blocks.*", "stages.*"],
        r"only 'stages\.\*': no layer or stage",
    ),
    "nothing left to search": (["net.py:build", "--only", "classifier"], "none of its widths and depths can be chosen"),
    "a divisor of nothing": (["net.py:build", "--divisor", "0"], "expected .* a divisor of at least 1"),
    "weights that do not fit": (["net.py:build", "--weights", "given.safetensors"], "use --weights-partial"),
    "partial weights without weights": (["net.py:build", "--weights-partial"], r"\(--weights FILE\)"),
    "colours for a torchvision model": (["torchvision:resnet18"], "with 1 channels: it reads 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training_with_a_clear_message(name, tmp_path, capsys):
    arguments, message = REFUSED[name]
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments, *FAST, "--budget", "macs=0.6", "--out", str(tmp_path / "refused")])
    assert stopped.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "refused").exists()


def test_inspect_reads_models_of_every_form(capsys):
    for name, size in (("net.py:build", ("1", "8", "8")), ("torchvision:resnet18", ("3", "32", "32"))):
        main(["inspect", name, "--input-size", *size, "--json", "--only", "*.1*", "--divisor", "8"])
        space = transprune.SearchSpace.from_json(capsys.readouterr().out)
        assert space.groups
        assert all(".1" in " ".join(group.layers) for group in space.groups)
        assert all(width % 8 == 0 for group in space.groups for width in group.candidates)


def test_inspect_keeps_what_it_is_told_to(capsys):
    main(["inspect", "net.py:build", "--input-size", "1", "8", "8", "--keep", "blocks", "stem"])
    assert "it is kept as asked" in capsys.readouterr().out
