"""A trained student from its run folder, without pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.errors import ModelError, RunFolderError
from transprune.networks.models import build_model, is_user_model
from transprune.networks.shrinking import shrink
from transprune.runtime import RunFolder


def load(run_dir: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """Rebuilds the trained student of a run, in evaluation mode on the CPU. Runs no code that the folder names.

    Args:
        run_dir: The run folder; `architecture.json` and `student.safetensors` are read.
        model: The unpruned network; untouched. It may be left out where the run's network is transprune's own, of
            torchvision or of timm; one that a function of the user builds (`FILE.py:FUNCTION`) must be given.

    Raises:
        RunFolderError: The folder holds no trained student, or a file is damaged or does not fit.
        ModelError: The model is not given, and cannot be built by its name.
    """
    folder = RunFolder(run_dir)
    folder.require("student.safetensors", made_by="distill")
    described = folder.read_json("architecture.json")
    architecture = Architecture.from_json(described)
    try:
        origin = described["model"]
        name, classes = str(origin["name"]), int(origin["classes"])
        channels, rows, columns = (int(size) for size in origin["input_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"cannot rebuild the student of '{folder.path}': architecture.json does not describe its model ({error}); "
            f"expected the file as `transprune search` wrote it"
        ) from error
    if model is None:
        model = _build(folder, name, classes, channels)
    student = shrink(model, architecture, torch.zeros(1, channels, rows, columns))
    try:
        student.load_state_dict(folder.read_tensors("student.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"cannot rebuild the student of '{folder.path}': student.safetensors does not fit architecture.json "
            f"({str(error).splitlines()[0]})"
        ) from error
    return student.eval()


def _build(folder: RunFolder, name: str, classes: int, channels: int) -> nn.Module:
    if is_user_model(name):
        raise ModelError(
            f"cannot rebuild the student of '{folder.path}': its network was built by {name!r}, and `load` runs no "
            f"code of a user; build the network ({classes} classes, {channels} image channels) and give it: "
            f"load({str(folder.path)!r}, model=...)"
        )
    return build_model(name, classes=classes, image_channels=channels)
