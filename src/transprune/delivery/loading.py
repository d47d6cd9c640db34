"""A trained student from its run folder, without pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.errors import RunFolderError
from transprune.networks.models import build_model
from transprune.networks.shrinking import shrink
from transprune.runtime import RunFolder


def load(run_dir: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """Rebuilds the trained student of a run, in evaluation mode on the CPU.

    Args:
        run_dir: The run folder; `architecture.json` and `student.safetensors` are read.
        model: The unpruned network, where it is not one that transprune can build by name; untouched.

    Raises:
        RunFolderError: The folder holds no trained student, or a file is damaged or does not fit.
    """
    folder = RunFolder(run_dir)
    folder.require("student.safetensors", made_by="distill")
    described = folder.read_json("architecture.json")
    architecture = Architecture.from_json(described)
    try:
        origin = described["model"]
        channels, rows, columns = (int(size) for size in origin["input_size"])
        if model is None:
            model = build_model(origin["name"], classes=int(origin["classes"]), image_channels=channels)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"cannot rebuild the student of '{folder.path}': architecture.json does not describe its model ({error}); "
            f"expected the file as `transprune search` wrote it"
        ) from error
    student = shrink(model, architecture, torch.zeros(1, channels, rows, columns))
    try:
        student.load_state_dict(folder.read_tensors("student.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"cannot rebuild the student of '{folder.path}': student.safetensors does not fit architecture.json "
            f"({str(error).splitlines()[0]})"
        ) from error
    return student.eval()
