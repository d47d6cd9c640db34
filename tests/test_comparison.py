"""Several runs side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from browser import Browser, find_browser
from fake_run import fake_run
from test_report import Page, change
from test_report_browser import OVERLAPS
from transprune.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    parent = tmp_path_factory.mktemp("runs")
    folders = [fake_run(parent / name, blocks=blocks, epochs=1) for name, blocks in (("small", 3), ("large", 5))]
    change(folders[1], "result.json", lambda result: result["student"].update(top1=99.5))
    change(folders[1], "result.json", lambda result: result["budgets"][0].update(target=1))
    return [str(folder) for folder in folders]


def test_a_line_for_each_run_says_what_came_out(runs, capsys):
    main(["compare", *runs])
    _, _, _, small, large = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", small) == [
        runs[0], "resnet20", "digits", "macs=0.5", "98.89 %", "0.28 points lower", "1.25 M (50 %)",
        "127.95 k (48 %)", "0.87 ms (68 %) in torch on cpu, 1 thread, batch 1", "534.53 kB (49 %)", "3 min 50 s",
    ]  # fmt: skip
    assert "0.33 points higher" in large
    assert "macs=0.5 NOT kept" in large


def test_programs_read_json(runs, capsys):
    main(["compare", *runs, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in found] == runs
    assert [each["student"]["top1"] for each in found] == [98.8889, 99.5]


def test_the_page_has_a_row_and_a_point_for_each_run_and_needs_nothing_else(runs, tmp_path, capsys):
    main(["compare", *runs, "--html", str(tmp_path / "runs.html")])
    text = (tmp_path / "runs.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"(https?:)?//", text.replace(runs[0], "").replace(runs[1], ""))
    assert page.open == []
    assert [cell for cell in page.text("th").split() if cell in ("1.", "2.")] == ["1.", "2."]
    assert "run 1: 98.89 % at" in text.replace("&nbsp;", " ")
    assert str(tmp_path / "runs.html") in capsys.readouterr().out


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed (Debian: chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desk(runs, tmp_path, width):
    main(["compare", *runs, "--html", str(tmp_path / "runs.html")])
    with Browser() as browser:
        page = browser.open(tmp_path / "runs.html", width=width)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(OVERLAPS) == []
        assert page.complaints() == []


def test_runs_that_are_not_evaluated_are_refused(runs, tmp_path, capsys):
    unfinished = fake_run(tmp_path / "unfinished", epochs=1, until="search")
    with pytest.raises(SystemExit) as stopped:
        main(["compare", runs[0], str(unfinished)])
    assert stopped.value.code == 2
    assert "result.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(Path(tmp_path) / "missing")])
