"""Exports a network as a program of `torch.export` (`.pt2`) and as an ONNX file, both checked against torch."""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError
from transprune.reading.trace import Example, as_inputs, first_line
from transprune.runtime.files import write_atomically
from transprune.runtime.journal import quiet
from transprune.runtime.structures import tensors_in


def export(network: nn.Module, example: Example, path: str | Path) -> Path:
    """Writes a network to a file that runs without its code, and compares the file with torch.

    Args:
        network: The network, in evaluation mode in the file; untouched.
        example: A batch of inputs, or a tuple of the forward's positional arguments. The file takes any number of
            samples, where the forward does.
        path: Where to: `NAME.onnx` for ONNX, `NAME.pt2` for a program that `torch.export.load` reads.

    Raises:
        ExportError: The name ends otherwise, torch cannot export the network, or the file gives something else.
        RunFolderError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ExportError(f"cannot export to '{path}': expected a name that ends in .onnx or .pt2")
    program = export_program(network, example)
    inputs = tuple(each.detach().cpu() for each in as_inputs(example))
    batch: Example = inputs if takes_any_batch(program) else tuple(each[:1] for each in inputs)
    if path.suffix == ".onnx":
        content = onnx_bytes(program)
        check_onnx(content, network, [batch])
    else:
        content = pt2_bytes(program)
        check_pt2(content, network, [batch])
    write_atomically(path, content)
    return path


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The ONNX file of an exported program, for the batch sizes that the program takes.

    Args:
        program: What `export_program` made.

    Raises:
        ExportError: torch cannot export it to ONNX.
    """
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        path = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=["images"] if len(inputs) == 1 else [f"input_{place}" for place in range(len(inputs))],
                output_names=["logits"] if len(outputs) == 1 else None,
                dynamic_shapes=({0: "batch"},) * len(inputs) if takes_any_batch(program) else None,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            raise ExportError(
                f"cannot export to ONNX: {first_line(error)}; the weights in student.safetensors are whole"
            ) from error
        return path.read_bytes()


def check_onnx(content: bytes, network: nn.Module, batches: Sequence[Example]) -> float:
    """Runs an ONNX file with onnxruntime and compares it with the network.

    Args:
        content: The file.
        network: The network that was exported.
        batches: Inputs of the network, in several batch sizes if the file takes any.

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

    def run(*inputs: Tensor) -> list[Tensor]:
        named = zip((each.name for each in session.get_inputs()), inputs, strict=True)
        return [torch.from_numpy(found) for found in session.run(None, {name: one.numpy() for name, one in named})]

    return check_agreement("ONNX", run, network, batches)


def export_program(network: nn.Module, example: Example) -> ExportedProgram:
    """Exports a network in evaluation mode for any batch size, or for one sample if its forward allows no other.

    Args:
        network: The network; untouched.
        example: A batch of inputs of the size to export for, or a tuple of the forward's positional arguments.

    Raises:
        ExportError: torch cannot export the network.
    """
    exported = copy.deepcopy(network).eval().cpu()
    one = tuple(each[:1].cpu() for each in as_inputs(example))
    two = tuple(torch.cat([each, each]) for each in one)  # torch.export treats a batch of one as fixed
    try:
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(exported, two, dynamic_shapes=({0: batch},) * len(two), strict=False)
    except Exception:  # torch.export raises many kinds of error for a fixed batch, and does not tell it from others
        pass
    try:
        return torch.export.export(exported, one, strict=False)
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


def check_pt2(content: bytes, network: nn.Module, batches: Sequence[Example]) -> float:
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


def check_agreement(kind: str, run: Callable[..., Any], network: nn.Module, batches: Sequence[Example]) -> float:
    """Compares an exported file with the network.

    Args:
        kind: The kind of file for messages, such as "ONNX".
        run: Runs the file on the inputs of a batch.
        network: The network that was exported; untouched.
        batches: Inputs, in several batch sizes.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The logits differ by more than rounding.
    """
    reference = copy.deepcopy(network).eval().cpu()
    largest = 0.0
    for batch in batches:
        inputs = tuple(each.cpu() for each in as_inputs(batch))
        with torch.no_grad():
            expected, found = list(tensors_in(reference(*inputs))), list(tensors_in(run(*inputs)))
        is_same_shape = [each.shape for each in expected] == [each.shape for each in found]
        pairs = list(zip(expected, found, strict=True)) if is_same_shape else []
        apart = [(one - other).abs().max().double() for one, other in pairs]
        difference = float(torch.stack(apart).max()) if apart else float("inf")
        if not difference <= TOLERANCE * max(1.0, *(float(each.abs().max()) for each in expected)):
            raise ExportError(
                f"cannot trust the exported {kind} file: on a batch of {len(inputs[0])} its logits differ from torch's "
                f"by {difference:.3g}; expected at most {TOLERANCE:g} of the largest logit"
            )
        largest = max(largest, difference)
    return largest
