"""Every block of the tutorials runs word by word, one after the other in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")


def blocks(tutorial: str) -> list[tuple[str, str]]:
    """Language and text of every block."""
    return BLOCK.findall((TUTORIALS / tutorial).read_text())


def run(language: str, text: str, folder: Path) -> str:
    """Does what a reader does with a block, and gives what is printed."""
    file = FILE.match(text)
    if language == "python" and file:
        (folder / file[1]).write_text(text)
        return ""
    command = {"python": [sys.executable, "-c"], "bash": ["bash", "-euc"]}[language]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",  # networks this small are no faster with two, and much slower on a busy machine
    }
    done = subprocess.run([*command, text], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """The folder after the tutorial, and what each of its blocks printed."""
    folder = tmp_path_factory.mktemp("own_model")
    return folder, {text: run(language, text, folder) for language, text in blocks("own-model.md")}


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
