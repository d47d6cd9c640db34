"""Loads trained weights from a file, without running any code in it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from transprune.errors import ModelError
from transprune.models.resnet import ResNet, is_torchvision_resnet, pooled_shortcuts, renamed

WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "state_dict_ema")
"""Keys under which checkpoints hold a state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of names that wrappers for data parallelism, compilation and training loops add."""

COUNT = "num_batches_tracked"
"""The buffer in which a batch norm counts batches."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights in a file that fit a model, and what does not fit."""

    tensors: dict[str, Tensor]
    """Tensors that fit the model in name, shape and type."""
    missing: tuple[str, ...] = ()
    """Names in the model but not in the file."""
    unexpected: tuple[str, ...] = ()
    """Names in the file but not in the model."""
    reshaped: tuple[str, ...] = ()
    """Names whose shape or type differs, with both; all floating-point types fit each other."""
    misplaced: tuple[str, ...] = ()
    """Names of layers that compute something else here than where they were trained."""

    @property
    def is_whole(self) -> bool:
        """Whether the model gets all of its weights."""
        return not self.missing and not self.reshaped and not self.misplaced

    @property
    def misfit(self) -> str:
        """Says what does not fit, with the first few names; empty if everything fits."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or type", self.reshaped),
            ("trained with a stride where this network pools (its -strided twin does not)", self.misplaced),
        )
        return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds if names)


def load_weights(path: str | Path, model: nn.Module, *, partial: bool = False) -> Weights:
    """Reads the weights of a model from `.safetensors`, or from `.pth`/`.pt` as tensors only.

    Args:
        path: The file: a state dict, or an object with one under a key of `WRAPPERS`.
        model: The model that the weights are for; untouched.
        partial: Return the weights that fit and the names of the others; otherwise, any misfit is an error.

    Raises:
        ModelError: The file is missing, of another kind or damaged, holds more than tensors, or does not fit the model.
    """
    file = Path(path)
    weights = _fit(_read_whole(file), model)
    learned = {name for name, _ in model.named_parameters()}  # a buffer may hold a mask of infinities
    spoilt = tuple(name for name, value in weights.tensors.items() if name in learned and not value.isfinite().all())
    if spoilt:
        raise ModelError(
            f"cannot use the weights in '{file}': numbers that are not finite are in {_first(spoilt)}; expected those "
            "of a network that was trained to its end"
        )
    if not weights.tensors:
        raise ModelError(f"cannot load weights from '{file}': nothing in it fits the model; {weights.misfit}")
    if weights.misfit and not partial:
        raise ModelError(
            f"cannot load weights from '{file}': they do not fit the model; {weights.misfit}; "
            f"to take what fits, use --weights-partial"
        )
    return weights


PROBE = 7919
"""A number of classes that no axis of a network has by coincidence."""


def classes_in(path: str | Path, build: Callable[[int], nn.Module]) -> int | None:
    """The number of classes of the weights in a file; None if they do not fit, or `build` ignores the classes.

    Args:
        path: As in `load_weights`.
        build: Builds the network for a number of classes.

    Raises:
        ModelError: The file is missing, of another kind or damaged, or holds more than tensors.
    """
    probe = build(PROBE)
    found, _ = _named(_read_whole(Path(path)), probe)
    outputs = [name for name, tensor in probe.state_dict().items() if tensor.shape[:1] == (PROBE,) and name in found]
    counts = {found[name].shape[0] for name in outputs if found[name].dim()}
    return counts.pop() if len(counts) == 1 else None


def _read_whole(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file.

    Raises:
        ModelError: It cannot be read.
    """
    if not os.path.isfile(file):
        raise ModelError(f"cannot load weights: there is no file '{file}'")
    try:
        return _read(file)
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise anything in a reader
        raise ModelError(
            f"cannot load weights from '{file}': {_problem(error)}; expected tensors only, as "
            "`safetensors.torch.save_file` or `torch.save(model.state_dict(), file)` writes them"
        ) from error


def _problem(error: Exception) -> str:
    """Says what is wrong with a file, from the error of its reader."""
    if "Weights only load failed" in str(error):  # torch's own message explains how to run the code anyway
        return "it holds more than tensors, or is no file of torch"
    return f"{type(error).__name__}: {(str(error) or 'the file ends too soon').splitlines()[0]}"


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    if file.suffix not in (".pth", ".pt", ".th"):
        raise ModelError(f"cannot load weights from '{file}': expected a file ending in .safetensors, .pth or .pt")
    _check_stored(file)
    content = torch.load(file, map_location="cpu", weights_only=True)
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"cannot load weights from '{file}': expected a state dict, a map from names to tensors")
    return {str(name): value for name, value in content.items()}


def _check_stored(file: Path) -> None:
    """Checks that an archive is not compressed: torch never compresses, and a bomb could fill the memory.

    Raises:
        ValueError: Parts of it are compressed.
    """
    if zipfile.is_zipfile(file):  # files from before torch 1.6 are not archives
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is a compressed archive")


def _fit(found: dict[str, Tensor], model: nn.Module) -> Weights:
    found, misplaced = _named(found, model)
    expected = model.state_dict()
    known = [name for name in expected if name in found]
    misfits = {name: _misfit(found[name], expected[name]) for name in known}
    return Weights(
        tensors={name: found[name] for name in known if not misfits[name]},
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        reshaped=tuple(f"{name} {misfit}" for name, misfit in misfits.items() if misfit),
        misplaced=misplaced,
    )


def _named(found: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights under the model's names for them, and the names of misplaced ones."""
    expected = model.state_dict()
    found = _without_prefixes(found, expected)
    misplaced: tuple[str, ...] = ()
    if isinstance(model, ResNet) and is_torchvision_resnet(found):
        misplaced = pooled_shortcuts(model)
        found = renamed(found, halved_by="pool" if misplaced else "stride")
    return _with_counts(found, expected), misplaced


def _with_counts(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the model's own batch counts where a file has only the statistics of a norm.

    Files from before torch 0.4.1 have no counts, among them many of torchvision's; torch fills them in likewise.
    """
    counts = {
        name: value.clone()
        for name, value in expected.items()
        if name.endswith(COUNT) and f"{name.removesuffix(COUNT)}running_mean" in found
    }
    return {**counts, **found}


def _misfit(found: Tensor, expected: Tensor) -> str:
    """Says why a tensor cannot replace another; empty if it can."""
    if found.shape != expected.shape:
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    if found.dtype != expected.dtype and not (found.is_floating_point() and expected.is_floating_point()):
        return f"has type {found.dtype}, expected {expected.dtype}"
    if found.layout != torch.strided:
        return f"is {found.layout}, expected {torch.strided}"
    return ""


def _without_prefixes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes of wrappers, unless some name already fits."""
    for prefix in PREFIXES:
        if any(name in expected for name in found):
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
