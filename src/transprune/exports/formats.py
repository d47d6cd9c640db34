"""Exports a network as a program of `torch.export` (`.pt2`) and as ONNX, and checks files against the network."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError, first_line
from transprune.reading.networks import switched
from transprune.reading.trace import Example, Flat, rebatched, sample_axes, silent
from transprune.runtime.journal import quiet
from transprune.runtime.structures import as_inputs, as_numbers, called, copied, on_device, samples_in, tensors_in

_WHOLE = "; the network's weights are whole (those of a run lie in student.safetensors)"
"""What stays when a format cannot be written."""


def onnx_bytes(program: ExportedProgram, notes: Mapping[str, str] | None = None) -> bytes:
    """The ONNX file of an exported program, for the batch sizes that the program takes.

    Args:
        program: As `export_program` makes it. An input is called `images`; several are `input_0`, `input_1` and so on,
            and outputs likewise `logits`, or `output_0`, `output_1` and so on.
        notes: Texts that the file holds in its metadata, by name.

    Raises:
        ExportError: torch cannot export it to ONNX.
    """
    given, shapes = given_to(program), None
    if takes_any_batch(program):
        axes = tuple(
            {axis: "batch" for axis, size in enumerate(each.shape) if not isinstance(size, int)} for each in given
        )
        shapes = axes if len(given) == 1 and not _is_of_flat(program) else (axes,)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        path = Path(folder) / "network.onnx"
        try:
            exported = torch.onnx.export(
                program,
                (),
                input_names=_names("images", "input", len(given)),
                output_names=_names("logits", "output", len(program.graph_signature.user_outputs)),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
            assert exported is not None  # it is where dynamo is
            _forget_origin(exported.model.graph)
            exported.model.metadata_props.update(notes or {})
            exported.save(str(path), external_data=False)
        except Exception as error:  # the exporter raises many kinds
            raise ExportError(f"cannot export to ONNX: {_met_by_exporter(error)}{_WHOLE}") from error
        return path.read_bytes()


def _met_by_exporter(error: BaseException) -> str:
    """Where the exporter failed and on what, which it wraps in advice of its own."""
    met = [error]
    while met[-1].__cause__ is not None:
        met.append(met[-1].__cause__)
    place = first_line(met[:2][-1]).removesuffix(" See the stack trace for more information.")
    return place if len(met) <= 2 else f"{place} ({first_line(met[-1])})"


def _forget_origin(graph: Any) -> None:
    """Leaves out what the exporter notes of the graph and its nodes.

    That is the program that they come from, line by line, with paths of files on this machine. No runtime reads it,
    and in small networks it takes more than the weights do.
    """
    nodes = list(graph.all_nodes())
    values = (value for node in nodes for value in node.outputs)
    for each in (graph, *nodes, *values, *graph.inputs, *graph.initializers.values()):
        each.metadata_props.clear()


def quantised_onnx(onnx: bytes, batches: Iterable[Sequence[Tensor]]) -> bytes:
    """The ONNX file with weights and activations in 8 bits, for onnxruntime, OpenVINO and others that read QDQ nodes.

    Post-training static quantisation of onnxruntime: a scale for each output channel of weights, ranges of activations
    as they are on the samples, norms folded into their convolutions first.

    Args:
        onnx: The file, as `onnx_bytes` makes it.
        batches: Tensors of the inputs in order; some hundreds of samples in all.

    Raises:
        ExportError: onnxruntime cannot quantise it.
    """
    from onnx import load_from_string
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):
        def __init__(self, names: Sequence[str]) -> None:
            self.names, self.left = names, iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            tensors = next(self.left, None)
            if tensors is None:
                return None
            return {name: each.numpy() for name, each in zip(self.names, tensors, strict=True)}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet(""):
        warnings.simplefilter("ignore")
        before, prepared, after = (Path(folder) / f"{name}.onnx" for name in ("before", "prepared", "after"))
        before.write_bytes(onnx)
        try:
            names = [each.name for each in load_from_string(onnx).graph.input]
            quant_pre_process(str(before), str(prepared))
            quantize_static(
                str(prepared),
                str(after),
                Samples(names),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # its errors have no common base
            raise ExportError(f"cannot quantise the network in onnxruntime: {first_line(error)}") from error
        return after.read_bytes()


def _names(only: str, kind: str, count: int) -> list[str]:
    return [only] if count == 1 else [f"{kind}_{number}" for number in range(count)]


def _is_of_flat(program: ExportedProgram) -> bool:
    """Whether a program takes its tensors as one sequence."""
    return str(program.graph_signature.user_inputs[0]).startswith("tensors_")


def export_program(network: nn.Module, example: Example, *, any_batch: bool = True) -> ExportedProgram:
    """Exports a network in evaluation mode for any number of samples, or for one if its forward allows no other.

    A program from one tensor to another has the network's own interface. Where inputs or outputs are nested, it takes
    the tensors of the inputs one after another, in order, and gives those of the outputs.

    Args:
        network: Any network; untouched.
        example: Inputs of the size to export for, of any structure.
        any_batch: Whether the program may take any number of samples; else it takes one.

    Raises:
        ExportError: torch cannot export the network.
    """
    exported = switched(copied(network), training=False).cpu()
    inputs = on_device(as_inputs(example), "cpu")
    axes = sample_axes(exported, inputs)
    one = inputs if axes is None else rebatched(inputs, 1, axes)
    if axes is not None and any_batch:
        two = rebatched(inputs, 2, axes)  # torch.export treats a batch of one as fixed
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple(None if axis is None else {axis: batch} for axis in axes)
        try:
            return _exported(exported, two, shapes)
        except Exception:  # torch.export raises many kinds of error for a fixed batch, and does not tell it from others
            pass
    try:
        return _exported(exported, one, None)
    except Exception as error:
        raise ExportError(f"cannot export {type(network).__name__}: {first_line(error)}{_WHOLE}") from error


def _exported(network: nn.Module, inputs: Example, shapes: tuple[Any, ...] | None) -> ExportedProgram:
    tensors = tuple(tensors_in(inputs))
    with torch.no_grad():
        is_flat = isinstance(inputs, tuple) and len(inputs) == 1 and isinstance(called(network, inputs), Tensor)
    if not (is_flat and isinstance(inputs[0], Tensor)):
        network, shapes = Flat(network, inputs).eval(), None if shapes is None else (shapes,)
    with silent():
        return torch.export.export(network, tensors, dynamic_shapes=shapes, strict=False)


def takes_any_batch(program: ExportedProgram) -> bool:
    """Whether a program takes any number of samples; otherwise it takes one."""
    return any(not isinstance(size, int) for tensor in given_to(program) for size in tensor.shape)


def given_to(program: ExportedProgram) -> list[Tensor]:
    """The input tensors of a program, without values."""
    names = program.graph_signature.user_inputs
    return [node.meta["val"] for node in program.graph.nodes if node.name in names]


def pt2_bytes(program: ExportedProgram, notes: Mapping[str, str] | None = None) -> bytes:
    """The `.pt2` file of a program, which `torch.export.load` reads without the network's code.

    Args:
        program: The program.
        notes: Texts that the file holds beside it, by name: `torch.export.load(file, extra_files={name: ""})`.

    Raises:
        ExportError: torch cannot write it.
    """
    content = io.BytesIO()
    try:
        torch.export.save(program, content, extra_files=dict(notes or {}))
    except Exception as error:  # the writer does not know every operator
        raise ExportError(f"cannot write the exported program: {first_line(error)}{_WHOLE}") from error
    return content.getvalue()


def check_pt2(content: bytes, network: nn.Module, batches: Sequence[Example]) -> float:
    """Loads a `.pt2` file and compares it with the network.

    Args:
        content: The file.
        network: The network that was exported.
        batches: Inputs of the network, of several batch sizes if the program takes any.

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
        kind: The ending of the file, such as ".onnx".
        run: Runs the file on the tensors of inputs, in order.
        network: The network that was exported; untouched.
        batches: Inputs of the network, of several batch sizes.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The logits differ by more than rounding.
    """
    reference = switched(copied(network), training=False).cpu()
    largest = 0.0
    for inputs in (on_device(as_inputs(batch), "cpu") for batch in batches):
        with torch.no_grad():
            expected = [as_numbers(each) for each in tensors_in(called(reference, inputs))]
            found = [as_numbers(each) for each in tensors_in(run(*tensors_in(inputs)))]
        difference = _largest_difference(found, expected)
        if not difference <= TOLERANCE * max(1.0, *(float(each.abs().max()) for each in expected if each.numel())):
            raise ExportError(
                f"cannot trust the exported {kind} file: on a batch of {samples_in(inputs)} its logits differ from "
                f"torch's by {difference:.3g}; expected at most {TOLERANCE:g} of the largest logit"
            )
        largest = max(largest, difference)
    return largest


def _largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    pairs = zip(found, expected, strict=True)
    differences = [float((one - other).abs().max()) for one, other in pairs if one.numel()]
    return float(torch.tensor(differences or [0.0]).max())  # NaN stays NaN
