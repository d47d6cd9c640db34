"""Weights that a library publishes for its network: from the Hub's cache, or with a clear message."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.test_given_teacher import DATA
from torchvision import models

from transprune.cli.arguments import read_command
from transprune.data import preprocessing
from transprune.errors import ModelError, OptionError
from transprune.models.by_name import build_model, pretrained
from transprune.options import CompressOptions
from transprune.runs.material import _as_configured, _classes_of, weights_of
from transprune.runs.run_options import preset_options

NAME = "torchvision:squeezenet1_1"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A cache that holds the trained weights of a small network, and a machine that reaches nothing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _fail)
    tensors = models.squeezenet1_1().state_dict()
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(tensors, folder / Path(url).name)
    return tensors


def _fail(*_, **__):
    raise OSError("Name or service not known")


def options(name=NAME, **changes):
    return dataclasses.replace(preset_options("quick", {"model": name, "weights": "pretrained"}), **changes)


def test_all_but_the_classifier_are_taken_for_other_classes(published):
    model = build_model(NAME, classes=2, image_channels=3)
    weights = weights_of(options(), model, DATA)
    assert torch.equal(weights.tensors["features.0.weight"], published["features.0.weight"])
    assert not weights.is_whole
    assert all(name.startswith("classifier.1") for name in weights.missing + weights.reshaped)


def test_images_are_normalised_as_the_weights_expect(published):
    plain = dataclasses.replace(DATA, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    found = _as_configured(options(), plain, build_model(NAME, classes=2, image_channels=3))
    assert preprocessing(found)["mean"] == [0.485, 0.456, 0.406]
    asked = dataclasses.replace(options(), mean="none")
    assert _as_configured(asked, plain, None) is plain


def test_images_without_labels_have_the_classes_of_the_weights(published):
    assert len(_classes_of(options(compress=CompressOptions()), DATA)) == 1000


def test_a_compression_takes_them_whole_or_not_at_all(published):
    whole, part = (build_model(NAME, classes=classes, image_channels=3) for classes in (1000, 2))
    compressed = options(compress=CompressOptions())
    assert weights_of(compressed, whole, DATA).is_whole
    with pytest.raises(ModelError, match=r"'pretrained torchvision:squeezenet1_1'"):
        weights_of(compressed, part, DATA)


def test_what_cannot_be_fetched_is_said_with_the_way_round(published):
    with pytest.raises(ModelError, match=r"'torchvision:resnet18': .*Name or service not known.*--weights FILE"):
        pretrained("torchvision:resnet18", image_channels=3)


@pytest.mark.parametrize("name", ["resnet20", "torchvision:nothing", "net.py:build"])
def test_a_network_without_published_weights_is_refused(name):
    with pytest.raises(ModelError, match="none are published for it"):
        pretrained(name, image_channels=3)


def test_ours_that_are_built_as_those_of_torchvision_take_theirs(published, monkeypatch):
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **_: models.resnet18().state_dict())
    model = build_model("resnet18-strided", classes=1000, image_channels=3)
    assert weights_of(options("resnet18-strided"), model, DATA).is_whole


def test_timm_adapts_its_weights_to_the_channels(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = {}

    def create_model(name, **given):
        asked.update(given, name=name)
        return torch.nn.Linear(2, 3)

    monkeypatch.setattr(timm, "create_model", create_model)
    assert set(pretrained("timm:resnet18", image_channels=1)) == {"weight", "bias"}
    assert asked == {"name": "resnet18", "pretrained": True, "in_chans": 1}


def test_the_option_is_a_word_for_the_weights():
    command = ["run", NAME, "--data", "digits", "--budget", "macs=0.5", "--out", "x"]
    assert (
        read_command([*command, "--pretrained"]).options()
        == read_command([*command, "--weights", "pretrained"]).options()
    )
    with pytest.raises(OptionError, match=r"--pretrained with --weights w\.pth"):
        read_command([*command, "--pretrained", "--weights", "w.pth"]).options()
