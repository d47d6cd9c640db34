"""The README's example runs as it stands."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import transprune
from transprune.options import PRESETS

pytestmark = pytest.mark.usefixtures("few_digits")

README = Path(__file__).parent.parent / "README.md"


def python_examples():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_example_is_short_and_ends_within_the_budget(capsys, monkeypatch):
    (example,) = python_examples()
    quick = transprune.get_preset("quick")
    parts = {
        part: replace(getattr(quick, part), epochs=1, warm_up_epochs=0) for part in ("teacher", "search", "distill")
    }
    monkeypatch.setitem(PRESETS, "quick", replace(quick, **parts))
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["found"].actual <= names["found"].target == 2_533_002 // 2
    assert "MACs" in capsys.readouterr().out


def test_every_file_that_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
