"""A frontier: several budgets in one go, from one teacher and one supernet, with uniform scaling beside them."""

import io
import json
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import transprune
from test_report import EVIL, Page
from transprune.cli import main
from transprune.errors import BudgetError
from transprune.reports.comparison import frontier_page
from transprune.runs import steps
from transprune.runtime import RunFolder, read_journal
from transprune.tas.baselines import uniform_architecture
from whole_runs import FAST, NET, assert_as_planned, counted_steps, counted_traces

pytestmark = pytest.mark.usefixtures("few_digits")


def run(*more, budget="macs=0.4,0.7"):
    main(["run", "net.py:build", "--budget", budget, "--out", "out", *FAST, *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_digits):
    """A folder with a frontier in `out`, what was planned of it, and the traces and steps that it took."""
    place = tmp_path_factory.mktemp("frontier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "net.py").write_text(NET)
        with redirect_stdout(io.StringIO()) as printed, counted_steps() as made_steps:
            run("--plan", "--json")
            assert made_steps == {}, "no epoch is trained"
        with counted_traces() as traced, counted_steps() as made_steps:
            run()
    return SimpleNamespace(place=place, plan=json.loads(printed.getvalue()), steps=made_steps, traced=traced)


@pytest.fixture(autouse=True)
def _there(made, monkeypatch):
    monkeypatch.chdir(made.place)


def read(name):
    return json.loads(Path("out", name).read_text())


def test_every_point_is_a_run_of_its_own_within_its_budget():
    for share in (0.4, 0.7):
        for ending in ("", "-uniform"):
            result = read(f"macs-{share}{ending}/result.json")
            (budget,) = result["budgets"]
            assert budget["text"] == f"macs={share}"
            assert budget["target"] == int(share * result["teacher"]["macs"])
            assert result["student"]["macs"] <= budget["target"]
            for name in ("student.safetensors", "student.onnx", "report.html", "architecture.json", "config.toml"):
                assert Path("out", f"macs-{share}{ending}", name).stat().st_size


def test_the_frontier_did_what_its_plan_had_said(made, capsys):
    assert_as_planned(made.plan, made.steps, "out")
    plans = []
    for more in ([], ["--overwrite"]):
        run("--plan", "--json", *more)
        plans.append(json.loads(capsys.readouterr().out)["phases"])
    again, anew = plans
    assert {phase["epochs"] for phase in again} == {0}
    assert all(phase["note"].startswith("done: ") for phase in again)
    assert [phase["steps"] for phase in anew] == [phase["steps"] for phase in made.plan["phases"]]


def test_the_whole_frontier_traced_its_network_once(made):
    assert made.traced == ["Sequential"]


def test_the_points_share_teacher_and_supernet_and_each_has_searched_by_itself():
    for name in ("teacher.safetensors", "shared.safetensors"):
        files = {path.read_bytes() for path in Path("out").rglob(name)}
        assert len(files) == 1
    phases = {
        path.parent.name: [entry["phase"] for entry in read_journal(path) if entry.get("status") == "begin"]
        for path in Path("out").rglob("journal.jsonl")
    }
    assert phases["out"] == ["teacher", "supernet"]
    assert phases["macs-0.4"] == ["search", "distill", "evaluate", "export"]
    assert phases["macs-0.7-uniform"] == ["distill", "evaluate", "export"]
    assert read("macs-0.4/architecture.json") != read("macs-0.7/architecture.json")


def test_uniform_scaling_has_one_share_of_every_width():
    space, widths = read("space.json"), read("macs-0.4-uniform/architecture.json")["widths"]
    shares = [widths[group["name"]] / group["width"] for group in space["groups"]]
    assert max(shares) - min(shares) < 1 / 10


def test_the_supernets_epochs_leave_the_architecture_undecided():
    entries = [entry for entry in read_journal(Path("out/journal.jsonl")) if entry.get("phase") == "supernet"]
    epochs = [entry for entry in entries if entry["event"] == "epoch"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3]
    assert all(entry["entropy"] > 0.99 for entry in epochs)


def test_the_record_holds_what_every_point_measured():
    record = read("frontier.json")
    assert record["kind"] == "macs"
    assert [point["budgets"][0]["text"] for point in record["points"]] == ["macs=0.4", "macs=0.7"]
    for point in record["points"]:
        for name in ("searched", "uniform"):
            student = dict(point[name])
            assert student == {"folder": student["folder"], **read(f"{student['folder']}/result.json")["student"]}


def test_the_same_command_again_repeats_nothing(capsys):
    files = [*Path("out").rglob("*.safetensors"), *Path("out").rglob("student.onnx")]
    before = {path: path.stat().st_mtime_ns for path in files}
    run()
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert "searched, top-1" in capsys.readouterr().out


def test_a_point_that_was_interrupted_goes_on_where_it_stopped():
    point = Path("out/macs-0.7")
    kept = (point / "architecture.json").stat().st_mtime_ns
    whole = (point / "student.safetensors").read_bytes()
    for name in ("student.safetensors", "result.json", "report.html"):
        (point / name).unlink()
    run()
    assert (point / "architecture.json").stat().st_mtime_ns == kept
    assert (point / "student.safetensors").read_bytes() == whole


def test_every_verb_works_on_a_point_and_its_student_is_loaded_like_any_other():
    for step in ("evaluate", "export"):
        main([step, "out/macs-0.4", "--device", "cpu"])
    main(["report", "out/macs-0.4"])
    names: dict = {}
    exec(Path("net.py").read_text(), names)
    student = transprune.load("out/macs-0.4", model=names["build"](10, 1))
    assert transprune.count_macs(student, torch.zeros(1, 1, 8, 8)) == read("macs-0.4/result.json")["student"]["macs"]


def test_a_step_on_the_whole_frontier_names_its_runs_and_its_report_is_the_curve(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "out", "--device", "cpu"])
    message = capsys.readouterr().err
    assert "it holds a frontier of several runs" in message
    assert "macs-0.4, macs-0.4-uniform, macs-0.7, macs-0.7-uniform" in message
    Path("out/frontier.html").unlink()
    main(["report", "out"])
    assert "frontier.html" in capsys.readouterr().out
    assert Path("out/frontier.html").is_file()


def test_comparing_a_frontier_shows_its_points(capsys):
    main(["compare", "out"])
    said = capsys.readouterr().out
    for name in ("macs-0.4", "macs-0.4-uniform", "macs-0.7", "macs-0.7-uniform"):
        assert f"out/{name}: " in said


def test_searching_along_a_frontier_step_by_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["search", "net.py:build", "--budget", "macs=0.4,0.7", "--out", "other", *FAST])
    assert "a frontier is made by `transprune run`" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_point_that_cannot_be_attained_is_refused_before_any_training(capsys):
    with pytest.raises(SystemExit):
        main(["run", "net.py:build", "--budget", "macs=0.7,0.001", "--out", "other", *FAST])
    assert "cannot keep the budget macs=0.001" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_point_whose_budget_no_uniform_widths_keep_stands_alone(monkeypatch, capsys):
    """As of latency, where only whole blocks that go save enough."""

    def scaled(space, limits):
        if limits[0].most < 0.5 * space.macs(space.full_architecture()):
            raise BudgetError("cannot scale all widths that far")
        return uniform_architecture(space, limits)

    monkeypatch.setattr("transprune.runs.phases.uniform_architecture", scaled)
    monkeypatch.setattr(steps, "export_step", lambda _: None)  # the longest of all, and of no concern here
    main(["run", "net.py:build", "--budget", "macs=0.4,0.7", "--out", "alone", *FAST])
    assert re.search(r"macs=0\.4 .* –\n", capsys.readouterr().out)
    names = {path.parent.name for path in Path("alone").glob("*/result.json")}
    assert names == {"macs-0.4", "macs-0.7", "macs-0.7-uniform"}
    first, second = json.loads(Path("alone/frontier.json").read_text())["points"]
    assert first["uniform"] is None
    assert second["uniform"]["folder"] == "macs-0.7-uniform"
    (left,) = [each for each in read_journal(Path("alone/journal.jsonl")) if each.get("event") == "decision"]
    assert left["what"] == "Left uniform widths out at macs=0.4"
    assert left["why"] == "cannot scale all widths that far"


