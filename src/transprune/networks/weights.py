"""Trained weights from a file; never runs code that the file holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from transprune.errors import ModelError


def load_weights(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads the weights of a model from `.safetensors`, or from `.pth`/`.pt` as tensors only.

    Args:
        path: The file: a state dict, or an object with one under `state_dict` or `model`.
        model: What the weights are for; untouched.

    Raises:
        ModelError: The file is missing, of another kind, damaged, holds more than tensors, or does not fit the model.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"cannot load weights: there is no file '{file}'")
    try:
        weights = _read(file)
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise anything in a reader
        problem = (str(error) or "the file ends too soon").splitlines()[0]
        raise ModelError(
            f"cannot load weights from '{file}': {type(error).__name__}: {problem}; "
            f"expected tensors only, as `safetensors.torch.save_file` or `torch.save(model.state_dict())` writes them"
        ) from error
    expected = model.state_dict()
    if not any(name in expected for name in weights):
        # Written from a data-parallel wrapper.
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    _check_fit(file, weights, expected)
    return weights


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    if file.suffix not in (".pth", ".pt"):
        raise ModelError(f"cannot load weights from '{file}': expected a file ending in .safetensors, .pth or .pt")
    content = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"cannot load weights from '{file}': expected a state dict, a map from names to tensors")
    return {str(name): value for name, value in content.items()}


def _check_fit(file: Path, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} has shape {list(weights[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in (("missing:", missing), ("unexpected:", unexpected), ("of another shape:", shapes))
        if names
    ]
    if problems:
        raise ModelError(f"cannot load weights from '{file}': they do not fit the model; {'; '.join(problems)}")
