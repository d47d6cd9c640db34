"""Trained weights come from files that may be damaged, foreign or hostile."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state", "model_state_dict", "state_dict_ema"])
def test_a_state_dict_inside_a_checkpoint_is_read(tmp_path, key):
    weights = trained().state_dict()
    torch.save({key: weights, "epoch": 3, "args": None}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", weights)


def test_of_plain_and_averaged_weights_the_plain_ones_are_read(tmp_path):
    weights = trained().state_dict()
    torch.save({"state_dict_ema": plain().state_dict(), "state_dict": weights}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", weights)


def with_prefix(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_the_prefix_of_a_wrapper_is_taken_off(tmp_path, prefix):
    weights = trained().state_dict()
    torch.save({"state_dict": with_prefix(weights, prefix)}, tmp_path / "w.pth")
    save_file(with_prefix(weights, prefix), tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.pth", weights)
    assert_loads(tmp_path / "w.safetensors", weights)


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
    save_file({**trained().state_dict(), "head.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    found = load_weights(tmp_path / "w.safetensors", plain(), partial=True)
    assert found.is_whole
    assert found.misfit == "1 unexpected: head.bias"


def test_weights_of_which_nothing_fits_are_refused_also_in_part(tmp_path):
    save_file({"other": torch.zeros(1), "0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="nothing in it fits the model"):
        load_weights(tmp_path / "w.safetensors", plain(), partial=True)


def test_only_the_first_few_names_are_listed(tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"10 missing: 0\.weight, 0\.bias, 3\.weight and 7 more; 1 unexpected: other$"):
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


def written(name: str) -> bytes:
    buffer = io.BytesIO()
    if name.endswith("safetensors"):
        from safetensors.torch import save

        return save(trained().state_dict())
    torch.save(trained().state_dict(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, name, share):
    content = written(name)
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="cannot load weights from"):
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
    with pytest.raises(ModelError, match="cannot load weights from"):
        load_weights(tmp_path / "w.pth", plain())


@pytest.mark.parametrize("name", ["w.onnx", "w.bin", "w"])
def test_a_file_of_another_kind_is_refused_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_bytes(written("w.pth"))
    with pytest.raises(ModelError, match=r"expected a file ending in \.safetensors, \.pth or \.pt"):
        load_weights(tmp_path / name, plain())


@pytest.mark.parametrize("name", ["missing.pth", "", "folder"])
def test_a_missing_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"there is no file '.*'"):
        load_weights(str(tmp_path / name), plain())


def test_the_refusals_are_also_value_errors(tmp_path):
    with pytest.raises(TranspruneError):
        load_weights(tmp_path / "missing.pth", plain())
    with pytest.raises(ValueError, match="there is no file"):
        load_weights(tmp_path / "missing.pth", plain())
