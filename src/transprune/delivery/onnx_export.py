"""A network as an ONNX file, checked against torch."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from transprune.errors import ExportError

TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding, as a share of the largest logit (at least 1)."""


def onnx_bytes(network: nn.Module, example: Tensor) -> bytes:
    """The ONNX file of a network in evaluation mode, for batches of any size.

    Args:
        network: From images [batch, channels, rows, columns] to logits [batch, classes]; untouched.
        example: Images of the size that the file is for.

    Raises:
        ExportError: torch cannot export the network.
    """
    exported = copy.deepcopy(network).eval().cpu()
    batch = torch.export.Dim("batch", min=1)
    images = example.cpu().expand(2, *example.shape[1:]).contiguous()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter speaks of its own internals
        path = Path(folder) / "network.onnx"
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                exported,
                (images,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            raise ExportError(
                f"cannot export {type(network).__name__} to ONNX: {type(error).__name__}: {error}; "
                f"the weights in student.safetensors are whole"
            ) from error
        finally:
            quiet.setLevel(level)
        return path.read_bytes()


def check_onnx(content: bytes, network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Runs an ONNX file with onnxruntime and compares it with the network.

    Args:
        content: The file.
        network: What it was exported from.
        batches: Images [batch, channels, rows, columns], of several batch sizes.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The file cannot be run, or its logits differ by more than rounding.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base in its public API
        raise ExportError(f"cannot run the exported ONNX file: {type(error).__name__}: {error}") from error
    reference = copy.deepcopy(network).eval().cpu()
    largest = 0.0
    for images in (batch.cpu() for batch in batches):
        with torch.no_grad():
            expected = reference(images)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"cannot trust the exported ONNX file: on a batch of {len(images)} its logits differ from torch's by "
                f"{difference:.3g}; expected at most {TOLERANCE:g} of the largest logit"
            )
        largest = max(largest, difference)
    return largest
