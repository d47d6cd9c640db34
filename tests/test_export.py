"""The student as an exported program, as ONNX, and as the files of every runtime that is installed."""

import io
import subprocess
import sys
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import transprune
from small_networks import CASES, example
from transprune.errors import ExportError
from transprune.exports.formats import check_pt2, export_program, onnx_bytes, pt2_bytes, takes_any_batch
from transprune.exports.runtimes import RUNTIMES, check_files, find_runtime


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


class RowByRow(nn.Module):
    """Its forward counts the images of a batch, which fixes their number."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = network()

    def forward(self, images):
        return torch.cat([self.inside(image[None]) for image in images])


class Secretive(nn.Module):
    """No export can follow its forward."""

    def forward(self, images):
        return images.flatten(1)[:, :2] if float(images.sum()) > 0 else images.flatten(1)[:, :3]


INSTALLED = {name: runtime for name, runtime in RUNTIMES.items() if runtime.is_installed}
OF_ANY_BATCH = {name: runtime for name, runtime in INSTALLED.items() if runtime.takes_any_batch}
KINDS = {
    "pt2": (pt2_bytes, check_pt2),
    **{name: (runtime.write, partial(check_files, runtime)) for name, runtime in OF_ANY_BATCH.items()},
}


@pytest.fixture(scope="module")
def program():
    return export_program(network(), torch.zeros(1, 3, 4, 4))


@pytest.fixture(scope="module")
def contents(program):
    return {kind: write(program) for kind, (write, _) in KINDS.items()}


def half(files):
    if isinstance(files, bytes):
        return files[: len(files) // 2]
    return {suffix: half(content) for suffix, content in files.items()}


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 4, 4, generator=generator) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_network_gives_torchs_logits_on_batches_of_any_size(contents, kind):
    assert KINDS[kind][1](contents[kind], network(), batches(1, 2, 5, 33)) < 1e-5


def test_files_hold_notes(program):
    notes = {"preprocessing": '{"mean": [0.5]}'}
    onnx = onnxruntime.InferenceSession(onnx_bytes(program, notes), providers=["CPUExecutionProvider"])
    assert onnx.get_modelmeta().custom_metadata_map["preprocessing"] == notes["preprocessing"]
    held = {"preprocessing": ""}
    torch.export.load(io.BytesIO(pt2_bytes(program, notes)), extra_files=held)
    assert held == notes


def test_an_onnx_file_tells_nothing_of_the_code_that_made_it(contents):
    content = contents["onnxruntime"][".onnx"]
    graph = onnx.load_from_string(content).graph
    assert b".py" not in content
    assert b"ExportedProgram" not in content
    weights = sum(len(each.raw_data) for each in graph.initializer)
    assert len(content) - weights < 400 * len(graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_other_weights_is_not_trusted(contents, kind):
    with pytest.raises(ExportError, match="on a batch of 2 its logits differ from torch's by"):
        KINDS[kind][1](contents[kind], network(seed=1), batches(2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_another_number_of_classes_is_not_trusted(contents, kind):
    with pytest.raises(ExportError, match="differ from torch's by inf"):
        KINDS[kind][1](contents[kind], nn.Sequential(*network(), nn.Linear(5, 4)), batches(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused(contents, kind):
    name = "cannot load the exported" if kind == "pt2" else f"cannot run the network for {RUNTIMES[kind].title}"
    with pytest.raises(ExportError, match=name):
        KINDS[kind][1](half(contents[kind]), network(), batches(1))


@pytest.mark.parametrize("name", INSTALLED)
def test_every_runtime_gives_torchs_logits_of_single_samples(name):
    runtime = RUNTIMES[name]
    program = export_program(network(), torch.zeros(2, 3, 4, 4), any_batch=False)
    files = runtime.write(program)
    assert tuple(files) == runtime.suffixes
    assert check_files(runtime, files, network(), [batches(1)[0], -batches(1)[0]]) < 1e-5
    with pytest.raises(ExportError, match="differ from torch's by"):
        check_files(runtime, files, network(seed=1), batches(1))


@pytest.mark.parametrize("name", INSTALLED)
def test_several_inputs_and_outputs_keep_their_order(name):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, first, second):
            return self.one(first) - 2 * self.other(second), self.one(first)

    torch.manual_seed(0)
    inputs = torch.randn(1, 3), torch.randn(1, 4)
    model = Two().eval()
    files = RUNTIMES[name].write(export_program(model, inputs, any_batch=False))
    assert check_files(RUNTIMES[name], files, model, [inputs]) < 1e-5


@pytest.mark.parametrize("name", INSTALLED)
def test_a_name_says_the_runtime(name, tmp_path):
    suffix = RUNTIMES[name].suffixes[0]
    assert transprune.export(network(), torch.zeros(3, 3, 4, 4), tmp_path / f"net{suffix}").is_file()
    left = {each.suffix for each in tmp_path.iterdir()}
    assert left == set(RUNTIMES[name].suffixes)


def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(type(RUNTIMES["litert"]), "packages", {"no_such_package": "none"})
    with pytest.raises(ExportError, match=r"LiteRT: it is not installed; pip install 'transprune\[litert\]'"):
        find_runtime("litert")


def test_exporting_leaves_the_network_in_its_mode():
    training = network().train()
    export_program(training, torch.zeros(1, 3, 4, 4))
    assert training.training
    assert all(parameter.requires_grad for parameter in training.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_connecting_layers_is_exported(case):
    model = CASES[case]().eval()
    exported = export_program(model, example(1))
    assert takes_any_batch(exported)
    assert check_pt2(pt2_bytes(exported), model, [example(1), example(3)]) < 1e-5


def test_a_forward_that_fixes_the_batch_is_exported_for_one_image():
    exported = export_program(RowByRow(), torch.zeros(2, 3, 4, 4))
    assert not takes_any_batch(exported)
    for write, check in KINDS.values():
        assert check(write(exported), RowByRow(), batches(1)) < 1e-5
    (image,) = onnxruntime.InferenceSession(onnx_bytes(exported)).get_inputs()
    assert image.shape == [1, 3, 4, 4]


def test_the_batch_of_the_onnx_file_is_named(contents):
    (image,) = onnxruntime.InferenceSession(contents["onnxruntime"][".onnx"]).get_inputs()
    assert image.shape == ["batch", 3, 4, 4]


def test_what_torch_cannot_export_is_refused():
    with pytest.raises(ExportError, match="cannot export Secretive"):
        export_program(Secretive(), torch.zeros(1, 3, 4, 4))


class Middle(nn.Module):
    """ONNX has no operator for it."""

    def forward(self, images):
        return images.flatten(1).median(1).values


def test_what_onnx_lacks_is_named():
    program = export_program(nn.Sequential(network(), Middle()), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ExportError, match=r"%median.*No ONNX function found for .*aten.median") as caught:
        onnx_bytes(program)
    assert "stack trace" not in str(caught.value)


def test_a_pt2_file_runs_where_there_is_only_torch(contents, tmp_path):
    (tmp_path / "student.pt2").write_bytes(contents["pt2"])
    images = batches(3)[0]
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; sys.modules['transprune'] = None\n"
        "student = torch.export.load('student.pt2').module()\n"
        "torch.save(student(torch.load('images.pt')).detach(), 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), network()(images), atol=1e-5)
