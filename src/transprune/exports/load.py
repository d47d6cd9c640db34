"""Loads a trained student from its run folder, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.errors import ModelError, RunFolderError, newer_format
from transprune.models.by_name import build_model, is_user_model
from transprune.models.hugging_face import is_hugging_face
from transprune.reading.networks import switched
from transprune.reading.reading import Reading
from transprune.reading.trace import Example
from transprune.runtime import RunFolder
from transprune.runtime.structures import Hole, filled, leaves_in, of_plan
from transprune.shrinking.shrink import shrink


def load(
    run_dir: str | Path,
    *,
    model: nn.Module | None = None,
    reading: Reading | None = None,
    example: Example | None = None,
) -> nn.Module:
    """Rebuilds the trained student of a run, in evaluation mode on the CPU, without running code that the folder names.

    How images become its input (size, mean and standard deviation) is `preprocessing` in `architecture.json`.

    Args:
        run_dir: The run folder, of which `architecture.json` and `student.safetensors` are read.
        model: The unpruned network; untouched. Needed only for networks built by a user's function
            (`FILE.py:FUNCTION`); those of transprune, torchvision, timm and transformers are built by name.
        reading: The reading of the unpruned network, if there is one already.
        example: Inputs of the unpruned network, of any structure; None: tensors of the sizes that the run had, nested
            as they were. Inputs in a class of your own must be given.

    Raises:
        RunFolderError: The folder has no trained student, or a file is damaged or does not fit.
        ModelError: No model is given and none can be built by name, or the given model does not fit.
    """
    folder = RunFolder(run_dir)
    folder.require("student.safetensors", made_by="distill")
    described, tensors = folder.read_json("architecture.json"), folder.read_tensors("student.safetensors")
    architecture = Architecture.from_json(described)
    origin = _origin(folder, described)
    held = sum(tensor.numel() for tensor in tensors.values())
    if origin.classes > held or any(math.prod(shape) > LARGEST_IMAGE for shape, _ in origin.inputs):
        raise _misfit(folder, f"{origin} is too much for its {held} numbers")
    unpruned = _build(folder, origin) if model is None else model
    largest = max((size for tensor in (*tensors.values(), *unpruned.parameters()) for size in tensor.shape), default=1)
    for group, width in architecture.widths.items():
        if width > largest:
            raise _misfit(folder, f"the width of {group!r} is {width}, and no tensor is that large")
    student = shrink(unpruned, architecture, _example(folder, origin) if example is None else example, reading=reading)
    difference = _difference(student.state_dict(), tensors)
    if difference and model is not None:
        raise ModelError(
            f"cannot rebuild the student of '{folder.path}': the model that was given does not fit its "
            f"student.safetensors ({difference}); give the unpruned network that the run began with, for {origin}"
        )
    if difference:
        raise _misfit(folder, difference)
    student.load_state_dict(tensors)
    return switched(student, training=False)


def _example(folder: RunFolder, origin: _Origin) -> Example:
    """Inputs like those that the run had.

    Raises:
        ModelError: They were nested in a class, which the folder cannot name.
    """
    if origin.structure is None:
        raise ModelError(
            f"cannot rebuild the student of '{folder.path}' without inputs: those of its run were objects of a class, "
            f"which the folder cannot hold; give inputs like them: load({str(folder.path)!r}, model=..., example=...)"
        )
    return filled(origin.structure, [torch.zeros(shape, dtype=dtype) for shape, dtype in origin.inputs])


LARGEST_IMAGE = 2**26
"""Largest number of values in an example image, so that a damaged description cannot fill the memory."""


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The network that a student was cut from, as `architecture.json` describes it."""

    name: str
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    """Shape [1, ...] and type of each."""
    structure: Any
    """How the inputs are nested, with holes in their place; None if that is not known."""
    classes: int = 0
    """0: it is no classifier of images."""

    def __str__(self) -> str:
        if self.classes:
            return f"{self.classes} classes, {self.inputs[0][0][1]} image channels"
        return " and ".join(f"{dtype} {list(shape)}" for shape, dtype in self.inputs)


def _origin(folder: RunFolder, described: Any) -> _Origin:
    """What a student was cut from.

    Raises:
        RunFolderError: The description lacks it, or a newer version wrote it.
    """
    found = described.get("format", 1)
    if found != 1:
        raise RunFolderError(f"cannot read '{folder.file('architecture.json')}': {newer_format(found, 1)}")
    try:
        origin = described["model"]
        if "inputs" in origin:
            inputs = tuple((tuple(map(int, each["shape"])), _dtype(each["dtype"])) for each in origin["inputs"])
            if not inputs or min(min(shape, default=1) for shape, _ in inputs) < 1:
                raise ValueError(f"inputs {origin['inputs']} have no sizes")
            plan = origin.get("structure", {"tuple": [{"tensor": True}] * len(inputs)})
            structure = None if plan is None else of_plan(plan)
            if structure is not None and len(list(leaves_in(structure))) != len(inputs):
                raise ValueError(f"{plan} has not as many tensors as there are inputs")
            return _Origin(name=str(origin["name"]), inputs=inputs, structure=structure)
        classes = int(origin["classes"])
        channels, rows, columns = (int(size) for size in origin["input_size"])
        if min(classes, channels, rows, columns) < 1:
            raise ValueError(f"classes {classes} and input_size {channels, rows, columns} are no sizes")
        shape = (1, channels, rows, columns)
        return _Origin(
            name=str(origin["name"]), inputs=((shape, torch.float32),), structure=(Hole(0),), classes=classes
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RunFolderError(
            f"cannot rebuild the student of '{folder.path}': architecture.json does not describe its model ({error}); "
            f"expected the file as `transprune search` wrote it"
        ) from error


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no type of numbers")
    return found


def _difference(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """Describes the first difference between the tensors of a network and those of a file; empty if there is none."""
    for name, tensor in network.items():
        if name not in file:
            return f"the model has a tensor {name!r}, the file has none"
        if tensor.shape != file[name].shape:
            return f"{name!r} is {list(file[name].shape)} in the file, {list(tensor.shape)} in the model"
    extra = next((name for name in file if name not in network), None)
    return "" if extra is None else f"the file has a tensor {extra!r}, the model has none"


def _misfit(folder: RunFolder, problem: str) -> RunFolderError:
    return RunFolderError(
        f"cannot rebuild the student of '{folder.path}': student.safetensors does not fit architecture.json "
        f"({problem}); expected both as one run wrote them"
    )


def _build(folder: RunFolder, origin: _Origin) -> nn.Module:
    if is_hugging_face(origin.name):
        channels = origin.inputs[0][0][1] if origin.classes else None
        return build_model(origin.name, classes=origin.classes or None, image_channels=channels)
    if is_user_model(origin.name) or not origin.classes:
        made = "made in Python" if origin.name.startswith("python:") else f"built by {origin.name!r}"
        raise ModelError(
            f"cannot rebuild the student of '{folder.path}': its network was {made}, and `load` runs no code of a "
            f"user; build the network (for {origin}) and give it: load({str(folder.path)!r}, model=...)"
        )
    return build_model(origin.name, classes=origin.classes, image_channels=origin.inputs[0][0][1])
