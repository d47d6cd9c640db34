"""Budgets in bytes of the exported file: read, predicted, kept, and written into the run."""

import os
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import small_networks as zoo
import transprune
from transprune import runs
from transprune.budget import Budget
from transprune.costs import COSTS, FileSize
from transprune.errors import BudgetError, ExportError, RunFolderError
from transprune.exports import runtimes
from transprune.exports.formats import export_program, onnx_bytes, quantised_onnx
from transprune.latency import measurement
from transprune.latency.measurement import file_size
from transprune.options import get_preset
from transprune.reading.inspection import inspect
from transprune.runs import steps
from transprune.runs.material import known_file_size
from transprune.runtime import RunFolder, read_journal
from transprune.shrinking.shrink import shrink
from whole_runs import NET


class Attentive(nn.Module):
    """A convolution, two transformer blocks and a head: norms that are kept, and products without weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 2, stride=2)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(2))
        )
        self.head = nn.Linear(32, 5)

    def forward(self, images):
        return self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class Convolving(nn.Sequential):
    """Norms that are folded, and a convolution over each channel."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            *(nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 5)),
        )


def learned(model):
    """The network with other weights than new ones: exporters write equal tensors once."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return model.eval()


@pytest.fixture(autouse=True)
def _few_files(monkeypatch):
    monkeypatch.setattr(measurement, "SIZED", 6)
    monkeypatch.setattr(measurement, "TRIED", 1)


def written(model, architecture, *, int8):
    """How large the file of a student is."""
    images = zoo.example(1)
    onnx = onnx_bytes(export_program(shrink(model, architecture, images).eval(), images))
    return len(quantised_onnx(onnx, [(images,)]) if int8 else onnx)


@pytest.mark.parametrize(
    ("build", "int8"),
    [
        (Convolving, True),
        pytest.param(Convolving, False, marks=pytest.mark.long),
        pytest.param(Attentive, False, marks=pytest.mark.long),
    ],
)
def test_what_a_file_takes_is_known_before_it_is_written(build, int8):
    model = build().eval()
    space = inspect(model, zoo.example())
    cost = file_size(model, space, zoo.example(), int8=int8)
    assert max(map(abs, cost.errors)) < 0.01
    for architecture in (space.full_architecture(), space.random_architecture(17)):
        true = written(learned(model), architecture, int8=int8)
        assert space.cost(cost, architecture) == pytest.approx(true, rel=0.01)
    assert cost.weight == pytest.approx(1 if int8 else 4, abs=0.3)


def test_a_compressed_network_has_a_file_within_its_budget(tmp_path):
    model = learned(Convolving())
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = transprune.compress(model, images, "file=0.6")
    whole, small = (
        transprune.export(network, images[:1], tmp_path / f"{name}.onnx").stat().st_size
        for name, network in (("whole", model), ("small", found.student))
    )
    (limit,) = found.limits
    assert limit.most == pytest.approx(0.6 * whole, rel=0.01)
    assert 0.9 * limit.most < small <= limit.most


def test_what_is_out_of_reach_is_said_in_bytes():
    space = inspect(Convolving().eval(), zoo.example())
    cost = FileSize(weight=4, norm=0, channel=4, layer=300, product=0, rest=1500, bearer=space.layers[0].name)
    limit = Budget.parse("file=0.8").limit(space, {**COSTS, "file": cost})
    assert str(limit).endswith("kB")
    with pytest.raises(BudgetError, match=r"file=1KB: it allows 1.0 kB, and the attainable range .* kB"):
        Budget.parse("file=1KB").limit(space, {**COSTS, "file": cost})


def test_a_kind_that_is_measured_has_to_be():
    with pytest.raises(BudgetError, match=r"file is measured, and only macs, params are known here.*file_size"):
        Budget.parse("file=64KB").limit(inspect(Convolving().eval(), zoo.example()))


@pytest.mark.parametrize(
    ("text", "number", "said"),
    [
        ("file=64KB", 64_000, "file=64KB"),
        ("file=1.5mb", 1_500_000, "file=1.5MB"),
        ("file=800B", 800, "file=800B"),
        ("file=0.25", 0.25, "file=0.25"),
    ],
)
def test_bytes_have_units(text, number, said):
    assert Budget.parse(text).amount == number
    assert str(Budget.parse(text)) == said


def test_bytes_without_a_unit_are_answered():
    with pytest.raises(BudgetError, match=re.escape("64000 of what? Did you mean file=64000B, in bytes?")):
        Budget.parse("file=64000")


def test_sizes_that_follow_from_nothing_are_refused(monkeypatch):
    sizes = iter([1000, 9000, 200, 50_000, 3, 77, 1_000_000, 5])
    monkeypatch.setattr(measurement, "files_for", lambda *_: {".onnx": b"x" * next(sizes)})
    model = Convolving().eval()
    with pytest.raises(ExportError, match="cannot say what files take: of 1 networks it is off by"):
        file_size(model, inspect(model, zoo.example()), zoo.example())


def test_eight_bits_are_of_onnxruntime(monkeypatch):
    monkeypatch.setattr(runtimes.OpenVino, "is_installed", True)
    model = Convolving().eval()
    with pytest.raises(ExportError, match="cannot write 8 bits for OpenVINO: expected onnxruntime"):
        file_size(model, inspect(model, zoo.example()), zoo.example(), "openvino", int8=True)


@pytest.mark.usefixtures("few_digits")
def test_a_run_keeps_to_the_bytes_of_its_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    recipe = get_preset("quick")
    options = runs.RunOptions(
        model=f"{tmp_path / 'net.py'}:build",
        data="digits",
        budget=("file=0.85",),
        preset="quick",
        teacher=replace(recipe.teacher, epochs=1, warm_up_epochs=0),
        search=replace(recipe.search, epochs=1, warm_up_epochs=0, batch_size=128, prior="none"),
        distill=replace(recipe.distill, epochs=1, warm_up_epochs=0),
        int8=True,
    )
    with runs.prepare(options, tmp_path / "run", device="cpu") as run:
        runs.run_all(run)
        folder = run.folder
    result, size = folder.read_json("result.json"), folder.file("student.int8.onnx").stat().st_size
    (budget,) = result["budgets"]
    assert budget["kind"] == "file"
    assert size == budget["written"] <= result["student"]["file"] == budget["actual"] <= budget["target"]
    assert folder.read_json("int8.json")["int8"]["file_bytes"] == size == pytest.approx(budget["actual"], rel=0.01)
    runs.show_results(folder)
    assert re.search(r"budget kept: written [\d.]+ kB of [\d.]+ kB", capsys.readouterr().out)
    assert "File size over the search" in folder.file("report.html").read_text(encoding="utf-8")
    (entry,) = [entry for entry in read_journal(folder.file("journal.jsonl")) if entry["event"] == "file"]
    assert entry["int8"]
    report = folder.file("report.html").read_text(encoding="utf-8").replace("&nbsp;", " ")
    assert re.search(r"written [\d.]+ kB of at most [\d.]+ kB", report)

    steps.evaluate_step(run)  # which finds the file, and need not write it
    assert folder.read_json("result.json")["budgets"] == [budget]
    smaller = {**budget, "target": size - 1000}
    folder.write_json("result.json", {**result, "budgets": [{**smaller, "written": 0}]})
    steps._hold_against_file(run)
    assert folder.read_json("result.json")["budgets"] == [{**smaller, "written": size}]
    assert "The file is larger than its budget: it has" in capsys.readouterr().err
    (said,) = [entry for entry in read_journal(folder.file("journal.jsonl")) if "larger" in entry.get("what", "")]
    assert re.search(r"file=0.85 allows [\d.]+ kB and .* were predicted; ask for 1.0 kB less", said["why"])
    runs.show_results(folder)
    assert "budget NOT kept: written" in capsys.readouterr().out
    os.utime(folder.file("student.int8.onnx"), (0, 0))  # of another student
    steps.evaluate_step(run)
    assert "written" not in folder.read_json("result.json")["budgets"][0]

    monkeypatch.setattr(measurement, "files_for", None)  # what is known of the file is not found again
    again = runs.prepare(options, folder.path, device="cpu", resume=True)
    assert again.costs["file"] == known_file_size(folder)
    again.close()
    folder.write_json("file_size.json", {"weight": "heavy"})
    with pytest.raises(RunFolderError, match=r"cannot read .*file_size\.json"):
        known_file_size(folder)


def test_a_size_is_read_as_it_was_written(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    assert known_file_size(folder) is None
    assert known_file_size(None) is None
    size = FileSize(
        weight=4, norm=0.5, channel=0, layer=220, product=9, rest=1e4, bearer="stem", errors=(0.001, -0.002)
    )
    folder.write_json("file_size.json", {**vars(size)})
    assert known_file_size(folder) == size
