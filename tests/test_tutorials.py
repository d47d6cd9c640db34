"""The tutorials run, one block after the other in an empty folder, and end with what they promise."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import transprune
from documents import ROOT, run_page
from fake_latency import use_fake_backend
from transprune.latency import performance
from transprune.latency.backends import BACKENDS

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture
def _one_thread(_few_threads):
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_the_tutorial_on_latency_ends_with_a_server_within_the_budget(monkeypatch, tmp_path):
    fake = use_fake_backend(monkeypatch, tmp_path / "cache")  # a busy machine is no reason to fail
    monkeypatch.setitem(BACKENDS, "onnxruntime", fake)
    monkeypatch.setattr(performance._Subject, "peak_memory", lambda *_: 1)  # every one is a process of its own
    folder = tmp_path / "folder"
    folder.mkdir()
    printed = run_page(ROOT / "docs" / "tutorials" / "latency.md", folder).printed
    (budget,) = json.loads((folder / "runs/fast/result.json").read_text())["budgets"]
    assert budget["kind"] == "latency"
    assert budget["actual"] <= budget["target"]
    assert re.fullmatch(
        r"\d+\.\d{3} ms in the middle, \d+\.\d{3} ms for one in a hundred\n", printed["python serve.py\n"]
    )


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """The folder after the tutorial, and what each of its blocks printed."""
    folder, threads = tmp_path_factory.mktemp("own_model"), torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are no faster with two, and much slower on a busy machine
    outcome = run_page(ROOT / "docs" / "tutorials" / "own-model.md", folder)
    torch.set_num_threads(threads)
    return folder, outcome.printed


def test_the_tutorial_on_a_model_of_ones_own_ends_with_a_smaller_model(own_model):
    folder, _ = own_model
    result = json.loads((folder / "runs/small/result.json").read_text())
    assert all(budget["actual"] <= budget["target"] for budget in result["budgets"])
    assert result["teacher"]["top1"] > 90
    assert result["student"]["top1"] > 90


def test_the_exported_model_of_the_tutorial_names_most_digits_right(own_model):
    _, printed = own_model
    said = next(output for text, output in printed.items() if text.startswith("python classify.py"))
    pairs = re.findall(r"digits/val/(\d)/\d+\.png (\d)", said)
    assert len(pairs) > 50
    assert sum(found == expected for expected, found in pairs) > 0.9 * len(pairs)


def test_the_tutorial_shows_files_and_commands_of_its_own_only(own_model):
    folder, _ = own_model
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        *("images.py", "net.py", "train.py", "classify.py", "net.safetensors", "digits", "runs")
    }


@pytest.mark.long
def test_the_tutorial_on_a_language_model_ends_with_a_folder_that_transformers_loads(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    printed = run_page(ROOT / "docs" / "tutorials" / "language-model.md", tmp_path).printed
    assert printed["python tell.py\n"].startswith("Once there was a cat")
    monkeypatch.chdir(tmp_path)
    result = json.loads(Path("runs/small/result.json").read_text())
    teacher, student = result["teacher"], result["student"]
    assert student["params"] <= 0.7 * teacher["params"]
    assert student["token_loss"] < 0.5
    assert student["perplexity"] == pytest.approx(math.exp(student["token_loss"]), rel=1e-4)
    stock = transformers.AutoModelForCausalLM.from_pretrained("small").eval()
    tokens = torch.arange(2, 34).view(1, 32)
    with torch.no_grad():
        wanted = transprune.load("runs/small")(input_ids=tokens).logits
        torch.testing.assert_close(stock(tokens).logits, wanted, rtol=0, atol=1e-5)
    card = Path("small/README.md").read_text()
    assert f"| parameters | {teacher['params']:,} | {student['params']:,} |" in card
