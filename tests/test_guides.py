"""The code in the guides runs as it stands, in the order of the page."""

import re
from pathlib import Path

import pytest
import torch

from documents import ROOT, run_page
from fake_latency import use_fake_backend
from transprune.latency.backends import BACKENDS

DOCS = ROOT / "docs"


def run_blocks(page):
    """What the blocks of a page leave behind, and what they print."""
    outcome = run_page(DOCS / page, Path.cwd())
    return outcome.names, "".join(outcome.printed.values())


@pytest.fixture
def _one_thread(_few_threads):
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_the_guide_to_tasks_runs_and_prints_what_it_says():
    torch.manual_seed(0)
    names, printed = run_blocks("tasks.md")
    assert printed.count("Evaluation(loss=") == printed.count("metrics={'r2': ") == 2
    assert "% mean IoU" in printed
    assert "model supernet" in printed
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


def test_every_file_that_the_guides_link_to_is_there():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (DOCS / target).exists(), f"{page.name}: {target}"
