"""Whatever text, bytes or values come from outside: only our own errors come out, and nothing hangs."""

import contextlib
import copy
import importlib.util
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import transprune
from test_training import small_network
from transprune.architecture import Architecture
from transprune.budget import Budget, parse_budgets
from transprune.data import load_data
from transprune.errors import TranspruneError
from transprune.models.by_name import build_model, is_user_model
from transprune.models.weights import load_weights
from transprune.options import get_preset
from transprune.records import to_toml
from transprune.reports.run_record import read_record
from transprune.runs import RunOptions, open_run
from transprune.runtime import Checkpoints, FolderLock, RunFolder, choose_device, read_journal
from transprune.space import SearchSpace

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXTS = st.text(max_size=30)
NUMBERS = st.integers(-(10**25), 10**25) | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**9])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

only_ours = contextlib.suppress(TranspruneError)


def near(*valid):
    """Texts like those that are understood: pieces of them, put together anew, with strange characters between."""
    pieces = sorted({piece for text in valid for piece in (text, *text.replace("=", ":").split(":"), *text)})
    return st.lists(st.sampled_from([*pieces, "\0", "/", "..", "²", "𝟛", "-", "e999", " ", "\n"]), max_size=6).map(
        "".join
    ) | st.text(max_size=20)


@st.composite
def changed(draw, value):
    """A value of JSON with one part replaced, removed or added."""
    root = {"": copy.deepcopy(value)}
    holder, key = root, ""
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        inner = holder[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        holder, key = inner, draw(st.sampled_from(keys))
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "add" and isinstance(holder[key], dict):
        holder[key][draw(TEXTS)] = draw(VALUES)
    elif action == "add" and isinstance(holder[key], list):
        holder[key].append(draw(VALUES))
    elif action == "remove" and holder is not root:
        del holder[key]
    else:
        holder[key] = draw(VALUES)
    return root.get("")


@st.composite
def damaged(draw, content):
    """Bytes with some changed, cut out, doubled or put in anywhere: the header, the middle, the end."""
    place = draw(st.integers(0, len(content)) | st.integers(0, min(64, len(content))))
    piece = draw(st.binary(max_size=12))
    length = draw(st.sampled_from([0, 1, len(piece), 50, len(content)]))
    return content[:place] + piece + content[place + length :]


# --- texts ------------------------------------------------------------------------------------------------------


@given(near("macs=0.5", "params=20.4M", "macs=1e9K"))
def test_budgets(text):
    with only_ours:
        assert str(Budget.parse(str(Budget.parse(text)))) == str(Budget.parse(text))
    with only_ours:
        parse_budgets([text, "macs=0.5"])


@given(near("digits", "cifar10:", "cifar100:", "imagefolder:", "parquet:", "nothing"))
@settings(deadline=None)
def test_data_specifications(spec):
    assume(spec != "digits")
    with only_ours:
        load_data(spec)


@given(near("resnet20", "torchvision:resnet18", "timm:resnet10t", "net.py:build", "package.module:build"))
@settings(deadline=None, max_examples=60)
def test_model_specifications(name):
    top = name.partition(":")[0].partition(".")[0]
    with contextlib.suppress(ValueError):  # code that is there would be run, as it should
        assume(not (is_user_model(name) and top.isidentifier() and importlib.util.find_spec(top)))
    with only_ours:
        build_model(name, classes=3, image_channels=3)


@given(near("quick", "auto", "cpu", "cuda:0"))
def test_presets_and_devices(name):
    for read in (get_preset, choose_device):
        with only_ours:
            read(name)


@pytest.mark.parametrize("place", ["x" * 5000, "~nobody-of-that-name/x", "a\0b", "~a\0b", "a\0b/c"])
def test_names_that_no_file_can_have(place):
    for read in (
        lambda: load_data(f"imagefolder:{place}"),
        lambda: load_data(f"cifar10:{place}"),
        lambda: build_model(f"{place}.py:build", classes=3, image_channels=3),
        lambda: load_weights(f"{place}.pth", small_network()),
        lambda: RunFolder.open(place),
        lambda: transprune.load(place),
    ):
        with pytest.raises(TranspruneError):
            read()
    if not place.startswith("~"):
        for make in (lambda: RunFolder.create(place, {}), lambda: FolderLock(Path(place))):
            with pytest.raises(TranspruneError):
                make()


# --- JSON, TOML, journals ---------------------------------------------------------------------------------------


@given(VALUES | changed(Architecture(widths={"a": 3}, depths={"s": 2}).to_json()))
def test_architectures(value):
    for form in (value, json.dumps(value)):
        with only_ours:
            Architecture.from_json(form)


@pytest.fixture(scope="module")
def space():
    return transprune.inspect(small_network(), torch.zeros(1, 1, 4, 4)).to_json()


@given(st.data())
@SHARED_FOLDER
def test_search_spaces(space, data):
    value = data.draw(VALUES | changed(space))
    for form in (value, json.dumps(value)):
        with only_ours:
            found = SearchSpace.from_json(form)
            assert found.macs(found.smallest_architecture()) <= found.macs(found.full_architecture())


@given(st.text(max_size=60))
def test_texts_that_should_be_json(text):
    for read in (Architecture.from_json, SearchSpace.from_json):
        with only_ours:
            read(text)
        with only_ours:
            read("[" * 50_000 + text)


CONFIG = asdict(RunOptions(model="resnet20", data="digits", budget=("macs=0.5",), preset="quick"))


@given(changed(json.loads(json.dumps(CONFIG))))
@SHARED_FOLDER
def test_configurations(tmp_path, value):
    folder = RunFolder(tmp_path)
    with only_ours:
        folder.write_text("config.toml", to_toml(value if isinstance(value, dict) else {"value": value}))
        options = RunOptions.from_config(folder.config, tmp_path)
        assert isinstance(options.seed, int)
        assert isinstance(options.model, str)


@given(st.binary(max_size=80) | damaged(to_toml(CONFIG).encode()))
@SHARED_FOLDER
def test_bytes_that_should_be_toml(tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content)
    with only_ours:
        RunOptions.from_config(RunFolder.open(tmp_path).config, tmp_path)


@given(damaged(b'{"event": "start"}\n{"event": "epoch", "epoch": 1}\n{"event": "end"}\n'))
@SHARED_FOLDER
def test_journals(tmp_path, content):
    (tmp_path / "journal.jsonl").write_bytes(content)
    with only_ours:
        assert all(isinstance(entry, dict) for entry in read_journal(tmp_path / "journal.jsonl"))


# --- files of tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@given(data=st.data())
@SHARED_FOLDER
def test_weights(tmp_path, name, data):
    network = small_network()
    if not (tmp_path / f"whole{name}").exists():
        if name.endswith("safetensors"):
            (tmp_path / f"whole{name}").write_bytes(save(network.state_dict()))
        else:
            torch.save(network.state_dict(), tmp_path / f"whole{name}")
    (tmp_path / name).write_bytes(data.draw(damaged((tmp_path / f"whole{name}").read_bytes())))
    with only_ours:
        found = load_weights(tmp_path / name, network)
        network.load_state_dict(found.tensors, strict=False)


KEYS = st.sampled_from(["model", "state_dict", "module", "net", "ema", "_orig_mod", "0", "a.b"]) | TEXTS


@st.composite
def containers(draw, weights):
    """A checkpoint that holds the weights somewhere, behind prefixes and beside other things."""
    prefix = "".join(f"{each}." for each in draw(st.lists(KEYS, max_size=3)))
    content = {f"{prefix}{name}": value for name, value in weights.items() if draw(st.integers(0, 19))}
    extras = st.sampled_from([torch.tensor(3), torch.ones(2, 3), torch.zeros(0), "text", None, 1.5, [], {}, {"a": 1}])
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["dict", "list", "beside"]))
        if kind == "dict":
            content = {draw(KEYS): content, **draw(st.dictionaries(KEYS, extras, max_size=3))}
        elif kind == "list":
            content = [draw(extras), content]
        elif isinstance(content, dict):
            content = {**content, **draw(st.dictionaries(KEYS, extras, max_size=3))}
    return content


