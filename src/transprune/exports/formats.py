"""Exports a network as a program of `torch.export` (`.pt2`) and as an ONNX file, both checked against torch."""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError
from transprune.reading.trace import first_line
from transprune.runtime.journal import quiet


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The ONNX file of an exported program, for the batch sizes that the program takes.

    Args:
        program: Maps images [batch, channels, rows, columns] to logits [batch, classes].

    Raises:
        ExportError: torch cannot export it to ONNX.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        path = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},) if takes_any_batch(program) else None,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            raise ExportError(
                f"cannot export to ONNX: {first_line(error)}; the weights in student.safetensors are whole"
            ) from error
        return path.read_bytes()


def check_onnx(content: bytes, network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Runs an ONNX file with onnxruntime and compares it with the network.

    Args:
        content: The file.
        network: The network that was exported.
        batches: Images [batch, channels, rows, columns], of several batch sizes if the file takes any.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The file cannot be run, or its logits differ by more than rounding.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base in its public API
        raise ExportError(f"cannot run the exported ONNX file: {first_line(error)}") from error

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return check_agreement("ONNX", run, network, batches)


def export_program(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Exports a network in evaluation mode for any batch size, or for one image if its forward allows no other.

    Args:
        network: Maps images [batch, channels, rows, columns] to logits [batch, classes]; untouched.
        example: Images of the size to export for.

    Raises:
        ExportError: torch cannot export the network.
    """
    exported = copy.deepcopy(network).eval().cpu()
    one = example[:1].cpu()
    two = torch.cat([one, one])  # torch.export treats a batch of one as fixed
    try:
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(exported, (two,), dynamic_shapes=({0: batch},), strict=False)
    except Exception:  # torch.export raises many kinds of error for a fixed batch, and does not tell it from others
        pass
    try:
        return torch.export.export(exported, (one,), strict=False)
    except Exception as error:
        raise ExportError(
            f"cannot export {type(network).__name__}: {first_line(error)}; the weights in student.safetensors are whole"
        ) from error


def takes_any_batch(program: ExportedProgram) -> bool:
    """Whether a program takes any batch size; otherwise it takes one image."""
    name = program.graph_signature.user_inputs[0]
    images = next(node for node in program.graph.nodes if node.name == name)
    return not isinstance(images.meta["val"].shape[0], int)


def pt2_bytes(program: ExportedProgram) -> bytes:
    """The `.pt2` file of a program, which `torch.export.load` reads without the network's code.

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
        network: The network that was exported.
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


TOLERANCE = 1e-3
"""Largest difference of a logit that counts as rounding, relative to the largest logit (at least 1)."""


def check_agreement(kind: str, run: Callable[[Tensor], Tensor], network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Compares an exported file with the network.

    Args:
        kind: The kind of file for messages, such as "ONNX".
        run: Runs the file on images [batch, channels, rows, columns].
        network: The network that was exported; untouched.
        batches: Images, of several batch sizes.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The logits differ by more than rounding.
    """
    reference = copy.deepcopy(network).eval().cpu()
    largest = 0.0
    for images in (batch.cpu() for batch in batches):
        with torch.no_grad():
            expected, found = reference(images), run(images)
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"cannot trust the exported {kind} file: on a batch of {len(images)} its logits differ from torch's by "
                f"{difference:.3g}; expected at most {TOLERANCE:g} of the largest logit"
            )
        largest = max(largest, difference)
    return largest
