"""A student is rebuilt from its run folder, and the folder never decides which code runs."""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import transprune
from small_networks import CASES
from transprune.errors import ModelError, RunFolderError
from transprune.models.by_name import build_model
from transprune.runs import phases
from transprune.runtime import RunFolder
from transprune.runtime.structures import called

CODE = """
from pathlib import Path
Path("ran").touch()
from transprune import resnet

def build(classes, image_channels):
    return resnet(8, classes=classes, image_channels=image_channels)
"""


def finished_run(path, name: str, model: nn.Module, *, image_size=(3, 32, 32)) -> nn.Module:
    """Writes what `load` reads of a run, with the smallest student, and gives the student."""
    example = torch.zeros(1, *image_size)
    architecture = transprune.inspect(model, example).smallest_architecture()
    student = transprune.shrink(model, architecture, example)
    folder = RunFolder(path)
    described = {"name": name, "classes": 5, "input_size": list(image_size)}
    folder.write_json("architecture.json", {"format": 1, **architecture.to_json(), "model": described})
    folder.write_tensors("student.safetensors", student.state_dict())
    return student.eval()


class Nested(nn.Module):
    """Takes images, a row of numbers and a flag, nested in any way, and gives images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.row, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 8), nn.Conv2d(8, 5, 1)

    def forward(self, parts, is_scaled=False, *, rest=None):
        images, row = (parts["images"], parts["row"][0]) if isinstance(parts, dict) else parts
        row = row if rest is None else row + rest
        features = (self.stem(images) + self.row(row)[..., None, None]).relu()
        return {"logits": self.head(2 * features if is_scaled else features)}


@dataclass
class Pair:
    """Inputs in a class of their own."""

    images: Tensor
    row: Tensor

    def __iter__(self):
        return iter((self.images, self.row))


IMAGES, ROW = torch.ones(1, 3, 8, 8), torch.ones(1, 4)
STRUCTURES = {
    "dict": {"parts": {"row": [ROW], "images": IMAGES}, "is_scaled": True},
    "list": ([IMAGES, ROW],),
    "named": transprune.Inputs((IMAGES, ROW), False, rest=ROW),
    "class": (Pair(IMAGES, ROW),),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_inputs_of_any_structure_need_not_be_given_again_unless_they_are_of_a_class(tmp_path, name):
    example, model = STRUCTURES[name], Nested()
    folder, space = RunFolder(tmp_path), transprune.inspect(model, example)
    architecture = space.smallest_architecture()
    student = transprune.shrink(model, architecture, example)
    data = transprune.LoaderData(train=[example], test=[example], example=example)
    described = {"name": "python:Nested", **phases._inputs(data)}
    folder.write_json("architecture.json", {"format": 1, **architecture.to_json(), "model": described})
    folder.write_tensors("student.safetensors", student.state_dict())
    if name == "class":
        with pytest.raises(ModelError, match="example="):
            transprune.load(tmp_path, model=Nested())
    loaded = transprune.load(tmp_path, model=Nested(), example=example if name == "class" else None)
    found, expected = (called(each.eval(), example)["logits"] for each in (loaded, student))
    torch.testing.assert_close(found, expected)


def assert_same(found: nn.Module, expected: nn.Module, *, image_size=(3, 32, 32)):
    images = torch.randn(2, *image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(images), expected(images))
    assert not found.training


@pytest.mark.parametrize("name", ["resnet20", "torchvision:resnet18", "timm:resnet10t"])
def test_a_student_of_a_library_model_is_rebuilt_without_the_model(tmp_path, name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    student = finished_run(tmp_path, name, build_model(name, classes=5, image_channels=3))
    assert_same(transprune.load(tmp_path), student)


@pytest.mark.parametrize("case", ["plain", "inline_residual", "depthwise", "flattened", "staged"])
def test_a_student_of_any_model_is_rebuilt_from_the_model(tmp_path, case):
    student = finished_run(tmp_path, "net.py:build", CASES[case](), image_size=(3, 8, 8))
    model = CASES[case]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_same(transprune.load(tmp_path, model=model), student, image_size=(3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["net_of_run.py:build", "net_of_run:build"])
def test_code_that_a_run_folder_names_is_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_run.py").write_text(CODE)
    finished_run(tmp_path, name, CASES["plain"](), image_size=(3, 8, 8))
    with pytest.raises(ModelError, match=r"load\('.*', model=\.\.\.\)") as caught:
        transprune.load(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "5 classes, 3 image channels" in str(caught.value)
    build_model(name, classes=5, image_channels=3)
    assert (tmp_path / "ran").exists()
    sys.modules.pop("net_of_run", None)


def test_another_model_than_the_runs_is_refused(tmp_path):
    finished_run(tmp_path, "net.py:build", CASES["plain"](), image_size=(3, 8, 8))
    with pytest.raises(transprune.TranspruneError, match="cannot "):
        transprune.load(tmp_path, model=CASES["staged"]())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 7}, r"'classifier.weight' is \[5, 19\] in the file, \[7, 19\] in the model"),
        ({"image_channels": 1}, r"'stem.conv.weight' is \[4, 3, 3, 3\] in the file, \[4, 1, 3, 3\] in the model"),
    ],
)
def test_a_model_that_does_not_fit_is_blamed_and_the_files_are_not(tmp_path, change, said):
    image_size = (change.get("image_channels", 3), 32, 32)
    finished_run(tmp_path, "net.py:build", transprune.resnet(8, classes=5))
    described = RunFolder(tmp_path).read_json("architecture.json")
    described["model"]["input_size"] = image_size
    RunFolder(tmp_path).write_json("architecture.json", described)
    with pytest.raises(ModelError, match=rf"the model that was given does not fit .* \({said}\); give the unpruned"):
        transprune.load(tmp_path, model=transprune.resnet(8, **{"classes": 5, "image_channels": 3} | change))


@pytest.mark.parametrize("known", ["file", "model"])
def test_a_tensor_that_only_one_of_file_and_model_has_is_named(tmp_path, known):
    finished_run(tmp_path, "resnet20", transprune.resnet(20, classes=5), image_size=(3, 8, 8))
    tensors = RunFolder(tmp_path).read_tensors("student.safetensors")
    bias = tensors.pop("classifier.bias")
    RunFolder(tmp_path).write_tensors(
        "student.safetensors", tensors if known == "model" else {**tensors, "classifier.bias": bias, "more": bias}
    )
    name = "classifier.bias" if known == "model" else "more"
    other = "file" if known == "model" else "model"
    with pytest.raises(RunFolderError, match=f"the {known} has a tensor '{name}', the {other} has none"):
        transprune.load(tmp_path)


def test_where_the_library_is_missing_it_is_named(tmp_path, monkeypatch):
    finished_run(tmp_path, "timm:resnet10t", CASES["plain"](), image_size=(3, 8, 8))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"^cannot build the model 'timm:resnet10t': timm is not installed"):
        transprune.load(tmp_path)


@pytest.mark.parametrize("described", [None, {}, {"name": "resnet20"}, {"name": "resnet20", "classes": "many"}])
def test_an_architecture_that_does_not_describe_its_model_is_refused(tmp_path, described):
    finished_run(tmp_path, "resnet20", CASES["plain"](), image_size=(3, 8, 8))
    folder = RunFolder(tmp_path)
    folder.write_json("architecture.json", {**folder.read_json("architecture.json"), "model": described})
    with pytest.raises(RunFolderError, match="does not describe its model"):
        transprune.load(tmp_path)


def test_a_sized_description_is_enough_for_images_of_any_kind(tmp_path):
    student = finished_run(tmp_path, "x", transprune.resnet(8, classes=5, image_channels=1), image_size=(1, 16, 12))
    loaded = transprune.load(tmp_path, model=transprune.resnet(8, classes=5, image_channels=1))
    assert isinstance(loaded(torch.zeros(1, 1, 16, 12)), Tensor)
    assert_same(loaded, student, image_size=(1, 16, 12))