@given(data=st.data())
@settings(SHARED_FOLDER, max_examples=40)
def test_containers_of_weights(tmp_path, data):
    network = small_network()
    torch.save(data.draw(containers(network.state_dict())), tmp_path / "w.ckpt")
    key = data.draw(st.just("") | KEYS.map(":{}".format))
    with only_ours:
        found = load_weights(f"{tmp_path / 'w.ckpt'}{key}", network, partial=data.draw(st.booleans()))
        assert found.given > 0
        assert all(torch.equal(network.state_dict()[name], value) for name, value in found.tensors.items())


@st.composite
def wrapped(draw, weights):
    """A checkpoint that holds all of the weights once, behind prefixes, in dicts and lists, beside other things."""
    extras = st.sampled_from([torch.tensor(3), torch.ones(2, 3), torch.zeros(0), "text", None, 1.5, [], {}, {"a": 1}])
    prefix = draw(PREFIXES)
    content = {f"{prefix}{name}": value for name, value in weights.items()}
    for depth in range(draw(st.integers(0, 3))):
        beside = {f"beside{depth}{number}": draw(extras) for number in range(draw(st.integers(0, 2)))}
        content = (
            [*beside.values(), content] if draw(st.booleans()) else {**beside, draw(PREFIXES)[:-1] or "x": content}
        )
    return content


