"""The Python interface as a user meets it: one default, the model's device, progress, and what a search hands on."""

import copy
import html
import inspect
import pickle
import re
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import transprune
from test_prior import SCORES
from test_searching import OPTIONS, Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.cli import main
from transprune.errors import DataError, ExportError, ModelError, OptionError, RunFolderError
from transprune.on_demand import checked
from transprune.options import DEFAULT_PRESET, PRESETS, MeasureOptions, SearchOptions, TrainingOptions, from_preset
from transprune.reports.comparison import comparison
from transprune.runs.run_options import preset_options
from transprune.runtime import announce, choose_device
from transprune.training import batches as training_batches
from transprune.training import loop
from transprune.training.batches import as_data
from transprune.training.loop import Setup

ONE = TrainingOptions(**{**SHORT, "epochs": 2})


def test_other_kinds_of_numbers_are_numbers_and_functions_can_be_pickled():
    values = (torch.tensor(2.0), torch.tensor(3.0))
    penalties = [transprune.budget_penalty(*values, target, 0.05) for target in (1, 1.0, np.float32(1), np.int64(1))]
    assert len(set(map(float, penalties))) == 1
    assert pickle.loads(pickle.dumps(transprune.search)) is transprune.search


def test_numbers_of_numpy_are_numbers_of_python_inside():
    options = TrainingOptions(epochs=np.int64(9), warm_up_epochs=np.float32(1.5))
    assert (type(options.epochs), type(options.warm_up_epochs)) == (int, float)
    assert type(checked(_same)(np.int64(3))) is int


def _same(number: int) -> int:
    return number


@pytest.mark.parametrize("seed", [np.int64(3), -1, 2**64, 10**30])
def test_a_seed_is_any_whole_number(seed):
    network, x = small_network(), torch.zeros(2, 1, 4, 4)
    space = transprune.inspect(network, x)
    drawn = [transprune.random_architecture(space, "macs=0.6", seed=seed) for _ in range(2)]
    assert drawn[0] == drawn[1]
    data = DataLoader(TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 2), batch_size=4)
    options = replace(OPTIONS, epochs=1, warm_up_epochs=0)
    assert transprune.search(network, data, "macs=0.6", options, setup=Setup(seed=seed, progress=False)).actual


def test_patterns_and_ratios_may_be_generators():
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3)), torch.zeros(2, 3, 8, 8)
    space = transprune.inspect(network, x, keep=iter(["0"]), ratios=(share for share in (0.5, 1)))
    assert [(group.name, group.candidates) for group in space.groups] == [("1", (4, 8))]
    assert transprune.inspect(network, x, only=iter(["1"]), ratios=np.array([0.5, 1])).groups == space.groups
    with pytest.raises(OptionError, match="ratios=\\['0'"):
        transprune.inspect(network, x, ratios="0.5")


@pytest.mark.parametrize("kind", [TrainingOptions, SearchOptions, MeasureOptions, Setup, transprune.LatencyOptions])
def test_options_refuse_what_they_cannot_be(kind):
    for name in (each.name for each in fields(kind) if each.name != "backend"):
        with pytest.raises(OptionError, match=f"{name}="):
            kind(**{name: object()})


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: transprune.evaluate(net, [x], batch_size=0),
        lambda net, x: transprune.estimate_statistics(net, [x], batch_size=-4),
        lambda net, x: transprune.quantise(net, [x], "net.onnx", samples=0),
        lambda net, x: transprune.repair(net, net, transprune.Architecture(), x, ridge=float("nan")),
        lambda net, x: transprune.segmentation(0),
        lambda net, x: transprune.resnet(20, classes=0),
        lambda net, x: transprune.resnet(20, image_channels=0),
        lambda net, x: transprune.width_candidates(0),
        lambda net, x: transprune.width_candidates(8, divisor=0),
        lambda net, x: transprune.depth_candidates(-2),
        lambda net, x: transprune.Augmentation(pad="x"),
        lambda net, x: transprune.Architecture(widths=None),
    ],
)
def test_counts_and_sizes_are_at_least_what_they_must_be(call):
    with pytest.raises(OptionError, match=r"cannot use .*: expected"):
        call(small_network(), torch.zeros(2, 1, 4, 4))


