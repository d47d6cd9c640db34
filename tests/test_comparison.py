"""Several runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from browser import Browser, find_browser
from fake_run import fake_run
from test_report import Page, change
from test_report_browser import OVERLAPS
from transprune.cli import main
from transprune.reports.comparison import comparison, comparison_page, differing, over_seeds, seeds_together
from transprune.reports.report import report_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    parent = tmp_path_factory.mktemp("runs")
    folders = [
        fake_run(parent / name, blocks=blocks, epochs=1) for name, blocks in (("three-blocks-a-stage", 3), ("large", 5))
    ]
    change(folders[1], "result.json", lambda result: result["student"].update(top1=99.5))
    change(folders[1], "result.json", lambda result: result["budgets"][0].update(target=1))
    return [str(folder) for folder in folders]


def unfolded(text: str) -> str:
    """A text whose long lines are whole again."""
    return re.sub(r"\n  (?=\S)", " ", text)


def test_lines_for_each_run_say_what_came_out_in_80_columns(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(Path(runs[0]).parent)
    main(["compare", *(Path(run).name for run in runs)])
    lines = capsys.readouterr().out.splitlines()
    _, _, _, small, large, *_ = lines
    *named, latency = unfolded("\n".join(lines[5:])).splitlines()
    assert re.split(r"  +", small.strip()) == [
        "1", "98.89 %", "-0.278", "1.25 M (50 %)", "127.95 k (48 %)", "0.8710 ms (68 %)",
    ]  # fmt: skip
    assert "+0.333" in large
    assert max(map(len, lines)) <= 80
    assert named[0] == " 1  three-blocks-a-stage: resnet20 on digits, macs=0.5, demo, seed 0, 3 min 50 s"
    assert "macs=0.5 NOT kept" in named[1]
    assert latency == "latency in torch on cpu, 1 thread, batch 1"


@pytest.fixture(scope="module")
def different(runs, tmp_path_factory) -> list[str]:
    """Runs with other seeds and options, one that has only begun, one of another task, and a frontier."""
    parent = tmp_path_factory.mktemp("different")
    seeds = [fake_run(parent / f"seed-{seed}", epochs=1, seed=seed) for seed in (1, 2)]
    change(seeds[0], "result.json", lambda result: result["student"].update(top1=98.0))
    begun = fake_run(parent / "begun", epochs=3, until="search")
    frontier = parent / "frontier"
    points = [fake_run(frontier / name, epochs=1, seed=5) for name in ("macs-0.3", "macs-0.3-uniform")]
    (frontier / "config.toml").write_text('budget = ["macs=0.3,0.5"]\n')
    assert points
    return [runs[0], *map(str, [*seeds, begun, frontier])]


def test_what_differs_is_named_with_who_has_which_value(runs, different):
    found = dict(differing(comparison([runs[0], different[1], runs[1]])))
    assert found == {"model": "resnet20 (1, 2); resnet32 (3)", "seed": "0 (1, 3); 1 (2)"}


def test_the_same_number_is_no_difference_however_it_is_written(tmp_path):
    folders = [fake_run(tmp_path / name, epochs=1) for name in ("one", "other")]
    for folder, value in zip(folders, ("1", "1.0"), strict=True):
        with (folder / "config.toml").open("a") as config:
            config.write(f"\n[distill]\nwarm_up_epochs = {value}\n")
    assert differing(comparison(list(map(str, folders)))) == []


def test_copies_of_a_run_are_one_seed(different, tmp_path):
    copies = [shutil.copytree(different[place], tmp_path / str(place)) for place in (0, 1)]
    assert seeds_together(comparison([different[0], copies[0]])) == []
    (group,) = seeds_together(comparison([different[0], *map(str, copies)]))
    assert (group["places"], group["count"]) == ("1, 3", 2)


def test_runs_that_differ_in_their_seed_alone_are_taken_together(different, capsys):
    (group,) = seeds_together(comparison(different[:3]))
    assert group["places"] == "1, 2, 3"
    mean, deviation = group["student"]
    assert (round(mean, 3), round(deviation, 3)) == (98.593, 0.513)
    assert seeds_together(comparison(different[:1])) == []
    main(["compare", *different[:3]])
    assert "3 seeds (1, 2, 3): top-1 98.59 ± 0.51 %" in capsys.readouterr().out


def test_a_report_tells_the_spread_over_the_seeds_that_lie_beside_it(tmp_path):
    first, second, third, other = (fake_run(tmp_path / str(place), epochs=1, seed=place) for place in range(4))
    for folder, change_of_it in ((first, -0.2), (second, -0.6), (third, 0.2)):
        change(folder, "result.json", lambda result, by=change_of_it: result["student"].update(
            top1=result["teacher"]["top1"] + by
        ))  # fmt: skip
    other_options = (other / "config.toml").read_text(encoding="utf-8").replace("macs=0.5", "macs=0.3")
    (other / "config.toml").write_text(other_options, encoding="utf-8")
    shutil.copytree(first, tmp_path / "a copy")
    assert over_seeds(first) == (
        "Over 3 seeds (0, 1, 2) top-1 moved by −0.20 ± 0.40 points from teacher to student (mean ± "
        "standard deviation), and was lower in 2 of 3."
    )
    assert over_seeds(other) == ""
    assert over_seeds(first).split(")")[1] in Page(report_page(first)).text()
    (third / "result.json").write_text("[", encoding="utf-8")
    assert over_seeds(first).startswith("Over 2 seeds (0, 1)"), "what is damaged beside it is left out"
    shutil.rmtree(second)
    assert over_seeds(first) == ""


def test_unfinished_runs_and_frontiers_are_shown_as_such(different, tmp_path, capsys):
    main(["compare", *different, "--html", str(tmp_path / "c.html")])
    out = unfolded(capsys.readouterr().out)
    assert "begun: resnet20 on digits, macs=0.5, seed 0, unfinished: search, epoch 3 of 3" in out
    assert "frontier/macs-0.3-uniform: " in out
    text = (tmp_path / "c.html").read_text(encoding="utf-8").replace("&nbsp;", " ")
    assert "unfinished: search, epoch 3 of 3" in text
    for title in ("What differs", "Seeds together", "Accuracy and cost", "Curves"):
        assert f">{title}</h2>" in text
    assert Page(text).open == []


def test_a_task_of_another_metric_is_compared_by_it(tmp_path, capsys):
    folders = [fake_run(tmp_path / str(seed), epochs=1, seed=seed) for seed in (0, 1)]
    for folder in folders:
        change(folder, "result.json", lambda result: result.update(metrics=["mean_iou"]))
        change(folder, "result.json", lambda result: result["student"].update(mean_iou=0.75))
        change(folder, "result.json", lambda result: result["teacher"].update(mean_iou=0.8))
    main(["compare", *map(str, folders), "--html", str(tmp_path / "c.html")])
    heading, row = capsys.readouterr().out.splitlines()[1::2][:2]
    assert "mean_iou" in heading
    assert row.split()[1:3] == ["0.75", "-0.05"]
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "top-1" not in text.partition("</style>")[2]
    assert "Mean_iou against MACs" in text


def test_links_lead_to_the_reports_from_where_the_page_is(runs, tmp_path):
    folder = fake_run(tmp_path / "runs" / "one", epochs=1)
    (folder / "report.html").write_text("")
    main(["compare", str(folder), runs[0], "--html", str(tmp_path / "c.html")])
    links = [each["href"] for each in Page((tmp_path / "c.html").read_text(encoding="utf-8")).all("a")]
    assert "runs/one/report.html" in links
    assert not any("large" in link for link in links)


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


def test_a_folder_that_is_no_run_is_refused(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", runs[0], str(tmp_path / "missing")])
    assert stopped.value.code == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_one_teacher_at_another_pace_is_told_in_the_terminal_and_on_the_page(tmp_path, capsys):
    folders = [fake_run(tmp_path / name, epochs=1) for name in ("first", "second")]
    told = "took 0.5000 ms in one run and 0.7500 ms in another: compare shares, not milliseconds."
    for later, is_told in ((0.55, False), (0.75, True)):
        for folder, taken in zip(folders, (0.5, later), strict=True):
            change(folder, "result.json", lambda result, each=taken: result["teacher"].update(latency_ms=each))
        main(["compare", *map(str, folders), "--html", str(tmp_path / "runs.html")])
        assert (told in " ".join(capsys.readouterr().out.split())) == is_told
        assert (told in (tmp_path / "runs.html").read_text().replace("&nbsp;", " ")) == is_told


def test_one_option_is_said_in_the_singular(tmp_path):
    folders = [fake_run(tmp_path / name, epochs=1) for name in ("first", "second")]
    config = folders[1] / "config.toml"
    config.write_text(config.read_text() + 'augment = "shift"\n')
    assert len(differing(comparison(folders))) == 1
    assert "1 other option<" in comparison_page(comparison(folders))
