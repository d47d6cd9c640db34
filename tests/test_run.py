"""The whole job through the command line, on real data."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

import transprune
from transprune.cli import main
from transprune.data import load_data, make_loader
from transprune.errors import RunFolderError
from transprune.runs import steps
from transprune.runs.phases import EVALUATE, EXPORT, QUANTISE, REPORT
from transprune.runtime import RUN_FILES, RunFolder, read_journal
from whole_runs import NET

pytestmark = pytest.mark.usefixtures("few_digits")

FAST = [
    *("--preset", "quick", "--teacher.epochs", "3", "--search.epochs", "2", "--search.prior", "none"),
    *("--distill.epochs", "2", "--distill.warm-up-epochs", "1"),
    *("--search.batch-size", "128", "--device", "cpu"),
]


def run(out, *more, budget="macs=0.5", verb="run", model="resnet20"):
    main([verb, model, "--data", "digits", "--budget", budget, "--out", str(out), *FAST, *more])


def run_to_the_student(out, *more):
    """What a run does until there is a student: no evaluation, no export, no report."""
    run(out, *more, verb="search")
    main(["distill", str(out), "--device", "cpu"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(folder)
    return folder


def result_of(folder: Path):
    return json.loads((folder / "result.json").read_text())


def test_a_run_leaves_every_file_it_promises(finished):
    for name in (
        *("config.toml", "environment.json", "journal.jsonl", "run.log", "space.json", "architecture.json"),
        *("teacher.safetensors", "student.safetensors", "student.onnx", "student.pt2", "report.html", "result.json"),
    ):
        assert (finished / name).stat().st_size > 0, name
    assert {path.name for path in finished.iterdir()} <= set(RUN_FILES)


def test_the_result_names_accuracy_and_costs_of_teacher_and_student(finished):
    result = result_of(finished)
    for network in ("teacher", "student"):
        figures = result[network]
        assert 0 <= figures["top1"] <= figures["top5"] <= 100
        assert all(figures[cost] > 0 for cost in ("macs", "params", "latency_ms", "file_bytes"))
        assert (figures["runtime"], figures["device"], figures["threads"]) == ("onnxruntime", "cpu", 1)
    assert result["teacher"]["macs"] == 2_533_002
    (budget,) = result["budgets"]
    assert budget["kind"] == "macs"
    assert budget["target"] == 2_533_002 // 2


def test_a_network_that_the_runtime_cannot_take_is_timed_in_torch(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)

    def refuse(*arguments, **options):
        raise RuntimeError("no operator of this name")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    main(["evaluate", str(folder), "--device", "cpu"])
    assert {result_of(folder)[network]["runtime"] for network in ("teacher", "student")} == {"torch"}
    told = [entry for entry in read_journal(folder / "journal.jsonl") if entry["event"] == "decision"][-1]
    assert told["what"] == "Latency is measured in torch"
    assert "RuntimeError: no operator of this name" in told["why"]


def test_the_student_keeps_the_budget_and_uses_it(finished):
    (budget,) = result_of(finished)["budgets"]
    assert 0.99 * budget["target"] <= budget["actual"] <= budget["target"]
    assert budget["actual"] == result_of(finished)["student"]["macs"]


def test_a_student_loaded_without_pickle_is_the_one_that_was_measured(finished):
    student = transprune.load(finished)
    result = result_of(finished)
    assert transprune.evaluate(student, load_data("digits")).top1 == pytest.approx(result["student"]["top1"])
    assert transprune.count_macs(student, torch.zeros(1, 1, 8, 8)) == result["student"]["macs"]
    assert not student.training


def test_the_onnx_file_classifies_like_the_student(finished):
    data = load_data("digits")
    images, _ = next(iter(make_loader(data.test, data, batch_size=50, train=False, seed=0, device="cpu")))
    session = onnxruntime.InferenceSession(finished / "student.onnx", providers=["CPUExecutionProvider"])
    described = json.loads((finished / "architecture.json").read_text())["preprocessing"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"]) == described
    student = transprune.load(finished)
    for size in (1, 3, 50):
        (found,) = session.run(None, {"images": images[:size].numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), student(images[:size]), atol=1e-4)


def test_the_journal_tells_the_run_from_start_to_end(finished):
    entries = read_journal(finished / "journal.jsonl")
    epochs = [(entry["phase"], entry["epoch"]) for entry in entries if entry["event"] == "epoch"]
    expected = [("teacher", 1), ("teacher", 2), ("teacher", 3), ("search", 1), ("search", 2)]
    assert epochs == [*expected, ("distill", 1), ("distill", 2)]
    phases = [entry["phase"] for entry in entries if entry["event"] == "phase" and entry["status"] == "end"]
    assert phases == ["teacher", "search", "distill", "evaluate", "export"]
    assert entries[0]["event"] == "start"
    assert [entry for entry in entries if entry["event"] == "decision"]


def test_the_configuration_is_resolved_to_every_option(finished):
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config["teacher"]["epochs"] == 3
    assert config["search"]["architecture_betas"] == [0.5, 0.999]
    assert config["distill"]["distillation_temperature"] == 4.0
    assert config["seed"] == 0


def test_the_same_seed_gives_the_same_architecture_and_student_bit_for_bit(finished, tmp_path):
    run_to_the_student(tmp_path / "again")
    for name in ("architecture.json", "teacher.safetensors", "student.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_the_same_command_again_keeps_what_is_done(finished, capsys):
    weights, files = ("teacher.safetensors", "student.safetensors"), ("result.json", "student.onnx", "student.pt2")
    before = {name: (finished / name).stat().st_mtime_ns for name in (*weights, *files)}
    run(finished)
    assert before == {name: (finished / name).stat().st_mtime_ns for name in before}
    assert "budget kept" in capsys.readouterr().out


def test_a_folder_with_a_different_run_is_refused_and_left_alone(finished, capsys):
    before = (finished / "config.toml").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run(finished, budget="macs=0.4")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "budget" in message
    assert "macs=0.4" in message
    assert "--overwrite" in message
    assert (finished / "config.toml").read_bytes() == before


def test_each_step_runs_alone_on_the_folder(tmp_path, capsys):
    folder = str(tmp_path / "steps")
    (tmp_path / "net.py").write_text(NET)
    run(folder, budget="params=0.6", verb="search", model=f"{tmp_path / 'net.py'}:build")
    assert not (Path(folder) / "student.safetensors").exists()
    capsys.readouterr()
    for step, said in [
        ("distill", "wrote "),
        ("evaluate", f"next: transprune export {folder}; transprune report {folder}"),
        ("export", "student.onnx"),
    ]:
        main([step, folder, "--device", "cpu"])
        printed = capsys.readouterr().out
        assert said in printed, step
        assert "report.html" not in printed, "which is not there yet"
    main(["report", folder])
    main(["evaluate", folder, "--device", "cpu"])
    result = result_of(Path(folder))
    assert result["student"]["params"] <= 0.6 * result["teacher"]["params"]
    printed = capsys.readouterr().out
    assert "budget kept" in printed
    assert f"report: {Path(folder) / 'report.html'}" in printed


@pytest.mark.parametrize("step", ["distill", "evaluate", "export"])
def test_a_step_before_its_time_says_which_step_is_missing(step, tmp_path, finished, capsys):
    (tmp_path / "config.toml").write_bytes((finished / "config.toml").read_bytes())
    (tmp_path / "space.json").write_bytes((finished / "space.json").read_bytes())
    with pytest.raises(SystemExit):
        main([step, str(tmp_path), "--device", "cpu"])
    assert "run `transprune" in capsys.readouterr().err


def test_given_weights_replace_the_training_of_the_teacher(finished, tmp_path):
    run(tmp_path / "given", "--weights", str(finished / "teacher.safetensors"), verb="search")
    given, first = (folder / "teacher.safetensors" for folder in (tmp_path / "given", finished))
    assert given.read_bytes() == first.read_bytes()
    entries = read_journal(tmp_path / "given" / "journal.jsonl")
    assert not [entry for entry in entries if entry["event"] == "epoch" and entry["phase"] == "teacher"]


def test_the_student_may_start_from_new_weights_or_the_teachers(finished, tmp_path):
    weights = str(finished / "teacher.safetensors")
    for start in ("scratch", "teacher"):
        run_to_the_student(tmp_path / start, "--student", start, "--weights", weights)
    folders = [finished, tmp_path / "scratch", tmp_path / "teacher"]
    assert len({(folder / "student.safetensors").read_bytes() for folder in folders}) == 3


REFUSED = {
    "an unknown model": (["run", "resnet21"], "cannot build the model 'resnet21': expected one of .*resnet20"),
    "an unknown data set": (["run", "resnet20", "--data", "digit"], "digits"),
    "a missing folder": (["run", "resnet20", "--data", "imagefolder:/nowhere/at/all"], "/nowhere/at/all"),
    "an unreadable budget": (["run", "resnet20", "--budget", "half"], "cannot read the budget 'half'"),
    "a budget out of range": (["run", "resnet20", "--budget", "macs=0.001"], "attainable range"),
    "a budget above the network": (["run", "resnet20", "--budget", "macs=1G"], "unpruned network has .* already"),
    "an unknown preset": (["run", "resnet20", "--preset", "quik"], "did you mean 'quick'"),
    "a missing weights file": (
        ["run", "resnet20", "--weights", "none.safetensors"],
        "'none.safetensors': there is no such file",
    ),
    "an option out of range": (["run", "resnet20", "--search.tolerance", "-1"], "tolerance=-1.0: expected at least 0"),
    "a device that is not there": (["run", "resnet20", "--device", "tpu"], "tpu"),
    "a missing run folder": (["distill", "no/such/folder"], "no such folder"),
    "an input size of nothing": (
        ["inspect", "resnet20", "--input-size", "3", "0", "8"],
        "expected numbers of at least 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training_with_a_clear_message(name, tmp_path, capsys):
    arguments, message = REFUSED[name]
    if arguments[0] == "run":
        out = ["--out", str(tmp_path / "out")]
        arguments = [*arguments, *out, *([] if "--budget" in arguments else ["--budget", "macs=0.5"])]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "cannot " in error
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "teacher.safetensors").exists()


def test_inspect_prints_the_search_space_as_json(capsys):
    main(["inspect", "resnet20", "--input-size", "3", "32", "32", "--num-classes", "10", "--json"])
    space = transprune.SearchSpace.from_json(capsys.readouterr().out)
    assert space.macs(space.full_architecture()) == 40_813_194
    assert len(space.groups) == 19


def test_inspect_prints_a_table_with_the_attainable_range(capsys):
    main(["inspect", "resnet20"])
    printed = capsys.readouterr().out
    assert "stages.2.2.layer2.conv" in printed
    assert "40,813,194" in printed
    assert "4 6 8 9 11 12 14 16" in printed


def test_loading_a_folder_without_a_student_says_what_is_missing(tmp_path):
    with pytest.raises(RunFolderError, match=r"student\.safetensors"):
        transprune.load(tmp_path)


def test_the_package_imports_without_the_heavy_libraries():
    heavy = ["sklearn", "matplotlib", "onnx", "onnxruntime", "torchvision", "pyarrow", "scipy", "rich", "tyro"]
    code = f"import sys, transprune; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there():
    for name in transprune.__all__:
        assert getattr(transprune, name) is not None


@pytest.mark.parametrize("how", ["evaluate", "run", "resume"])
def test_with_json_nothing_but_the_result_is_on_standard_output(finished, capsys, how):
    capsys.readouterr()
    if how == "run":
        run(finished, "--json")
    else:
        main({"evaluate": ["evaluate"], "resume": ["run", "--resume"]}[how] + [str(finished), "--json"])
    written = {key: value for key, value in result_of(finished).items() if key != "sha256"}  # of the file itself
    assert json.loads(capsys.readouterr().out) == written


def test_what_is_there_of_the_same_networks_is_not_made_again(tmp_path, monkeypatch):
    folder, done = RunFolder(tmp_path), []
    run = SimpleNamespace(
        folder=folder,
        data=SimpleNamespace(is_labelled=True),
        options=SimpleNamespace(int8=False),
        decide=lambda *_: None,
    )

    def write(name, seconds):
        folder.write_text(name, "x")
        os.utime(folder.file(name), (seconds, seconds))

    def step(phase, seconds):
        def make(_):
            done.append(phase.name)
            for name in phase.files:
                write(name, seconds)

        return make

    def concluded(seconds):
        done.clear()
        for phase in (EVALUATE, EXPORT, QUANTISE, REPORT):
            monkeypatch.setattr(steps, f"{phase.name}_step", step(phase, seconds))
        steps.conclude(run)
        return [*done]

    write("teacher.safetensors", 1)
    write("student.safetensors", 2)
    assert concluded(3) == ["evaluate", "export", "report"]
    assert concluded(4) == []
    folder.file("student.pt2").unlink()
    assert concluded(5) == ["export"]
    folder.file("report.html").unlink()
    assert concluded(6) == ["report"]
    run.options.int8 = True
    assert concluded(7) == ["quantise", "report"]
    assert concluded(8) == []
    write("student.safetensors", 8)  # trained after it was made without training
    assert concluded(9) == ["evaluate", "export", "quantise", "report"]