def test_an_architecture_takes_the_whole_numbers_of_numpy():
    numbers = transprune.Architecture({"a": np.int64(3)}, {"b": np.int32(2)})
    assert numbers == transprune.Architecture({"a": 3}, {"b": 2})
    assert type(numbers.widths["a"]) is type(numbers.depths["b"]) is int


@pytest.mark.parametrize("figures", [{"mean": float("nan")}, {"mean": float("nan"), "std": 1.0}, {"std": float("nan")}])
def test_figures_of_a_normalisation_are_finite(figures):
    with pytest.raises(DataError, match="all finite"):
        transprune.load_data("digits", **figures)


def test_each_of_several_arguments_is_left_to_the_function():
    def added(first: float | Tensor, *others: float | Tensor, **named: float | Tensor) -> float | Tensor:
        return first + sum(others) + sum(named.values())

    assert checked(added)(1, 2.0, np.float64(3), last=4) == 10
    with pytest.raises(OptionError, match="first is of the kind str, expected float or Tensor"):
        checked(added)("1")
    with pytest.raises(TypeError, match=r"added\(\) missing 1 required positional argument") as missing:
        checked(added)()
    assert missing.value.__context__ is None


def test_a_part_of_image_data_is_taken_as_it_is_known_by_what_it_can():
    images = two_colours()
    loader = transprune.make_loader(images.train, images, batch_size=4, train=False, seed=0, device="cpu")
    assert len(next(iter(loader))[0]) == 4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda net, x: transprune.inspect(x, net),
            "inspect: its argument model is of the kind Tensor, expected Module",
        ),
        (lambda net, x: transprune.search(type(net), [x], "macs=0.5"), "model is the class Sequential"),
        (lambda net, x: transprune.distill(x, net, [x]), "student is of the kind Tensor, expected Module;"),
        (
            lambda net, x: transprune.train(net, [x], {"epochs": 3}),
            "options is of the kind dict, expected TrainingOptions",
        ),
        (
            lambda net, x: transprune.evaluate(net, [x], task="regression"),
            "task is of the kind str, expected Task or None",
        ),
        (
            lambda net, x: transprune.export(net, "s.onnx", x),
            "path is of the kind Tensor, .* are network, example, path",
        ),
        (
            lambda net, x: transprune.shrink(net, transprune.inspect(net, x), x),
            "architecture is of the kind SearchSpace",
        ),
        (lambda net, x: transprune.resnet("20"), "depth is of the kind str, expected int;"),
        (lambda net, x: transprune.inspect(net, x, divisor=1.5), "divisor is of the kind float, expected int;"),
        (lambda net, x: transprune.inspect(net, x, keep="stem"), "keep='stem'; expected a list of names or patterns"),
        (lambda net, x: transprune.inspect(net, x, tie=[3]), r"tie=\[3\]; expected a list of names or patterns"),
        (lambda net, x: SearchOptions(epochs="3"), "cannot use epochs='3': expected int"),
        (lambda net, x: transprune.sort_channels(net.to("meta"), x.to("meta")), "its weights have no values"),
        (lambda net, x: transprune.export(net.to("meta"), x, "s.onnx"), "its weights have no values"),
        (lambda net, x: transprune.load(net), "run_dir is of the kind Sequential, expected str or Path;"),
        (
            lambda net, x: transprune.measure("runs/first", x),
            "cannot measure what is of the kind str: expected a network",
        ),
    ],
)
def test_an_argument_of_another_kind_is_named_before_anything_is_done(call, said):
    with pytest.raises(OptionError, match=said):
        call(small_network(), torch.zeros(2, 1, 4, 4))


def test_calls_that_suit_are_not_held_up(tmp_path):
    network, x = small_network(), torch.zeros(2, 1, 4, 4)
    space = transprune.inspect(network, x)
    assert transprune.count_macs(model=network, example=x) == space.macs(space.full_architecture())
    assert transprune.count_macs.__doc__
    assert inspect.signature(transprune.count_macs).parameters["model"]
    with pytest.raises(TypeError, match=r"count_macs\(\) missing 1 required positional argument: 'example'"):
        transprune.count_macs(network)
    [alone, *_] = transprune.measure(network, x, MeasureOptions(batch_size=1, memory=False))
    assert alone.network == "network"
    assert len(repr(alone)) < 140
    assert "samples/s, file" in repr(alone)


