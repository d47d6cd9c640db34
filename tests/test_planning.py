"""A plan tells what a run will do, and changes nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import transprune
from test_data import write_folder
from transprune.cli import main
from transprune.cli.arguments import read_command
from transprune.errors import BudgetError, DataError, ModelError, OptionError, RunFolderError, StoppedError
from transprune.runs import foretell, phases, plan, plan_run, prepare, steps
from transprune.runtime import RUN_FILES
from whole_runs import FAST, NET, assert_as_planned, counted_steps

pytestmark = pytest.mark.usefixtures("few_digits")


def job(budget, *more, verb="run"):
    return [verb, "net.py:build", "--budget", budget, "--out", "out", *FAST, *more]


def options(*arguments):
    return read_command(job("macs=0.5", *arguments)).options()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def files(place):
    """Every file with its content and time."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in place.rglob("*")
        if "__pycache__" not in str(path)
    }


def planned(capsys, *arguments):
    """What `--plan --json` prints: it must be JSON and nothing else."""
    capsys.readouterr()
    main([*arguments, "--plan", "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_plan_tells_what_the_run_then_does(place, capsys):
    """A whole frontier does too (`test_frontier.py`)."""
    command = job("params=0.6", verb="search")
    with counted_steps() as steps:
        plan = planned(capsys, *command)
        assert steps == {}, "no epoch is trained"
        main(command)
    assert_as_planned(plan, steps, "out")

    again = planned(capsys, *command)
    assert {phase["epochs"] for phase in again["phases"]} == {0}
    assert all(phase["note"].startswith("done: ") for phase in again["phases"])
    anew = planned(capsys, *command, "--overwrite")
    assert [phase["steps"] for phase in anew["phases"]] == [phase["steps"] for phase in plan["phases"]]


def test_a_plan_writes_nothing_and_leaves_every_generator_alone(place):
    with prepare(options(), "out", device="cpu"):
        pass
    before = files(place)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for overwrite in (False, True):
        plan = plan_run(options(), "out", device="cpu", overwrite=overwrite)
        assert plan.seconds > 0
    assert plan.optimizers.startswith("Weights learn by sgd, learning rates teacher 0.1, search 0.02, distill 0.01: ")
    plan_run(options(), "elsewhere/new", device="cpu")
    assert files(place) == before
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()


def test_given_weights_leave_out_the_training_of_the_teacher(place):
    from safetensors.torch import save_file

    namespace = {}
    exec(NET, namespace)
    state = namespace["build"](10, 1).state_dict()
    save_file(state, "whole.safetensors")
    save_file({name: value for name, value in state.items() if not name.startswith("8")}, "part.safetensors")
    plan = plan_run(options("--weights", "whole.safetensors"), "out", device="cpu")
    assert 0 <= plan.teacher.figure < 50, "it is evaluated before anything else"
    assert plan.teacher.samples == plan.test_images
    assert plan.teacher.doubts
    teacher, *_ = plan.phases
    assert (teacher.epochs, teacher.steps, teacher.seconds) == (0, 0, 0.0)
    assert teacher.note == "not trained, weights are given: whole.safetensors"
    partial = options("--weights", "part.safetensors", "--weights-partial")
    teacher, *_ = plan_run(partial, "out", device="cpu").phases
    assert teacher.epochs == 2
    assert teacher.note == (
        "from the 12 tensors that fit of weights given: part.safetensors; 2 missing: 8.weight, 8.bias"
    )


def test_without_measured_steps_there_are_no_times(place):
    plan = plan_run(options(), "out", device="cpu", measured_steps=0)
    assert plan.seconds is None
    assert {phase.seconds for phase in plan.phases} == {None}
    assert all(phase.steps > 0 for phase in plan.phases)


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (ModelError, {"model": "resnet21"}),
        (DataError, {"data": "digit"}),
        (BudgetError, {"budget": ("macs=0.0001",)}),
        (OptionError, {"weights_partial": True}),
    ],
)
def test_a_plan_is_refused_as_the_run_would_be(place, error, changed):
    said = []
    for start in (plan_run, prepare):
        with pytest.raises(error) as caught:
            start(replace(options(), **changed), "out", device="cpu")
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "dog"), "cannot divide 2 images of 2 classes at fraction=0.5: one part would be empty"),
        (("cat",), "cannot learn from 'imagefolder:images': its only class is 'cat'; expected at least 2 classes"),
    ],
)
def test_images_that_no_search_can_use_are_refused_before_any_training(place, classes, said):
    write_folder(place / "images", classes=classes, count=1)
    few = options("--data", "imagefolder:images")
    for start in (plan_run, prepare):
        with pytest.raises(DataError, match=re.escape(said)):
            start(few, "out", device="cpu")
    assert not Path("out").exists()


