"""Trained weights come from files that may be damaged, foreign or hostile."""

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from small_networks import plain
from transprune.errors import ModelError, TranspruneError
from transprune.models.weights import load_weights


def trained() -> nn.Module:
    torch.manual_seed(1)
    network = plain()
    network(torch.randn(4, 3, 8, 8))
    return network


def assert_loads(path: Path, expected: dict[str, torch.Tensor]):
    model = plain()
    weights = load_weights(path, model)
    assert weights.tensors.keys() == expected.keys()
    assert all(torch.equal(weights.tensors[name], value) for name, value in expected.items())
    assert weights.is_whole
    assert not weights.misfit
    model.load_state_dict(weights.tensors)


def test_safetensors_are_read(tmp_path):
    weights = trained().state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", weights)


@pytest.mark.parametrize("suffix", ["pth", "pt"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_state_dict_of_torch_is_read_in_both_of_its_formats(tmp_path, suffix, is_zip):
    weights = trained().state_dict()
    torch.save(weights, tmp_path / f"w.{suffix}", _use_new_zipfile_serialization=is_zip)
    assert_loads(tmp_path / f"w.{suffix}", weights)


CONTAINERS = {
    "under any key": lambda weights: {"network": weights, "epoch": 3, "args": None},
    "deep below": lambda weights: {"ema": {"params": weights}},
    "beside an optimizer": lambda weights: {"net": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "in a tuple": lambda weights: (weights, {"lr": 0.1}),
    "in parts": lambda weights: {
        place: {name.partition(".")[2]: value for name, value in weights.items() if name.startswith(f"{place}.")}
        for place in dict.fromkeys(name.partition(".")[0] for name in weights)
    },
    "twice the same": lambda weights: {"model": weights, "ema": dict(weights)},
}


@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.th", "w.ckpt", "w.bin", "w.PTH", "w"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_state_dict_is_found_whatever_holds_it_and_whatever_the_file_is_called(tmp_path, container, name):
    weights = trained().state_dict()
    torch.save(CONTAINERS[container](weights), tmp_path / name)
    assert_loads(tmp_path / name, weights)


def test_safetensors_are_known_by_what_they_hold(tmp_path):
    weights = trained().state_dict()
    save_file(weights, tmp_path / "pytorch_model.bin")
    assert_loads(tmp_path / "pytorch_model.bin", weights)


def test_a_file_whose_name_is_no_text_is_read(tmp_path):
    weights = trained().state_dict()
    for name, write in ((b"\xff.pth", torch.save), (b"\xff.bin", lambda content, file: file.write(save(content)))):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        with path.open("wb") as file:
            write(weights, file)
        assert_loads(path, weights)


def test_of_several_networks_the_keys_are_named_and_a_key_behind_a_colon_chooses(tmp_path):
    one, other = trained().state_dict(), plain().state_dict()
    torch.save({"params": one, "averaged": {"ema": with_prefix(other, "module.")}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"2 parts of it fit the model, under params, averaged\.ema\.module; .*:av"):
        load_weights(tmp_path / "w.pth", plain())
    for key, expected in (("params", one), ("averaged.ema", other), ("averaged", other)):
        assert_loads(f"{tmp_path / 'w.pth'}:{key}", expected)
    with pytest.raises(ModelError, match="nothing under the key 'swa'; it has params, averaged"):
        load_weights(f"{tmp_path / 'w.pth'}:swa", plain())


def with_prefix(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.net.", "backbone."]
)
def test_any_prefix_is_taken_off(tmp_path, prefix):
    weights = trained().state_dict()
    torch.save({"state_dict": with_prefix(weights, prefix)}, tmp_path / "w.pth")
    save_file(with_prefix(weights, prefix), tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.pth", weights)
    assert_loads(tmp_path / "w.safetensors", weights)


@pytest.mark.parametrize("inside", ["module", "_orig_mod", "_fsdp_wrapped_module"])
def test_wrappers_of_parts_of_a_network_are_taken_off(tmp_path, inside):
    weights = trained().state_dict()
    wrapped = {f"0.{inside}.{name[2:]}" if name.startswith("0.") else name: weights[name] for name in weights}
    torch.save(wrapped, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", weights)


EXTRAS = {
    "n_averaged": torch.tensor(3),
    "total_ops": torch.zeros(1),
    "0.total_params": torch.zeros(1),
    "criterion.weight": torch.ones(5),
    "0.positions": torch.arange(3),
}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_no_part_of_the_network_is_left_out_and_listed(tmp_path, prefix):
    weights = trained().state_dict()
    torch.save({**with_prefix(weights, prefix), **EXTRAS}, tmp_path / "w.pth")
    found = load_weights(tmp_path / "w.pth", plain())
    assert found.is_whole
    assert not found.misfit
    assert found.given == len(weights)
    listed = {"criterion" if prefix and name.startswith("crit") else name for name in EXTRAS}
    assert {name.split(".")[0] for name in found.left_out} == {name.split(".")[0] for name in listed}
    assert "criterion" in found.beside


@pytest.mark.parametrize("extra", ["9.weight", "0.running_mean", "0.shortcut.weight"])
def test_more_layers_of_the_same_network_are_no_extras(tmp_path, extra):
    """A deeper network has all that a shallower one wants, and computes something else."""
    torch.save({**trained().state_dict(), extra: torch.zeros(4)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"1 unexpected: {extra}"):
        load_weights(tmp_path / "w.pth", plain())


class Wrapper(nn.Module):
    """A model whose own child is called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = plain()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_model_whose_own_names_begin_with_module_keeps_them(tmp_path, name):
    weights = Wrapper().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    assert load_weights(tmp_path / name, Wrapper()).tensors.keys() == weights.keys()


def test_the_model_is_untouched(tmp_path):
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    model = plain()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(tmp_path / "w.safetensors", model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_that_do_not_fit_are_refused_with_what_is_missing_unexpected_and_of_another_shape(tmp_path, name):
    weights = trained().state_dict()
    del weights["0.bias"]
    weights["9.weight"] = torch.zeros(2)
    weights["8.weight"] = torch.zeros(3, 6)
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    with pytest.raises(ModelError) as caught:
        load_weights(tmp_path / name, plain())
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: 9.weight" in message
    assert "1 of another shape or type: 8.weight has shape [3, 6], expected [5, 6]" in message
    assert "--weights-partial" in message


def test_weights_without_the_counts_of_norms_are_whole(tmp_path):
    """As torchvision's first files are."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network(torch.randn(2, 3, 8, 8))
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    found = load_weights(tmp_path / "old.pth", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert found.is_whole
    assert not found.misfit
    assert found.tensors["1.num_batches_tracked"] == 0
    assert (found.given, len(found.tensors)) == (6, 7), "counted as the file holds them"
    del state["1.running_mean"]
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(ModelError, match=r"2 missing: 1\.running_mean, 1\.num_batches_tracked"):
        load_weights(tmp_path / "old.pth", network)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_partial_weights_are_those_that_fit_and_the_rest_is_named(tmp_path, name):
    weights = trained().state_dict()
    changed = {**weights, "9.weight": torch.zeros(2), "8.weight": torch.zeros(3, 6)}
    del changed["0.bias"]
    (save_file if name.endswith("safetensors") else torch.save)(changed, tmp_path / name)
    found = load_weights(tmp_path / name, plain(), partial=True)
    assert found.tensors.keys() == weights.keys() - {"0.bias", "8.weight"}
    assert all(torch.equal(value, weights[key]) for key, value in found.tensors.items())
    assert (found.missing, found.unexpected) == (("0.bias",), ("9.weight",))
    assert found.reshaped == ("8.weight has shape [3, 6], expected [5, 6]",)
    assert not found.is_whole


def test_weights_with_something_more_than_the_model_has_are_whole(tmp_path):
    save_file({**trained().state_dict(), "9.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    found = load_weights(tmp_path / "w.safetensors", plain(), partial=True)
    assert found.is_whole
    assert found.misfit == "1 unexpected: 9.bias"


def test_weights_of_which_nothing_fits_are_refused_also_in_part(tmp_path):
    save_file({"other": torch.zeros(1), "0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="nothing in it fits the model"):
        load_weights(tmp_path / "w.safetensors", plain(), partial=True)


def test_only_the_first_few_names_are_listed(tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"10 missing: 0\.weight, 0\.bias, 3\.weight and 7 more; left out, .*: other;"):
        load_weights(tmp_path / "w.safetensors", plain())


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled_by_torch(content, path: Path) -> None:
    torch.save(content, path)


def pickled_by_torch_in_its_old_format(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled_plainly(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [pickled_by_torch, pickled_by_torch_in_its_old_format, pickled_plainly])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, write, name):
    mark = tmp_path / "ran"
    write({"state_dict": trained().state_dict(), "bomb": Bomb(mark)}, tmp_path / name)
    with pytest.raises(ModelError, match=r"cannot load weights from .* expected tensors only"):
        load_weights(tmp_path / name, plain())
    assert not mark.exists()


def test_objects_that_are_no_tensors_are_named_with_a_way_to_save_without_them(tmp_path):
    for number, is_zip in enumerate((True, False)):
        content = {"model": trained().state_dict(), "args": argparse.Namespace(lr=0.1)}
        torch.save(content, tmp_path / f"{number}.ckpt", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(ModelError, match=r"objects of argparse\.Namespace, whose code.*save the state dict"):
            load_weights(tmp_path / f"{number}.ckpt", plain())


def test_what_is_often_taken_for_weights_is_called_what_it_is(tmp_path):
    kinds = {
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS",
        b"<!DOCTYPE html>": "HTML",
        b"\x1f\x8b": "gzip",
        b"epoch 1\nloss ": "it is text, which begins 'epoch 1 loss",
        b"\x89PNG\r\n\x1a\n\0": "no file of torch or safetensors",
    }
    for begin, kind in kinds.items():
        (tmp_path / "w.pth").write_bytes(begin + b"0" * 80)
        with pytest.raises(ModelError, match=kind):
            load_weights(tmp_path / "w.pth", plain())
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("net/code/__torch__.py", "")
    with pytest.raises(ModelError, match=r"TorchScript archive \(save `torch.jit.load"):
        load_weights(tmp_path / "w.pt", plain())


def test_what_holds_itself_or_has_no_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transprune.models.weights.MOST_ENTRIES", 1000)
    content = {}
    content["again"] = content
    wide = [torch.zeros(1)]
    for _ in range(25):
        wide = [wide] * 10
    for each in (content, wide):
        torch.save(each, tmp_path / "w.pth")
        with pytest.raises(ModelError, match="entries, or holds itself"):
            load_weights(tmp_path / "w.pth", plain())


@pytest.mark.parametrize("write", [pickled_by_torch, pickled_by_torch_in_its_old_format])
def test_the_code_in_that_file_would_run_elsewhere(tmp_path, write):
    mark = tmp_path / "ran"
    write(Bomb(mark), tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(trained(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="expected tensors only"):
        load_weights(tmp_path / "w.pth", plain())


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(2), None])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="expected a state dict"):
        load_weights(tmp_path / "w.pth", plain())


def test_a_single_tensor_is_refused_as_one_without_a_name(tmp_path):
    torch.save(torch.zeros(4, 3), tmp_path / "one.pt")
    with pytest.raises(
        ModelError, match=r"there is a single tensor \[4, 3\] without a name in it; expected a state dict"
    ):
        load_weights(tmp_path / "one.pt", nn.Linear(3, 4))


def written(name: str) -> bytes:
    buffer = io.BytesIO()
    if name.endswith("safetensors"):
        return save(trained().state_dict())
    torch.save(trained().state_dict(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, name, share):
    content = written(name)
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ModelError, match="it is cut off or damaged: fetch or save it again" if share else "it is empty"
    ):
        load_weights(tmp_path / name, plain())


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_any_other_bytes_are_refused(tmp_path, name):
    for content in (b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04 no zip", b"{}", bytes(range(256))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="cannot load weights from"):
            load_weights(tmp_path / name, plain())


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("data.txt", "hello")
    with pytest.raises(ModelError, match="it is an archive, but none that torch wrote"):
        load_weights(tmp_path / "w.pth", plain())


@pytest.mark.parametrize(
    ("name", "problem"), [("missing.pth", "no such file"), ("", "a folder"), ("folder", "a folder")]
)
def test_a_missing_file_is_refused(tmp_path, name, problem):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=problem):
        load_weights(str(tmp_path / name), plain())


def test_the_refusals_are_also_value_errors(tmp_path):
    with pytest.raises(TranspruneError):
        load_weights(tmp_path / "missing.pth", plain())
    with pytest.raises(ValueError, match="there is no such file"):
        load_weights(tmp_path / "missing.pth", plain())


def test_a_tensor_that_bears_the_name_of_the_prefix_is_left_out(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    inside = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({**inside, "model": torch.zeros(1)}, tmp_path / "w.ckpt")
    found = load_weights(tmp_path / "w.ckpt", network)
    assert found.is_whole
    assert found.left_out == ("model",)


@pytest.mark.parametrize(("kind", "is_whole"), [(torch.float16, True), (torch.float64, True), (torch.bfloat16, False)])
def test_counts_that_were_cast_with_all_weights_are_counts(tmp_path, kind, is_whole):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    network[1].num_batches_tracked += 7
    state = {name: value.to(kind) for name, value in network.state_dict().items()}
    if not is_whole:
        state["1.num_batches_tracked"] += 0.5
    torch.save(state, tmp_path / "w.pth")
    found = load_weights(tmp_path / "w.pth", network, partial=True)
    assert found.is_whole == is_whole
    if is_whole:
        assert found.tensors["1.num_batches_tracked"].dtype == torch.int64
        assert found.tensors["1.num_batches_tracked"] == 7


def test_weights_without_values_are_refused(tmp_path):
    network = torch.nn.Linear(2, 2)
    torch.save({name: value.to("meta") for name, value in network.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="has no values"):
        load_weights(tmp_path / "w.pth", network)


@pytest.mark.parametrize(
    ("name", "value"), [("1.running_var", torch.nan), ("1.running_mean", -torch.inf), ("0.weight", 1e300)]
)
def test_numbers_that_are_not_finite_in_the_network_are_refused(tmp_path, name, value):
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    torch.save({**state, name: torch.full(state[name].shape, value, dtype=torch.float64)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=f"not finite are in {name}"):
        load_weights(tmp_path / "w.pth", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), partial=True)


def test_floats_of_one_byte_are_refused_since_their_scales_lie_elsewhere(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({**state, "weight": state["weight"].to(torch.float8_e4m3fn)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"weight has type torch.float8_e4m3fn, expected torch.float32"):
        load_weights(tmp_path / "w.pth", nn.Linear(2, 2))