def test_one_loader_serves_to_measure_on_without_a_word(monkeypatch):
    batches = DataLoader(TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 2), batch_size=4)
    said = []
    monkeypatch.setattr(training_batches.log, "warning", said.append)
    transprune.evaluate(small_network(), batches)
    assert not said
    transprune.train(small_network(), batches, ONE)
    assert len(said) == 1
    assert "measured on the training data" in said[0]


@pytest.mark.parametrize("verb", [transprune.train, transprune.search, transprune.distill])
def test_what_is_not_said_is_the_preset_of_the_command_line(verb):
    assert inspect.signature(verb).parameters["options"].default == DEFAULT_PRESET == "medium"


def test_a_preset_is_named_as_options(monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", replace(PRESETS["quick"], teacher=ONE))
    assert_same_state(
        transprune.train(small_network(), two_colours(), "quick").state_dict(),
        transprune.train(small_network(), two_colours(), ONE).state_dict(),
    )
    assert from_preset("paper-cifar", lambda preset: preset.search) == SearchOptions(depth_samples=None)
    with pytest.raises(OptionError, match=r"cannot use the preset 'quik': .*did you mean 'quick'"):
        transprune.train(small_network(), two_colours(), "quik")


def test_a_long_job_says_so_before_it_begins(monkeypatch):
    monkeypatch.setattr(loop, "LONG", 3)
    said = []
    monkeypatch.setattr(loop.log, "warning", lambda text, *values: said.append(text % values))
    transprune.train(small_network(), two_colours(), ONE)
    assert not said
    transprune.train(
        small_network(), two_colours(), replace(ONE, epochs=3), setup=Setup(on_epoch=lambda _: said.append(""))
    )
    assert said[0].startswith("teacher: 3 epochs of 4 steps lie ahead")
    assert said[1:] == ["", "", ""]


# --- the device


def test_the_device_is_where_the_model_is_unless_one_is_named():
    weight = SimpleNamespace(device=torch.device("cuda:1"), is_meta=False)
    elsewhere = SimpleNamespace(parameters=lambda: [weight], buffers=list)
    assert Setup().placed(elsewhere).device == choose_device(None, elsewhere) == torch.device("cuda:1")
    for named in ("cpu", torch.device("cpu")):
        assert Setup(device=named).placed(elsewhere).device == torch.device("cpu")
    assert Setup(device="auto").placed(elsewhere).device == choose_device("auto") == choose_device(None, nn.ReLU())
    nowhere = nn.Linear(2, 2, device="meta")
    for named in (None, "cpu"):
        with pytest.raises(OptionError, match="its weights have no values"):
            Setup(device=named).placed(nowhere)
    assert Setup(device=torch.device("meta")).placed(nowhere).device == torch.device("meta")
    with pytest.raises(OptionError, match="cannot compute on the device 'gpu'"):
        transprune.train(small_network(), two_colours(), ONE, setup=Setup(device="gpu"))


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_stays_there():
    model = Residual().cuda()
    trained = transprune.train(model, two_colours(), ONE)
    found = transprune.search(trained, two_colours(), "macs=0.5", SCORES)
    student = transprune.distill(found.student, trained, two_colours(), transprune.DistillationOptions(**SHORT))
    assert {next(each.parameters()).device.type for each in (trained, found.student, student)} == {"cuda"}
    assert transprune.evaluate(student, two_colours()).top1 >= 50


# --- progress


def test_progress_is_told_a_line_an_epoch_unless_it_is_switched_off(capsys):
    transprune.train(small_network(), two_colours(), ONE)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["teacher", f" epoch {epoch} of 2"] for epoch in (1, 2)]
    assert all("loss" in line and "top-1" in line for line in lines)
    transprune.train(small_network(), two_colours(), ONE, setup=Setup(progress=False))
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_a_bar_that_is_drawn_in_place(monkeypatch, capsys):
    drawn = []
    handle = SimpleNamespace(update=drawn.append)
    shown = SimpleNamespace(HTML=str, display=lambda *_, **__: handle)
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=shown)
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    transprune.train(small_network(), two_colours(), ONE)
    assert "<progress value='2' max='2'>" in drawn[-1]
    assert "epoch 2 of 2" in drawn[-1]
    assert capsys.readouterr() == ("", "")
    announce("search: begins")
    assert capsys.readouterr() == ("search: begins\n", "")  # notebooks show standard error as a fault