PREFIXES = st.sampled_from(["", "model.", "module.", "_orig_mod.module.", "net.", "0.", "a.b.", "state_dict.ema."])


@given(data=st.data())
@settings(SHARED_FOLDER, max_examples=30)
def test_whole_weights_are_found_wherever_they_lie(tmp_path, data):
    network = small_network()
    torch.save(data.draw(wrapped(network.state_dict())), tmp_path / "w.th")
    found = load_weights(tmp_path / "w.th", small_network(seed=1))
    assert found.is_whole
    assert found.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in found.tensors.items())


NAMES = st.sampled_from(["train", "val", "test", "cat", "dog", ".cache", "._0.png", "0.png", "1.JPG", "notes", "é.png"])
TABLES = near("file,label\n0.png,cat\n", "file;label", "\t", '"', "train/cat/0.png,dog\n")


WHOLE = [(part, kind, "1.JPG") for part in ("train", "val") for kind in ("cat", "dog")]


@given(data=st.data())
@settings(SHARED_FOLDER, max_examples=40)
def test_folders_of_images(tmp_path, data):
    root = tmp_path / "images"
    shutil.rmtree(root, ignore_errors=True)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    whole = WHOLE if data.draw(st.booleans()) else []
    others = data.draw(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12))
    if whole and data.draw(st.booleans()):  # nothing that counts
        inside = st.sampled_from([".cache", "._0.png", ".cache/0.png", "notes", "empty/notes"])
        others = [(*place[:2], *data.draw(inside).split("/")) for place in data.draw(st.lists(st.sampled_from(whole)))]
    for parts in [*whole, *others]:
        file = root.joinpath(*parts)
        with contextlib.suppress(OSError):  # a part of the path is a file already
            file.parent.mkdir(parents=True, exist_ok=True)
            is_image = parts in whole or data.draw(st.integers(0, 9))
            file.write_bytes(picture.getvalue() if is_image else b"no image")
    tables = data.draw(st.lists(st.sampled_from(["train", "val"]), max_size=2))
    for part in tables:
        with contextlib.suppress(OSError):
            root.mkdir(exist_ok=True)
            (root / f"{part}.csv").write_bytes(data.draw(TABLES.map(str.encode) | st.binary(max_size=20)))
    classes = {place[:2] for place in whole}
    counts_nothing = whole and not tables and all(tuple(each[:2]) in classes and is_no_image(each) for each in others)
    with contextlib.nullcontext() if counts_nothing else only_ours:
        found = load_data(f"imagefolder:{root}")
        assert len(found.train) >= len(found.classes)
        assert all(not any(part.startswith(".") for part in file.parts[len(root.parts) :]) for file in files_of(found))
        if counts_nothing:
            assert (len(found.train), len(found.test), found.classes) == (2, 2, ("cat", "dog"))


def is_no_image(parts):
    """Whether a file in the folder of a class, or below it, counts for nothing."""
    return len(parts) > 2 and (any(part.startswith(".") for part in parts[2:]) or parts[-1] == "notes")


def files_of(found):
    return [path for split in (found.train, found.test) for path in getattr(getattr(split, "files", None), "paths", ())]