def fake_record(**changed):
    def student(macs, top1, folder):
        return {"folder": folder, "macs": macs, "params": macs // 10, "top1": top1}

    points = [
        {
            "budgets": [{"kind": "macs", "text": f"macs={share}", "target": int(share * 1e6)}],
            "searched": student(int(share * 1e6), 90 + 8 * share, f"macs-{share}"),
            "uniform": student(int(share * 1e6), 88 + 9 * share, f"macs-{share}-uniform"),
        }
        for share in (0.7, 0.3, 0.5)
    ]
    teacher = {"macs": 1_000_000, "params": 100_000, "top1": 99.0}
    return {"model": "m", "data": "d", "seed": 0, "kind": "macs", "teacher": teacher, "points": points, **changed}


def test_the_page_shows_both_curves_with_their_points_and_links_to_the_runs():
    page = Page(frontier_page(fake_record()))
    assert not page.open
    (chart,) = [each for each in page.all("svg") if "top-1 against cost" in each["aria-label"]]
    said = chart["aria-label"].replace("\xa0", " ")
    assert "searched: 92.40 % at 300 k, 94.00 % at 500 k, 95.60 % at 700 k" in said
    assert "uniform: 90.70 % at 300 k" in said
    links = {each["href"] for each in page.all("a")}
    assert links == {f"macs-{share}{end}/report.html" for share in (0.3, 0.5, 0.7) for end in ("", "-uniform")}
    assert "1.70 points higher" in page.text("td")
    assert all(word in page.text() for word in ("searched", "uniform", "teacher", "MACs"))


def test_the_page_of_points_without_uniform_widths_says_so():
    record = fake_record()
    for point in record["points"]:
        point["uniform"] = None
    page = Page(frontier_page(record))
    (chart,) = [each for each in page.all("svg") if "top-1 against cost" in each["aria-label"]]
    assert "uniform" not in chart["aria-label"]
    assert page.text("td").count("none within the budget") == 3


def test_names_in_a_record_cannot_break_the_page():
    page = Page(frontier_page(fake_record(model=EVIL, data=EVIL)))
    assert isinstance(page, HTMLParser)
    assert not page.open
    assert page.all("script") == []


def test_overwriting_starts_every_point_anew(monkeypatch):
    monkeypatch.setattr(steps, "export_step", lambda _: None)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")}
    run("--overwrite")
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())
    assert RunFolder.open("out/macs-0.4").config["budget"] == ["macs=0.4"]