# --- what a search hands on


def test_the_student_of_a_search_is_what_was_kept_where_it_began_with_scores():
    model = Residual()
    found = transprune.search(model, two_colours(), "macs=0.5", SCORES)
    assert_same_state(dict(found.kept.student), found.student.state_dict())
    assert transprune.count_macs(found.student, torch.zeros(1, 1, 4, 4)) == found.actual


def test_the_student_of_another_search_has_new_weights_or_those_of_the_supernet():
    model, data = Residual(), two_colours()
    new = transprune.search(model, data, "macs=0.5", OPTIONS)
    assert transprune.count_macs(new.student, torch.zeros(1, 1, 4, 4)) == new.actual
    trained = transprune.search(model, data, "macs=0.5", replace(OPTIONS, start="model", epochs=1))
    origin = Residual()
    origin.load_state_dict(trained.weights, strict=False)
    cut = transprune.shrink(origin, trained.architecture, torch.zeros(1, 1, 4, 4))
    for name, value in cut.named_parameters():
        assert torch.equal(value, trained.student.get_parameter(name)), name


# --- runs in a folder, for any task


NUMBERS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
PAIRS = [TensorDataset(part, part[:, :1] * part[:, 1:2]) for part in (NUMBERS[:48], NUMBERS[48:])]
LOADERS = DataLoader(PAIRS[0], batch_size=16, shuffle=True), DataLoader(PAIRS[1], batch_size=16)
BRIEF = {
    "search": replace(SCORES, epochs=1, warm_up_epochs=0),
    "distill": transprune.DistillationOptions(epochs=1, warm_up_epochs=0, learning_rate=0.01),
}


