"""Networks are built by name: our own, those of libraries, and those of the user's code."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from transprune.errors import ModelError
from transprune.models.by_name import build_model, is_user_model

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, image_channels=1):
        super().__init__()
        self.conv = nn.Conv2d(image_channels, 4, 3)
        self.classifier = nn.Linear(4, classes)

    def forward(self, images):
        return self.classifier(self.conv(images).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current directory; modules that a test imports from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(code: str, file: str = "net.py") -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return path


def sizes(model: nn.Module) -> tuple[int, int]:
    """Image channels and classes."""
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return convolution.in_channels, linear.out_features


def refusal(name: str) -> str:
    with pytest.raises(ModelError, match=r"^cannot build the model ") as caught:
        build_model(name, classes=7, image_channels=1)
    return str(caught.value)


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


# Libraries


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vgg11_bn"])
def test_a_torchvision_model_has_the_classes_of_the_data_and_new_weights(no_download, name):
    assert sizes(build_model(f"torchvision:{name}", classes=7, image_channels=3)) == (3, 7)


def test_a_torchvision_model_reads_three_channels_only():
    assert "with 1 channels: it reads 3; bring the images to 3 (--image-size 3" in refusal("torchvision:resnet18")


@pytest.mark.parametrize("name", ["resnet18", "resnet10t.c3_in1k"])
def test_a_timm_model_has_the_classes_and_channels_of_the_data_and_new_weights(no_download, name):
    pytest.importorskip("timm")
    assert sizes(build_model(f"timm:{name}", classes=7, image_channels=1)) == (1, 7)


def test_without_timm_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'transprune[timm]'" in refusal("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet57", "resnet56"),
        ("resnet101", "torchvision:resnet101"),
        ("torchvision:resnet19", "resnet18"),
        ("torchvison:resnet18", "torchvision:resnet18"),
        ("timm:mobilenetv3_smal_100", "mobilenetv3_small_100"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    message = refusal(name)
    assert f"did you mean {nearest!r}" in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["timm:hf-hub:someone/something", "timm:local-dir:."])
def test_timm_names_that_would_fetch_something_are_refused(no_download, name):
    pytest.importorskip("timm")
    assert "expected one of" in refusal(name)


# The user's code


def test_a_function_of_a_file_builds_the_model():
    write(NET + "def build(classes, image_channels):\n    return Net(classes, image_channels)\n")
    assert sizes(build_model("net.py:build", classes=7, image_channels=3)) == (3, 7)


def test_a_file_elsewhere_is_found_by_its_path(tmp_path):
    write(NET, "models of mine/a:b/net.py")
    for name in ("models of mine/a:b/net.py:Net", f"{tmp_path}/models of mine/a:b/net.py:Net"):
        assert sizes(build_model(name, classes=7, image_channels=3)) == (3, 7)


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("classes, image_channels", (3, 7)),
        ("num_classes, in_chans", (3, 7)),
        ("*, num_classes, image_channels=9", (3, 7)),
        ("in_chans=9", (3, 0)),
        ("classes=9", (0, 7)),
        ("", (0, 0)),
        ("depth=20, **options", (0, 0)),
    ],
)
def test_a_function_gets_those_figures_that_it_has_a_parameter_for(signature, expected):
    names = re.findall(r"classes|num_classes|image_channels|in_chans", signature)
    code = f"given = dict({', '.join(f'{name}={name}' for name in names)})"
    write(
        f"{NET}\ndef build({signature}):\n    {code}\n    model = Net()\n"
        "    model.classes = given.get('classes', given.get('num_classes', 0))\n"
        "    model.channels = given.get('image_channels', given.get('in_chans', 0))\n    return model\n"
    )
    model = build_model("net.py:build", classes=7, image_channels=3)
    assert (model.channels, model.classes) == expected


def test_a_file_may_import_what_lies_beside_it_and_the_path_of_imports_is_left_as_it_was():
    write(NET, "mine/beside_it.py")
    write("def build(**options):\n    from beside_it import Net\n    return Net()\n", "mine/net.py")
    before = list(sys.path)
    assert sizes(build_model("mine/net.py:build", classes=7, image_channels=3)) == (1, 3)
    assert sys.path == before


def test_a_file_may_hold_a_dataclass_and_annotations_in_text():
    imports = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    shape = "@dataclass\nclass Shape:\n    classes: int = 5\n\n"
    write(f"{imports}{NET}\n{shape}def build():\n    return Net(Shape().classes)\n")
    assert sizes(build_model("net.py:build", classes=7, image_channels=3)) == (1, 5)


def test_a_function_of_a_module_in_the_current_directory_builds_the_model():
    write("", "package_of_mine/__init__.py")
    write(NET, "package_of_mine/nets.py")
    assert sizes(build_model("package_of_mine.nets:Net", classes=7, image_channels=3)) == (3, 7)


def test_a_function_of_an_installed_module_builds_the_model():
    model = build_model("torchvision.models.mobilenetv3:mobilenet_v3_small", classes=7, image_channels=3)
    assert sizes(model) == (3, 1000)  # its options are behind **kwargs, which are not guessed


def test_the_file_is_read_again_for_every_model():
    write(NET + "def build():\n    return Net(4)\n")
    assert sizes(build_model("net.py:build", classes=7, image_channels=1)) == (1, 4)
    write(NET + "def build():\n    return Net(classes=5)\n")
    assert sizes(build_model("net.py:build", classes=7, image_channels=1)) == (1, 5)


FAILING = {
    "in the function": ("def build():\n    x = 1\n    raise ValueError('no such thing')\n", 3, "ValueError: no such"),
    "in torch": ("from torch import nn\ndef build():\n    return nn.Linear(2, 'x')\n", 3, "TypeError"),
    "while it is imported": ("import sys\n\n1 / 0\n", 3, "ZeroDivisionError"),
    "by a missing import": ("import sys\nimport no_such_module\n", 2, "No module named 'no_such_module'"),
    "by its syntax": ("x = 1\ndef build(:\n", 2, "SyntaxError"),
    "by leaving": ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
}


@pytest.mark.parametrize("name", FAILING)
def test_code_that_fails_is_reported_with_its_file_and_line(tmp_path, name):
    code, line, problem = FAILING[name]
    write(code, "failing_net.py")
    for form in ("failing_net.py:build", "failing_net:build"):
        message = refusal(form)
        assert f"failed at {tmp_path / 'failing_net.py'}:{line}: " in message
        assert problem in message


def test_code_that_fails_beside_the_file_is_reported_there(tmp_path):
    write("def width():\n    return {}['width']\n", "beside_net.py")
    write("from beside_net import width\ndef build():\n    return width()\n")
    assert f"failed at {tmp_path / 'beside_net.py'}:2: KeyError: 'width'" in refusal("net.py:build")


def test_a_function_that_needs_something_else_is_refused_with_its_name():
    write("def build(depth):\n    pass\n")
    assert "missing 1 required positional argument: 'depth'" in refusal("net.py:build")


@pytest.mark.parametrize(("result", "kind"), [("3", "int"), ("None", "NoneType"), ("Net", "type")])
def test_what_is_no_module_is_refused(result, kind):
    write(f"{NET}\ndef build():\n    return {result}\n")
    assert f"it returned {kind}; expected a torch.nn.Module" in refusal("net.py:build")


@pytest.mark.parametrize("function", ["biuld", "torch", "model"])
def test_a_function_that_is_not_there_is_refused_with_those_that_are(function):
    write(f"{NET}\nmodel = Net()\ndef build():\n    return model\n")
    message = refusal(f"net.py:{function}")
    assert f"there is no function {function!r}" in message
    assert "expected one of Net, build" in message


@pytest.mark.parametrize(
    "name",
    [
        *("", ":", "::", ":build", "net.py", "net.py:", "net.py::build", "net:", "a:b:c", "net.py:build:more", ".py"),
        *(r"C:\models\net.py", r"C:\models\net.py:build", "C:/models/net.py:build", "/", "a/b", "..:build", "é:é"),
        *("net.py:build()", "net.py:Net.build", "missing.py:build", "missing.module:build", "json.:loads", "a b:c"),
        *("https://example.org/net.py:build", "torchvision:", "torchvision", "timm", "resnet", "~/no/net.py:build"),
    ],
)
def test_a_name_that_names_nothing_is_refused_and_never_crashes(name):
    write(NET)
    assert "expected" in refusal(name) or "did you mean" in refusal(name)


@pytest.mark.parametrize(
    ("name", "is_user"),
    [
        *(("resnet20", False), ("torchvision:resnet18", False), ("timm:resnet18", False), ("vit", False)),
        *(("net.py:build", True), ("package.module:build", True), (r"C:\net.py:build", True), ("timm.models:x", True)),
    ],
)
def test_it_is_known_without_running_it_which_names_run_code_of_the_user(name, is_user):
    assert is_user_model(name) == is_user


def test_the_same_seed_gives_the_same_weights_of_a_users_model():
    write(NET)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("net.py:Net", classes=7, image_channels=1))
    assert torch.equal(models[0].conv.weight, models[1].conv.weight)
