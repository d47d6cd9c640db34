"""Every block of the pages runs as it stands, or says why not; every command that they show is one."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from documents import ROOT, blocks, pages, run_page, shown_commands
from fake_latency import use_fake_backend
from transprune.cli import arguments, main
from transprune.latency.backends import BACKENDS
from transprune.reading.rules import RULES

pytestmark = pytest.mark.usefixtures("few_digits")

TESTED_WITH_MORE = ("test_guides.py", "test_tutorials.py", "test_readme.py")
"""Tests that run pages too, and look at what comes out."""
MAKE_TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def is_run_elsewhere(page: Path) -> bool:
    return any(f'"{page.name}"' in (Path(__file__).parent / file).read_text() for file in TESTED_WITH_MORE)


def named(found):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


def commands(page):
    """All commands of a page, run or not."""
    fenced = [command for block in blocks(page) if block.language == "bash" for command in block.commands]
    return fenced + shown_commands(page)


@pytest.fixture(autouse=True)
def _no_rules_are_left():
    with mock.patch.dict(RULES):
        yield


@pytest.fixture
def _one_thread(_few_threads):
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("page", named(page for page in pages() if blocks(page) and not is_run_elsewhere(page)))
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    torch.manual_seed(0)
    if "--budget latency" in page.read_text():  # a busy machine is no reason to fail
        monkeypatch.setitem(BACKENDS, "onnxruntime", use_fake_backend(monkeypatch, tmp_path / "cache"))
    outcome = run_page(page, tmp_path)
    assert len(outcome.printed) == len({block.text for block in blocks(page) if block.not_run is None})


@pytest.mark.parametrize("page", named(page for page in pages() if commands(page)))
def test_every_command_that_a_page_shows_is_one(page, monkeypatch):
    read = arguments.tyro.cli

    def only_read(*args, **kwargs):
        read(*args, **kwargs)
        return lambda: None

    monkeypatch.setattr(arguments.tyro, "cli", only_read)
    monkeypatch.setattr(arguments, "read_config", lambda _: {"model": "resnet20", "budget": ["macs=0.5"]})
    for command in commands(page):
        words = re.sub(r"[A-Z]+…", "X", command).replace("VERB", "run").split()
        if words[0] == "make":
            assert set(words[1:]) <= {*MAKE_TARGETS, *(word for word in words if "=" in word)}, command
        elif words[0] == "transprune" and "…" in command:
            assert words[1] in arguments.COMMANDS, command
        elif words[0] == "transprune":
            try:
                main(_unquoted(words[1 : words.index(">")] if ">" in words else words[1:]))
            except SystemExit as end:  # help ends the process
                if end.code:
                    raise AssertionError(command) from end


def _unquoted(words):
    return [word.strip("'") for word in words]


def test_a_block_that_is_not_run_says_why():
    for page in pages():
        for block in blocks(page):
            assert block.language in ("python", "bash", "text", "json", "toml"), f"{page.name}: {block.language}"
            assert block.not_run is None or len(block.not_run.split()) >= 3, f"{page.name}: {block.not_run}"


def test_a_mark_that_no_block_follows_is_found():
    for page in pages():
        marks = len(re.findall(r"^<!-- (?:not run|shortened in tests):", page.read_text(), re.MULTILINE))
        assert marks == sum(block.not_run is not None or bool(block.shortened) for block in blocks(page)), page.name