def regressor(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("python") / "run"
    return transprune.run(regressor(), LOADERS, "params=0.5", out, "quick", task=transprune.regression(), **BRIEF)


def test_a_run_in_python_is_one_call_for_any_task(finished):
    figures = finished.result["student"]
    assert (
        figures["params"]
        == sum(each.numel() for each in finished.student.parameters())
        <= finished.result["teacher"]["params"] / 2
    )
    assert finished.result["metrics"] == ["r2", "mse"]
    assert figures["r2"] == pytest.approx(
        transprune.evaluate(finished.student, LOADERS, task=transprune.regression()).r2
    )
    page = finished.report.read_text()
    assert "Sequential on data" in page
    assert ">r2<" in page.replace("\n", "")
    assert "Top-1" not in page
    assert (finished.path / "student.onnx").is_file()
    loaded = transprune.load(finished.path, model=regressor(seed=1))
    assert_same_state(loaded.state_dict(), finished.student.state_dict())
    with pytest.raises(ModelError, match=r"its network was made in Python.*give it: load"):
        transprune.load(finished.path)


def test_the_same_call_goes_on_and_another_network_is_another_run(finished):
    again = partial(
        transprune.run,
        data=LOADERS,
        budget="params=0.5",
        out=finished.path,
        options="quick",
        task=transprune.regression(),
        **BRIEF,
    )
    assert_same_state(again(regressor()).student.state_dict(), finished.student.state_dict())
    with pytest.raises(RunFolderError, match=r"another configuration"):
        again(regressor(seed=1))


def test_what_was_made_in_python_is_saved_as_a_run(tmp_path):
    model, data = Residual(), two_colours()
    found = transprune.search(model, data, "macs=0.5", SCORES)
    saved = transprune.save(found.student, tmp_path / "run", teacher=model, found=found, data=data)
    assert saved.result["student"]["macs"] == found.actual
    assert saved.result["budgets"][0]["target"] == found.target
    assert_same_state(transprune.load(saved.path, model=model).state_dict(), found.student.state_dict())
    assert "top-1" in saved.report.read_text()
    assert comparison([saved.path])[0]["preset"] == "made in Python"
    kept = partial(transprune.save, out=saved.path, teacher=model, found=found, data=data)
    kept(found.student)  # the same one once more
    trained = copy.deepcopy(found.student)
    next(trained.parameters()).data += 1
    with pytest.raises(RunFolderError, match=r"another student .* overwrite=True"):
        kept(trained)
    assert_same_state(transprune.load(saved.path, model=model).state_dict(), found.student.state_dict())
    kept(trained, overwrite=True)
    assert_same_state(transprune.load(saved.path, model=model).state_dict(), trained.state_dict())
    cut = transprune.shrink(model, found.architecture, torch.zeros(1, 1, 4, 4))
    other = transprune.save(cut, tmp_path / "cut", teacher=model, found=found.architecture, data=data)
    assert other.result["budgets"][0]["actual"] == found.actual
    with pytest.raises(ModelError, match=r"does not fit its student\.safetensors \('stem\.weight'"):
        transprune.save(model, tmp_path / "whole", teacher=model, found=found, data=data)


@pytest.mark.parametrize("failing", ["files_for", "export_program"])
def test_a_student_that_a_runtime_does_not_take_is_reported_all_the_same(tmp_path, monkeypatch, failing):
    model, data = Residual(), two_colours()
    whole = transprune.Architecture()
    kept = partial(transprune.save, model, tmp_path / "run", teacher=model, data=data, found=whole, overwrite=True)
    kept()
    assert (tmp_path / "run" / "student.onnx").exists()

    def refused(*_):
        raise ExportError("cannot export to ONNX: no such operator")

    monkeypatch.setattr(f"transprune.runs.steps.{failing}", refused)
    saved = kept()
    assert "no such operator" in (saved.path / "journal.jsonl").read_text()
    assert "top-1" in saved.report.read_text()
    assert "onnxruntime.InferenceSession" not in saved.report.read_text()
    assert not (saved.path / "student.onnx").exists()
    assert (saved.path / "student.pt2").exists() is (failing == "files_for")


def test_compression_without_training_is_one_call_too_and_can_be_silent(tmp_path, capsys):
    options = replace(preset_options("quick"), compress=transprune.CompressOptions(samples=48))
    job = partial(transprune.run, regressor(), LOADERS, "params=0.5", options=options, task=transprune.regression())
    done = job(tmp_path / "run", progress=False)
    assert capsys.readouterr() == ("", "")
    assert done.result["is_trained"] is False
    assert comparison([done.path])[0]["preset"] == "compressed"
    assert done.result["student"]["params"] <= done.result["teacher"]["params"] / 2


def test_a_file_is_exported_by_its_name(tmp_path):
    network = regressor()
    for name in ("net.onnx", "net.pt2"):
        assert transprune.export(network, NUMBERS[:4], tmp_path / name).stat().st_size > 1000
    with pytest.raises(ExportError, match=r"expected a name that ends in \.onnx, .*\.pt2"):
        transprune.export(network, NUMBERS[:4], tmp_path / "net.bin")


OWN = """
import torch, transprune
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import DataLoader, TensorDataset
def build():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
def data():
    numbers = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(numbers, numbers[:, :1]), batch_size=16)
    return loader, loader
def task():
    return transprune.regression()
"""


WIDE = """
def wide():
    error = transprune.Metric(lambda outputs, targets: (outputs - targets).expand(-1, 3) ** 2, finish=torch.sqrt)
    return transprune.Task(loss=nn.functional.mse_loss, metrics={"rmse": error})
"""


def test_the_command_line_takes_data_and_a_task_of_the_users(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    given = ["own.py:build", "--data", "own.py:data", "--task", "own.py:task", "--budget", "params=0.5", "--out", "run"]
    phases = ("teacher", "search", "distill")
    short = [word for part in phases for word in (f"--{part}.epochs", "1", f"--{part}.warm-up-epochs", "0")]
    main(["run", *given, "--preset", "quick", *short])
    assert "r2" in capsys.readouterr().out
    assert "mse" in (tmp_path / "run" / "report.html").read_text()
    main(["evaluate", "run"])


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ([], r"cannot tell classes apart by outputs of \[\d+, 1\].*regression\(\)"),
        (["--task", "own.py:wide"], r"cannot use the metric 'rmse': it ends in \[3\].*its finish makes of"),
        (["--task", "regresion"], r"cannot make the task 'regresion': .*did you mean 'regression'\?"),
    ],
)
def test_a_task_that_does_not_suit_is_refused_before_any_training(tmp_path, monkeypatch, capsys, task, found):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN + WIDE)
    with pytest.raises(SystemExit):
        main(["run", "own.py:build", "--data", "own.py:data", *task, "--budget", "params=0.5", "--out", "run"])
    assert re.search(found, " ".join(capsys.readouterr().err.split()))
    assert not Path("run").exists()


