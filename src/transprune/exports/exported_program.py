"""A network as an exported program of torch: the `.pt2` file, and what the ONNX file is made from."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError
from transprune.exports.agreement import check_agreement
from transprune.reading.trace import first_line


def export_program(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Exports a network in evaluation mode for batches of any size; where its forward does not allow it, for one image.

    Args:
        network: From images [batch, channels, rows, columns] to logits [batch, classes]; untouched.
        example: Images of the size that the program is for.

    Raises:
        ExportError: torch cannot export the network.
    """
    exported = copy.deepcopy(network).eval().cpu()
    one = example[:1].cpu()
    two = torch.cat([one, one])  # a batch of one would be taken for fixed
    try:
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(exported, (two,), dynamic_shapes=({0: batch},), strict=False)
    except Exception:  # torch.export raises many kinds, for a fixed batch and for other reasons
        pass
    try:
        return torch.export.export(exported, (one,), strict=False)
    except Exception as error:
        raise ExportError(
            f"cannot export {type(network).__name__}: {first_line(error)}; the weights in student.safetensors are whole"
        ) from error


def takes_any_batch(program: ExportedProgram) -> bool:
    """Whether a program takes batches of any size; otherwise it takes one image."""
    name = program.graph_signature.user_inputs[0]
    images = next(node for node in program.graph.nodes if node.name == name)
    return not isinstance(images.meta["val"].shape[0], int)


def pt2_bytes(program: ExportedProgram) -> bytes:
    """The `.pt2` file of a program: `torch.export.load` reads it, without any code of the network.

    Raises:
        ExportError: torch cannot write it.
    """
    content = io.BytesIO()
    try:
        torch.export.save(program, content)
    except Exception as error:  # the writer does not know every operator
        raise ExportError(
            f"cannot write the exported program: {first_line(error)}; the weights in student.safetensors are whole"
        ) from error
    return content.getvalue()


def check_pt2(content: bytes, network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Loads a `.pt2` file and compares it with the network.

    Args:
        content: The file.
        network: What it was exported from.
        batches: Images [batch, channels, rows, columns], of several batch sizes if the program takes any.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The file cannot be loaded, or its logits differ by more than rounding.
    """
    try:
        loaded = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # a damaged file may raise anything in the reader
        raise ExportError(f"cannot load the exported .pt2 file: {first_line(error)}") from error
    return check_agreement(".pt2", loaded, network, batches)