def test_a_folder_that_a_run_could_not_use_is_refused(place):
    Path("other").mkdir()
    Path("other", "thesis.txt").write_text("mine")
    with prepare(options("--seed", "1"), "out", device="cpu"):
        pass
    for folder, how in (("out", {}), ("other", {}), ("none", {"resume": True}), ("net.py", {})):
        with pytest.raises(RunFolderError) as planned:
            plan_run(options(), folder, device="cpu", **how)
        with pytest.raises(RunFolderError) as begun:
            prepare(options(), folder, device="cpu", **how)
        assert str(planned.value) == str(begun.value) or folder == "net.py"
    with pytest.raises(OptionError):
        plan_run(options(), "out", resume=True, overwrite=True)


def test_a_plan_downloads_nothing(place):
    with pytest.raises(DataError, match=r"cannot plan with data that is not there: .* a plan downloads nothing"):
        plan_run(options("--data", "cifar10:data", "--download"), "out", device="cpu")
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "less than a minute"), (25, "a few minutes at most"), (4_000, "about [1-9][0-9. hmin]+")]
)
def test_a_run_says_first_what_it_does_and_about_how_long_it_takes(place, capsys, monkeypatch, seconds, said):
    def planned(self, course, phase, **_):
        return plan.PlannedPhase(phase=phase.name, folder="", epochs=1, note="", seconds=seconds / 6)

    if seconds:  # a step of the teacher stands for all, until they are many
        monkeypatch.setattr(plan.Rehearsal, "planned", planned)
    before = torch.get_rng_state()
    with prepare(options(), "out", device="cpu", foretell=foretell) as run:
        kept = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, kept[name]) for name, value in run.model.state_dict().items())
    phases, time = capsys.readouterr().err.splitlines()[-2:]
    assert phases == "epochs: teacher 2, search 3, distill 1; then evaluation, export and report"
    assert re.fullmatch(f"{said} of training on cpu, as the first steps take now", time)


def test_what_is_tried_to_see_how_long_it_takes_leaves_the_order_of_a_loader(tmp_path, capsys, monkeypatch):
    samples = [(torch.randn(3, 8, 8), label % 2) for label in range(16)]
    loader = DataLoader(samples, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    drawn, usual = [], steps.foretell

    def noted(*arguments):
        drawn.append(loader.generator.get_state())
        usual(*arguments)
        drawn.append(loader.generator.get_state())
        raise StoppedError("enough is known", reason="SIGINT")

    monkeypatch.setattr(steps, "foretell", noted)
    with pytest.raises(StoppedError):
        transprune.run(network, (loader, loader), "macs=0.5", tmp_path / "out", "quick")
    assert torch.equal(*drawn)
    assert "of training on cpu, as the first steps take now" in capsys.readouterr().err


def test_the_plan_for_people_shows_every_figure(place, capsys):
    plan = plan_run(options(), "out", device="cpu", measured_steps=0)
    main(job("macs=0.5", "--plan"))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^normalised by mean 0\.\d+ and std 0\.\d+ \(--mean, --std\)$", text, re.MULTILINE)
    text = re.sub(r"\n  (?=\S)", " ", text)  # lines that went on
    (budget,) = plan.budgets
    for figure in (budget.target, budget.full, budget.smallest, *(phase.steps for phase in plan.phases)):
        assert f"{figure:,}" in text
    assert f"{plan.groups} widths and {plan.stages} depths" in text
    assert "less than a minute in all, and then evaluation" in text
    assert "it is an output of the network" in text


def test_every_file_of_a_run_is_left_by_one_phase_of_the_table():
    table = {phase.name: phase for phase in vars(phases).values() if isinstance(phase, phases.Phase)}
    left = [file for phase in table.values() for file in phase.files]
    about_the_run = {
        "config.toml",
        "environment.json",
        "data.json",
        "space.json",
        "latency.json",
        "file_size.json",
        "lose.json",
    }
    on_the_way = {"journal.jsonl", "run.log", "checkpoint.safetensors", "checkpoint.previous.safetensors"}
    about_the_frontier = {"frontier.json", "frontier.html"}
    runtimes = {"student.xml", "student.bin", "student.tflite", "student.pte"}
    known = [*left, *about_the_run, *on_the_way, *about_the_frontier, *runtimes]
    assert sorted(known) == sorted(RUN_FILES)


def test_the_trials_of_contenders_are_in_the_plan(place, capsys, monkeypatch):
    times = plan.StepTimes(an_epoch=10, step=2.0, evaluation=0.0)
    monkeypatch.setattr(plan, "time_steps", lambda loop, steps: times)
    seconds = [
        next(
            phase["seconds"]
            for phase in planned(
                capsys, *job("macs=0.6", *("--search.prior", "scores"), *("--search.trial-epochs", epochs))
            )["phases"]
            if phase["phase"] == "search"
        )
        for epochs in ("0", "3")
    ]
    more = seconds[1] - seconds[0]
    batches = [options().search.batch_size, options().distill.batch_size]
    assert more == pytest.approx(4 * 3 * 10 * 2.0 * batches[0] / batches[1])