@given(data=st.data())
@SHARED_FOLDER
def test_checkpoints(tmp_path, data):
    kept = Checkpoints(tmp_path)
    kept.save("search", {"epoch": 1, "weights": [torch.zeros(3)]})
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    bad = data.draw(damaged(content))
    path.write_bytes(bad)
    assert (kept.find("search") is not None) == (
        bad == content or (tmp_path / "checkpoint.previous.safetensors").exists()
    )
    kept.clear()


# --- run folders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with what `load`, `report` and the steps read."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    folder = RunFolder.create(path, CONFIG)
    model, example = transprune.resnet(20, classes=3, image_channels=1), torch.zeros(1, 1, 8, 8)
    space = transprune.inspect(model, example)
    architecture = space.smallest_architecture()
    described = {"name": "resnet20", "classes": 3, "input_size": [1, 8, 8]}
    folder.write_json("space.json", space.to_json())
    folder.write_json("architecture.json", {"format": 1, **architecture.to_json(), "model": described})
    folder.write_tensors("student.safetensors", transprune.shrink(model, architecture, example).state_dict())
    folder.write_text("journal.jsonl", '{"event": "epoch", "phase": "teacher", "epoch": 1, "loss": 2.0}\n')
    return path


def copied(finished, tmp_path):
    path = tmp_path / "copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(finished, path)
    return path


def spoil(file, data):
    """Changes a value of a JSON file, as if the change were meant, or bytes of any file."""
    content = file.read_bytes()
    if file.suffix == ".json" and data.draw(st.booleans()):
        file.write_text(json.dumps(data.draw(changed(without_checksum(content)))))
    else:
        file.write_bytes(data.draw(damaged(content)))


def without_checksum(content):
    value = json.loads(content)
    del value["sha256"]
    return value


@pytest.mark.parametrize("name", ["architecture.json", "space.json", "config.toml", "journal.jsonl"])
@given(data=st.data())
@settings(SHARED_FOLDER, max_examples=30)
def test_run_folders(finished, tmp_path, name, data):
    path = copied(finished, tmp_path)
    spoil(path / name, data)
    with only_ours:
        read_record(path)
    with only_ours, open_run(path, device="cpu") as run:
        assert run.space.groups


@pytest.mark.parametrize("name", ["architecture.json", "student.safetensors"])
@given(data=st.data())
@settings(SHARED_FOLDER, max_examples=12)
def test_students_of_run_folders(finished, tmp_path, name, data):
    path = copied(finished, tmp_path)
    spoil(path / name, data)
    with only_ours:
        transprune.load(path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"classes": 10**12},
        {"input_size": [1, 10**6, 10**6]},
        {"input_size": [10**9, 8, 8]},
        {"classes": 1e300},
        {"input_size": [1, -8, 8]},
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_before_anything_is_made(finished, tmp_path, sizes):
    path = copied(finished, tmp_path)
    described = without_checksum((path / "architecture.json").read_bytes())
    described["model"].update(sizes)
    (path / "architecture.json").write_text(json.dumps(described))
    with pytest.raises(TranspruneError, match="cannot rebuild the student"):
        transprune.load(path)


def test_a_width_that_would_fill_the_memory_is_refused_before_anything_is_made(finished, tmp_path):
    path = copied(finished, tmp_path)
    described = without_checksum((path / "architecture.json").read_bytes())
    described["widths"]["stem.conv"] = 10**12
    (path / "architecture.json").write_text(json.dumps(described))
    with pytest.raises(
        TranspruneError, match=r"the width of 'stem.conv' is 1000000000000, and no tensor is that large"
    ):
        transprune.load(path)


@pytest.mark.parametrize("named", ["architecture.json", "space.json"])
def test_a_depth_that_would_fill_the_memory_is_read_without_counting_to_it(finished, tmp_path, named):
    path = copied(finished, tmp_path)
    described = without_checksum((path / named).read_bytes())
    if named == "space.json":
        described["stages"][1]["depth"] = 10**12
    else:
        described["depths"]["stages.1"] = 10**12
    (path / named).write_text(json.dumps(described))
    with only_ours:
        read_record(path)
    with only_ours:
        transprune.load(path)
