"""The code in the guides runs as it stands, in the order of the page."""

import re
import sys
from pathlib import Path

import pytest
import torch

from documents import ROOT, run_page
from fake_latency import use_fake_backend
from transprune.latency.backends import BACKENDS

pytestmark = pytest.mark.usefixtures("few_digits")

DOCS = ROOT / "docs"


def run_blocks(page):
    """What the blocks of a page leave behind, and what they print."""
    outcome = run_page(DOCS / page, Path.cwd())
    return outcome.names, "".join(outcome.printed.values())


@pytest.fixture
def _one_thread(_few_threads):
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_tasks_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, printed = run_blocks("tasks.md")
    assert printed.count("Evaluation(loss=") == printed.count("metrics={'r2': ") == 2
    assert "% mean IoU" in printed
    assert "model repaired" in printed
    assert type(names["smaller"].whole) is type(names["detector"])
    assert names["student"].head.out_channels == 2
    assert names["found"].actual <= names["found"].target


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_any_model_runs_and_prints_what_it_says():
    torch.manual_seed(0)
    names, printed = run_blocks("any-model.md")
    assert re.search(r"\d+ widths, \d+ depths", printed)
    assert "TracedNetwork because its own forward cannot follow the cut" in printed
    assert isinstance(names["small"], torch.nn.Sequential)


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_latency_runs_and_prints_what_it_says(monkeypatch, tmp_path):
    fake = use_fake_backend(monkeypatch, tmp_path)  # what it says is the same on every machine
    monkeypatch.setitem(BACKENDS, "onnxruntime", fake)
    _, printed = run_blocks("latency.md")
    assert re.match(r"\d+\.\d{3} ms\n\d+\.\d{3} ms\noff by \d\.\d% \(median\), \d\.\d% \(worst\)\n$", printed)


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_runtimes_runs_and_prints_what_it_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, printed = run_blocks("runtimes.md")
    assert names["found"].bytes_after < names["found"].bytes_before
    assert len(printed.split()) == 4
    assert {"student.onnx", "student.int8.onnx"} <= {each.name for each in tmp_path.iterdir()}


class StandIn:
    """A module whose functions only note what they were called with."""

    def __init__(self, name):
        self.__name__, self.calls = name, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        part = StandIn(f"{self.__name__}.{name}")
        part.calls = self.calls
        return part

    def __call__(self, *arguments, **options):
        self.calls.append((self.__name__, arguments, options))

    def named(self, name):
        """The first arguments of all calls of a function."""
        return [arguments[0] for called, arguments, _ in self.calls if called == name]


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_watching_a_run_tells_every_tracker_of_each_epoch(monkeypatch, tmp_path, capsys):
    wandb, mlflow = StandIn("wandb"), StandIn("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run_page(DOCS / "tracking.md", tmp_path)
    assert "failed on a record" not in capsys.readouterr().err
    for figures in (wandb.named("wandb.log"), mlflow.named("mlflow.log_metrics")):
        assert [min(name for name in each if "loss" in name) for each in figures[:3]] == [
            *("teacher/loss", "search/loss", "distill/loss"),
        ]
    assert [call[0] for call in wandb.calls][:2] == ["wandb.init", "wandb.config.update"]
    assert wandb.named("wandb.summary.update")[0].keys() == {"teacher", "student"}
    assert mlflow.named("mlflow.log_params")[0]["model"] == "resnet20"
    assert "teacher/loss" in mlflow.named("mlflow.log_metrics")[-1], "the call from Python"
    assert (tmp_path / "runs/watched/tensorboard/search").is_dir()


def test_every_file_that_the_guides_link_to_is_there():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (DOCS / target).exists(), f"{page.name}: {target}"
