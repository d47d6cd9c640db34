"""The Python interface as a user meets it: one default, the model's device, progress, and what a search hands on."""

import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import transprune
from test_prior import SCORES
from test_searching import OPTIONS, Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.errors import OptionError
from transprune.options import DEFAULT_PRESET, PRESETS, SearchOptions, TrainingOptions, search_options
from transprune.runtime import choose_device
from transprune.training import loop
from transprune.training.loop import Setup

ONE = TrainingOptions(**{**SHORT, "epochs": 2})


@pytest.mark.parametrize("verb", [transprune.train, transprune.search, transprune.distill])
def test_what_is_not_said_is_the_preset_of_the_command_line(verb):
    assert inspect.signature(verb).parameters["options"].default == DEFAULT_PRESET == "medium"


def test_a_preset_is_named_as_options(monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", replace(PRESETS["quick"], teacher=ONE))
    assert_same_state(
        transprune.train(small_network(), two_colours(), "quick").state_dict(),
        transprune.train(small_network(), two_colours(), ONE).state_dict(),
    )
    assert search_options("paper-cifar") == SearchOptions(depth_samples=None)
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
    nowhere = nn.Linear(2, 2, device="meta")
    assert Setup().placed(nowhere).device == choose_device(None, nowhere) == torch.device("meta")
    for named in ("cpu", torch.device("cpu")):
        assert Setup(device=named).placed(nowhere).device == torch.device("cpu")
    assert Setup(device="auto").placed(nowhere).device == choose_device("auto") == choose_device(None, nn.ReLU())
    with pytest.raises(OptionError, match="cannot compute on the device 'gpu'"):
        transprune.train(small_network(), two_colours(), ONE, setup=Setup(device="gpu"))


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