# --- what a notebook and a terminal show


def test_results_are_short_to_print_and_have_a_picture_of_the_layers(finished):
    model = Residual()
    space = transprune.inspect(model, torch.zeros(1, 1, 4, 4))
    found = transprune.search(model, two_colours(), "macs=0.5", replace(SCORES, epochs=1, warm_up_epochs=0))
    half = transprune.compress(model, torch.rand(64, 1, 4, 4), "macs=0.5")
    for each in (space, found.architecture, found, half, finished):
        assert len(repr(each)) < 250
        page = each._repr_html_()
        bars = re.findall(r"<rect x='220' y='2' height='10' width='([\d.]+)'", page)
        assert len(bars) >= 2
        assert html.unescape(page).count(repr(each)) == 1
    picture = space.picture(transprune.Architecture(widths={"stem": 4}, depths={"blocks": 1}))
    assert ">4 of 8</text>" in picture
    assert ">1 of 3</text>" in picture
    assert ">dropped</text>" in picture
    assert f"{found.actual:,} MACs of at most {found.target:,} MACs" in repr(found)


def test_architectures_are_compared_size_by_size():
    here = transprune.Architecture(widths={"stem": 4, "head": 8}, depths={"blocks": 1})
    there = transprune.Architecture(widths={"stem": 6, "head": 8})
    assert here.diff(there) == {"stem": (4, 6), "blocks": (1, None)}
    assert here.diff(here) == {}
    assert repr(here) == "Architecture(2 widths from 4 to 8, depths 1)"
    assert repr(transprune.Architecture()) == "Architecture(unpruned)"


# --- data as they come


def test_a_loader_is_data_and_looking_at_it_draws_nothing():
    before = torch.get_rng_state()
    data = as_data(LOADERS[0], transprune.regression())
    assert torch.equal(torch.get_rng_state(), before)
    assert data.train is data.test is LOADERS[0]
    assert [tuple(each.shape) for each in data.example] == [(1, 6)]


def test_data_sets_without_a_loader_are_data_by_their_names():
    named = as_data({"train": PAIRS[0], "validation": PAIRS[1]}, transprune.regression(), batch_size=8)
    assert [len(named.train), len(named.test)] == [6, 2]
    assert named.train.batch_size == 8
    first, second = (torch.cat([inputs for inputs, _ in named.train]) for _ in range(2))
    assert not torch.equal(first, second), "what is learned from is shuffled"
    assert torch.equal(torch.cat([inputs for inputs, _ in named.test]), NUMBERS[48:])


def test_a_data_set_of_hugging_face_is_data():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"numbers": NUMBERS.tolist(), "sum": NUMBERS.sum(1, keepdim=True).tolist()})
    task = replace(transprune.regression(), split=lambda batch: (batch["numbers"], batch["sum"]))
    trained = transprune.train(regressor(), datasets.DatasetDict(train=rows, test=rows), ONE, task=task)
    measured = transprune.evaluate(trained, (rows, rows), task=task)
    by_hand = nn.functional.mse_loss(trained(NUMBERS).detach(), NUMBERS.sum(1, keepdim=True))
    assert measured.mse == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize("verb", ["train", "evaluate", "search", "compress"])
def test_weights_without_values_are_refused(verb):
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    batches = [(torch.randn(16, 6), torch.zeros(16, dtype=torch.int64))]
    data = transprune.LoaderData(train=batches, test=batches, search=(batches, batches), example=torch.randn(2, 6))
    call = {
        "train": lambda: transprune.train(network, data),
        "evaluate": lambda: transprune.evaluate(network, data),
        "search": lambda: transprune.search(network, data, "macs=0.5"),
        "compress": lambda: transprune.compress(network, data, "macs=0.5"),
    }[verb]
    with pytest.raises(OptionError, match="its weights have no values"):
        call()
