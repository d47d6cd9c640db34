"""A network as an ONNX file, checked against torch."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError
from transprune.exports.agreement import check_agreement
from transprune.exports.exported_program import takes_any_batch
from transprune.reading.trace import first_line
from transprune.runtime.journal import quiet


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The ONNX file of an exported program, for the batches that the program takes.

    Args:
        program: From images [batch, channels, rows, columns] to logits [batch, classes].

    Raises:
        ExportError: torch cannot write it as ONNX.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter speaks of its own internals
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
        network: What it was exported from.
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
