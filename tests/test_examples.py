"""Every example runs, with few images and epochs, and does what its first line says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import transprune
from transprune.cli import main as command_line

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(autouse=True)
def _one_thread(_few_threads):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """120 digits as a folder of images."""
    folder, digits = tmp_path_factory.mktemp("photos"), load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:120], digits.target, strict=False)):
        place = folder / ("val" if number // 10 % 4 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished_run(photos, tmp_path_factory):
    """A run on these images."""
    run = tmp_path_factory.mktemp("runs") / "first"
    words = f"run resnet20 --data imagefolder:{photos} --image-size 1 8 8 --budget macs=0.5 --preset quick --out {run}"
    command_line(
        [
            *words.split(),
            "--teacher.epochs",
            "3",
            "--search.epochs",
            "2",
            "--search.prior",
            "none",
            "--distill.epochs",
            "3",
        ]
    )
    return run


def test_a_network_of_torchvision_takes_what_fits_of_a_weights_file_and_gets_smaller(photos, tmp_path, capsys):
    original = torchvision.models.squeezenet1_1(num_classes=20)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    small = example("torchvision_finetuning").main(
        model="squeezenet1_1",
        weights=tmp_path / "weights.pth",
        data=f"imagefolder:{photos}",
        budget="params=0.6",
        epochs=1,
        out=tmp_path / "small.safetensors",
    )
    new, *_ = capsys.readouterr().out.splitlines()
    assert set(new.removeprefix("new weights for ").split(", ")) == {"classifier.1.weight", "classifier.1.bias"}
    assert parameters(small) <= 0.6 * parameters(torchvision.models.squeezenet1_1(num_classes=10))
    assert (tmp_path / "small.safetensors").stat().st_size > 4 * parameters(small)


def test_a_network_of_timm_keeps_its_stem_and_has_widths_in_multiples_of_8(photos):
    timm_model = example("timm_model")
    small = timm_model.main(data=f"imagefolder:{photos}", epochs=1)
    whole = timm_model.timm.create_model("resnet10t", num_classes=10)
    assert [each.out_channels for each in small.conv1 if isinstance(each, nn.Conv2d)] == [24, 32, 64]
    widths = {each.out_channels for each in small.modules() if isinstance(each, nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths)
    assert parameters(small) <= 0.4 * parameters(whole)


def test_rows_of_a_hugging_face_data_set_are_learned_from(capsys):
    example("hugging_face_datasets").main(limit=100, epochs=1)
    assert "student: " in capsys.readouterr().out


def test_a_loop_of_ones_own_ends_when_the_probabilities_are_settled(capsys):
    example("own_training_loop").main(epochs=3, limit=2, settled=1.0)
    said = capsys.readouterr().out
    assert said.count("epoch ") == 1
    assert "the student: " in said


def test_a_supernet_is_trained_in_a_loop_of_accelerate(capsys):
    small = example("accelerate_loop").main(share=0.4, epochs=1)
    assert transprune.count_macs(small, torch.zeros(1, 1, 8, 8)) <= 0.4 * transprune.count_macs(
        example("accelerate_loop").network(), torch.zeros(1, 1, 8, 8)
    )


def test_a_supernet_is_trained_by_the_trainer_of_lightning():
    pytest.importorskip("lightning")
    lightning_loop = example("lightning_loop")
    small = lightning_loop.main(share=0.4, epochs=1)
    whole = transprune.count_macs(transprune.resnet(20, image_channels=1), lightning_loop.EXAMPLE)
    assert transprune.count_macs(small, lightning_loop.EXAMPLE) <= 0.4 * whole


def test_a_student_is_quantised_to_a_third_of_its_bytes_and_says_the_same(finished_run, photos):
    quantise = example("quantise")
    small = quantise.main(run=finished_run, data=f"imagefolder:{photos}")
    student = transprune.load(finished_run)
    assert quantise.weight_bytes(small) < quantise.weight_bytes(student) / 3
    data = transprune.load_data(f"imagefolder:{photos}", image_size=(1, 8, 8))
    images, _ = next(iter(transprune.make_loader(data.train, data, batch_size=64, train=False, seed=0, device="cpu")))
    with torch.no_grad():
        wanted = student(images)
        assert (small(images) - wanted).abs().mean() < 0.1 * wanted.abs().mean()


@pytest.mark.long
def test_whistles_are_told_apart_by_a_network_of_few_bytes(tmp_path, monkeypatch):
    monkeypatch.delenv("KEYWORDS", raising=False)
    place = EXAMPLES / "keywords.py"
    words = (
        f"run {place}:network --data {place}:sounds --budget file=64KB --int8 --preset quick --out {tmp_path / 'run'}"
    )
    brief = "--teacher.epochs 2 --teacher.warm-up-epochs 0 --search.epochs 1 --search.prior none --distill.epochs 1"
    command_line([*words.split(), *brief.split(), "--distill.warm-up-epochs", "0", "--search.warm-up-epochs", "0"])
    assert 50_000 < (tmp_path / "run" / "student.int8.onnx").stat().st_size <= 64_000


def test_an_exported_student_runs_without_torch(finished_run, photos):
    forbidden = "import sys; sys.modules.update(torch=None, transprune=None); import runpy; "
    start = f"sys.argv[0] = {str(EXAMPLES / 'deploy_onnx.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    images = sorted((photos / "val").rglob("*.png"))[:7]
    done = subprocess.run(
        [sys.executable, "-c", forbidden + start, str(finished_run), *map(str, images)],
        capture_output=True,
        text=True,
        check=True,
    )
    said = [int(line.split("class ")[1].split()[0]) for line in done.stdout.splitlines()]
    pixels = torch.stack([torch.tensor(list(Image.open(file).get_flattened_data())) for file in images])
    described = json.loads((finished_run / "architecture.json").read_text())["preprocessing"]
    normalised = (pixels.view(-1, 1, 8, 8) / 255 - described["mean"][0]) / described["std"][0]
    assert said == transprune.load(finished_run)(normalised).argmax(1).tolist()


@pytest.mark.long
def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "EPOCHS = 16" in cells[0]
    assert all(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code" and "print" in str(cell))
    names = {}
    for number, cell in enumerate(cells):
        exec(compile(cell.replace("EPOCHS = 16", "EPOCHS = 1"), f"cell {number}", "exec"), names)
    names["plt"].close("all")
    assert "MACs expected" in capsys.readouterr().out
    assert names["found"].actual <= names["found"].target


def test_every_example_is_listed_and_every_listed_one_is_there():
    listed = (EXAMPLES / "README.md").read_text()
    files = {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
    assert files == {
        word.strip("()") for word in listed.replace("](", " ").split() if word.endswith((".py)", ".ipynb)"))
    }
