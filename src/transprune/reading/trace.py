"""Traces a model: its forward as a graph of operators, with the modules and source lines of each."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property, reduce
from inspect import Signature
from itertools import islice, product
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from transprune.errors import DataError, ModelError, first_line
from transprune.reading.networks import in_evaluation, set_mode, untouched, without_caches
from transprune.runtime.seeds import seeded
from transprune.runtime.structures import (
    Hole,
    SampleAxes,
    as_inputs,
    bound,
    called,
    copied,
    emptied,
    filled,
    form_of,
    leaves_in,
    mapped,
    on_device,
    outline,
    signature_of,
    tensors_in,
)
from transprune.runtime.user_code import own_place

Example = Any
"""The inputs of a forward, of any structure: a tensor, a tuple of positional arguments, a mapping of named ones, or
`Inputs` for both. Tensors may be nested in them, beside flags and None."""
BATCHES = (11, 2)
"""Batch sizes to trace with; the first that the forward accepts is used. More than one sample, to tell samples from
axes of size 1; 11 comes first because other axes seldom have that size."""
OTHER_BATCH = 13
"""Traced with where 11 seems to be the size of another axis too, which was taken for the samples."""
ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "_assert", "sym_constrain_range")
"""Checks that torch.export inserts; at another precision they would fail for no reason."""
BOXED = ("torchvision::roi_align", "torchvision::roi_pool")
"""Operators whose second argument has a box of an image in each row."""
SELECTIONS = ("select", "slice", "narrow", "unsqueeze")
"""Parts of a tensor that forwards take, at times for their shape alone."""


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass, in order."""

    model: nn.Module
    """The modules of the network, with the shapes of its tensors but without their values."""
    graph: fx.Graph
    parameters: Mapping[str, str]
    """Path of each parameter by the name of its placeholder."""
    buffers: Mapping[str, str]
    """Path of each buffer by the name of its placeholder."""
    constants: Mapping[str, Tensor]
    """Tensors that the forward creates, by the name of their placeholder."""
    inputs: tuple[str, ...]
    """Names of the placeholders of the input tensors, in their order."""
    given: Any
    """The inputs without their tensors."""
    signature: Signature | None
    """What the forward takes."""
    outputs: tuple[Any, ...]
    """The nodes of the tensors that the forward returns, in their order."""
    returned: Any
    """What the forward returns, without its tensors."""
    batch: int | None
    """Samples in the traced batch; None if no axis of the inputs counts samples."""
    axes: tuple[int | None, ...]
    """The axis of each input tensor that counts samples; None for those that all samples share."""

    @cached_property
    def boxes(self) -> frozenset[int]:
        """Which inputs say where in which image a box lies: other numbers would be read from outside of the images."""
        found = set[int]()
        for node in self.calls:
            if operator(node) in BOXED:
                read = node.all_input_nodes[1:]
                for each in read:  # grows while it is walked
                    read += [before for before in each.all_input_nodes if before not in read]
                found |= {place for place, name in enumerate(self.inputs) if name in {each.name for each in read}}
        return frozenset(found)

    def is_with(self, inputs: Example) -> bool:
        """Whether the trace holds for inputs of these shapes and types, whatever their number of samples."""
        try:
            tensors = self.tensors_of(inputs)
        except DataError:
            return False
        counted = [(tensor.shape, axis) for tensor, axis in zip(tensors, self.axes, strict=True) if axis is not None]
        if any(len(shape) <= axis or not shape[axis] for shape, axis in counted):
            return False  # there is no sample in it
        wanted = tensors if self.batch is None else rebatched(tensors, self.batch, self.axes)
        return _kinds(wanted) == _kinds(self.tensors)

    @property
    def sample_axis(self) -> int:
        """The axis that counts samples, of the first input that has one, and so of outputs."""
        return next((axis for axis in self.axes if axis is not None), 0)

    def samples_in(self, tensors: Sequence[Tensor]) -> int:
        """The number of samples of input tensors."""
        pairs = zip(tensors, self.axes, strict=True)
        return next((tensor.shape[axis] for tensor, axis in pairs if axis is not None), 1)

    def some_of(self, inputs: Example, samples: slice) -> Example:
        """Some of the samples of inputs that are nested as the example was."""
        pairs = zip(tensors_in(inputs), self.axes, strict=True)
        return filled(
            inputs, [each if axis is None else each[(slice(None),) * axis + (samples,)] for each, axis in pairs]
        )

    def shapes_of(self, tensors: Iterable[Tensor | Sequence[int]], samples: Any) -> list[list[Any]]:
        """The sizes of input tensors, with something else in the place of their number of samples."""
        shapes = [list(each.shape if isinstance(each, Tensor) else each) for each in tensors]
        for sizes, axis in zip(shapes, self.axes, strict=True):
            if axis is not None and axis < len(sizes):
                sizes[axis] = samples
        return shapes

    def tensors_of(self, inputs: Example) -> tuple[Tensor, ...]:
        """The tensors of inputs in the order of the traced ones.

        Raises:
            DataError: The inputs have another structure than the traced ones, or other flags.
        """
        is_plain = self._is_plain and type(inputs) is tuple and len(inputs) == len(self.inputs)
        if is_plain and all(isinstance(each, Tensor) for each in inputs):
            return tuple(inputs)
        try:
            arguments = bound(self.signature, inputs)
        except TypeError as error:
            raise self._misfit(inputs, str(error)) from error
        if form_of(arguments) != self._form:
            raise self._misfit(inputs, "they are nested otherwise, or other flags are set")
        tensors = zip(self._order, tensors_in(arguments), strict=True)
        return tuple(tensor for _, tensor in sorted(tensors, key=lambda pair: pair[0]))

    def _misfit(self, inputs: Example, problem: str) -> DataError:
        size = "" if self.batch is None else ", of any number of samples"
        return DataError(
            f"cannot run what was traced from {type(self.model).__name__} on inputs of {outline(inputs)}: {problem}; "
            f"expected inputs like the example, {outline(filled(self.given, self.tensors))}{size}: the structure and "
            "the flags of the example are written into the operators"
        )

    @property
    def tensors(self) -> list[Tensor]:
        """The traced input tensors, without values."""
        return [node.meta["val"] for node in self.graph.nodes if node.name in self.inputs]

    @property
    def is_of_one_tensor(self) -> bool:
        """Whether the forward was given a single tensor."""
        return self._is_plain and len(self.inputs) == 1

    @cached_property
    def _is_plain(self) -> bool:
        return type(self.given) is tuple and all(isinstance(each, Hole) for each in self.given)

    @cached_property
    def _arguments(self) -> Any:
        return bound(self.signature, self.given)

    @cached_property
    def _form(self) -> Any:
        return form_of(self._arguments)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        return tuple(hole.number for hole in leaves_in(self._arguments))

    @cached_property
    def calls(self) -> tuple[fx.Node, ...]:
        """The operator calls."""
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    def parameter(self, node: object) -> str | None:
        """Path of the parameter that a node stands for; None for anything else."""
        return self.parameters.get(node.name) if isinstance(node, fx.Node) else None

    def state(self, node: object) -> str | None:
        """Path of the parameter or buffer, or name of the constant, that a node stands for; None for anything else."""
        if not isinstance(node, fx.Node) or node.op != "placeholder" or node.name in self.inputs:
            return None
        return self.parameters.get(node.name) or self.buffers.get(node.name) or node.name

    def reads(self, node: fx.Node) -> Iterator[fx.Node]:
        """The tensors that a call reads, except parameters, buffers and constants."""
        return (source for source in node.all_input_nodes if self.state(source) is None)

    def module_path(self, node: fx.Node) -> str:
        """Path of the innermost module whose forward makes a call; empty for the model itself."""
        paths = self.module_paths(node)
        return paths[-1] if paths else ""

    def module_paths(self, node: fx.Node) -> list[str]:
        """Paths of all modules whose forwards lead to a call, the outermost first."""
        paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        return [_own_path(path) for path in paths if path]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The innermost module whose forward makes a call; None if it has no path of its own."""
        try:
            return self.model.get_submodule(self.module_path(node))
        except AttributeError:  # a module that is called several times has a path for each call
            return None


def shape(node: object) -> tuple[int, ...] | None:
    """Shape of a node's value; None if it is not a single tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def operator(node: fx.Node) -> str:
    """Name of the operator; overloads and in-place forms share one name.

    Names outside torch's own namespace (`aten`) carry theirs: `torchvision::nms`.
    """
    name = getattr(node.target, "__name__", str(node.target)) if callable(node.target) else str(node.target)
    name = str(name).removeprefix("aten.").split(".")[0].rstrip("_")
    namespace = node.target.namespace if isinstance(node.target, torch._ops.OpOverload) else "aten"
    return name if namespace == "aten" else f"{namespace}::{name}"


def is_own(node: fx.Node) -> bool:
    """Whether an operator is neither torch's nor torchvision's, so that torch's counter may not look into it."""
    return "::" in operator(node) and not operator(node).startswith("torchvision::")


NOT_THE_USERS = ("/torch/", "<eval_with_key>", "/transprune/reading/", "/transprune/runtime/")
"""Parts of the paths of code between us and a user's forward."""


def source_line(node: fx.Node) -> str:
    """File and line of a call in the model's code, if known."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    own = [place for place in places if not any(path in place for path in NOT_THE_USERS)]
    if not places:
        return "source line unknown"
    file, line, *_ = (own or places)[-1].removeprefix("File ").split(", ")
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')}"


def inputs_for(network: nn.Module, example: Example) -> Example:
    """The example as a forward is given it, on the network's device."""
    place, inputs = next(network.parameters(), None), as_inputs(example)
    return inputs if place is None else on_device(inputs, place.device)


def inputs_to_run(network: nn.Module, example: Example) -> Example:
    """The same, in the precision of the network's weights where they share one: a trace does not mind another."""
    precisions = {each.dtype for each in network.parameters() if each.is_floating_point()}
    inputs = inputs_for(network, example)
    if len(precisions) != 1:
        return inputs
    (precision,) = precisions
    return mapped(inputs, lambda each: each.to(precision) if each.is_floating_point() else each)


def _kinds(tensors: Iterable[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def rebatched(inputs: Example, batch: int, axes: Sequence[int | None]) -> Example:
    """The first sample of the inputs, `batch` times.

    Args:
        inputs: The inputs.
        batch: How many samples are wanted.
        axes: The axis of each tensor that counts samples, as `sample_axes` finds it.
    """

    def repeated(tensor: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return tensor
        one = tensor.narrow(axis, 0, 1)
        return one.expand(*tensor.shape[:axis], batch, *tensor.shape[axis + 1 :]).clone()

    return filled(inputs, [repeated(*pair) for pair in zip(tensors_in(inputs), axes, strict=True)])


def sample_axes(network: nn.Module, inputs: Example) -> tuple[int | None, ...] | None:
    """The axis of each input tensor that counts samples; None if there is none.

    It is the first axis that all tensors have in common, unless the network mixes what lies along it and keeps apart
    what lies along another, as recurrent layers do whose first axis is time.

    Args:
        network: The network; untouched.
        inputs: Its inputs, as `inputs_to_run` gives them.
    """
    tensors = list(tensors_in(inputs))
    sizes = {tensor.shape[0] for tensor in tensors if tensor.dim()}
    first = tuple(0 if tensor.dim() else None for tensor in tensors) if len(sizes) == 1 and 0 not in sizes else None
    are_images = all(tensor.dim() == IMAGE_AXES and tensor.is_floating_point() for tensor in tensors)
    if (first is not None and are_images) or any(each.is_meta for each in (*tensors, *network.parameters())):
        return first
    trial = _Trial(in_evaluation(network), inputs)
    with untouched(network):
        if first is not None and trial.keeps_apart(first) is not False:
            return first
        found = trial.found()
        if found is not None and first in trial.taken and trial.compares(found, first):
            return first
        return found or (first if first in trial.taken else None)


def axes_along(network: nn.Module, inputs: Example, axis: int) -> SampleAxes:
    """The given axis, if samples lie along it in all input tensors that have it; else the axis of each of them.

    That is None for a tensor that all samples share, and for all of them where no axis counts samples, as in a graph. A
    list, such as that of a detector's images, may have an entry for each sample; then there is nothing to tell.
    """
    if isinstance(inputs[0] if isinstance(inputs, tuple) and inputs else inputs, list):
        return axis
    tensors = list(tensors_in(inputs))
    axes = sample_axes(network, inputs_to_run(network, inputs)) or (None,) * len(tensors)
    is_one = all(each == axis or tensor.dim() <= axis for tensor, each in zip(tensors, axes, strict=True))
    return axis if is_one else axes


IMAGE_AXES = 4
"""Axes of images [batch, channels, rows, columns], of which the first counts samples."""
MOST_TRIALS = 32
"""So many guesses are tried at most; each runs the network twice on a few samples."""
LENGTHS = (3, 4, None)
"""How many samples a trial has: few, but another number than in the example, or as many where the forward insists."""


class _Trial:
    """Tells which axis counts samples: a change of one sample changes nothing of the others."""

    def __init__(self, network: nn.Module, inputs: Example) -> None:
        self.network, self.inputs = network, inputs
        self.tensors = list(tensors_in(inputs))
        self.taken: set[tuple[int | None, ...]] = set()
        """Axes along which the network took another number of samples than the example has."""

    def found(self) -> tuple[int | None, ...] | None:
        """The axes along which the network keeps apart what lies there, of as many tensors as may be; None: none.

        It has to take another number of samples, too: a node without edges changes nothing of the others, but the edges
        of a graph name them by number, and what they name must be there.
        """
        sizes = dict.fromkeys(size for tensor in self.tensors for size in tensor.shape[:IMAGE_AXES] if size)
        candidates = [axes for size in sizes for axes in product(*(_axes_of(tensor, size) for tensor in self.tensors))]
        candidates.sort(key=lambda axes: axes.count(None))
        candidates = [axes for axes in candidates if axes.count(None) < len(axes)]
        tried = candidates[:MOST_TRIALS]
        return next((axes for axes in tried if self.keeps_apart(axes) and axes in self.taken), None)

    def compares(self, axes: tuple[int | None, ...], first: tuple[int | None, ...]) -> bool:
        """Whether the network compares each sample of some tensors with each of the others, as contrastive ones do.

        Args:
            axes: Axes of some of the tensors along which it keeps apart what lies there.
            first: The first axes of all of them.
        """
        others = tuple(one if axis is None else None for axis, one in zip(axes, first, strict=True))
        return any(axis is not None for axis in others) and self.keeps_apart(others) is True

    def keeps_apart(self, axes: tuple[int | None, ...]) -> bool | None:
        """Whether a change of the first entry along these axes changes what belongs to it alone; None: not known."""
        seen = []
        for network in (self.network, self.lively):
            tried = (self._apart(network, axes, length) for length in LENGTHS)
            # Where tensors stay as they are, such as boxes, one number of samples may be that of the outputs by chance.
            found = list(islice((each for each in tried if each is not None), 2 if None in axes else 1))
            seen.append(all(found) if found else None)
        return False if False in seen else True if True in seen else None

    @cached_property
    def lively(self) -> nn.Module:
        """The network with positive weights that take means, where no activation hides a change."""
        network = copied(self.network)
        with torch.no_grad():
            for parameter in network.parameters():
                if not (parameter.is_floating_point() or parameter.is_complex()):
                    continue
                positive = parameter.abs()
                has_rows = parameter.dim() > 1 and len(parameter) > 0
                parameter.copy_(positive / positive[0].sum().clamp(min=0.1) if has_rows else positive)
        return network

    def _apart(self, network: nn.Module, axes: tuple[int | None, ...], length: int | None) -> bool | None:
        own = next(tensor.shape[axis] for tensor, axis in zip(self.tensors, axes, strict=True) if axis is not None)
        if length == own or (own < 2 and length is None):
            return None
        length = length or own
        inputs = self.inputs if length == own else rebatched(self.inputs, length, axes)
        generator = torch.Generator().manual_seed(0)
        before = [_drawn(tensor, generator) for tensor in tensors_in(inputs)]
        after = [
            tensor if axis is None else _with_other_start(tensor, axis, generator)
            for tensor, axis in zip(before, axes, strict=True)
        ]
        try:
            one, other = (_outputs(network, filled(inputs, tensors)) for tensors in (before, after))
        except Exception:  # a user's forward may raise anything
            return None
        if length != own:
            self.taken.add(axes)
        changes = [_changed(*pair) for pair in zip(one, other, strict=True)] if len(one) == len(other) else []
        changes = [change for change in changes if change.any()]
        return all(_is_of_first(change, length) for change in changes) if changes else None


def _outputs(network: nn.Module, inputs: Example) -> list[Tensor]:
    # Torch's fused encoder treats padding otherwise as soon as one sample of a batch has it in front.
    with torch.no_grad(), in_parts(), seeded(0, "comparing"), silent():
        return [each.detach() for each in tensors_in(called(network, inputs))]  # a forward may turn gradients on


def _axes_of(tensor: Tensor, size: int) -> list[int | None]:
    return [*(axis for axis, each in enumerate(tensor.shape[:IMAGE_AXES]) if each == size), None]


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The numbers of a tensor, each a little larger: what counts places, such as those of a box, stays within them."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    return tensor + (0.25 * torch.rand(tensor.shape, generator=generator)).to(tensor)


def _with_other_start(tensor: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """A copy with other numbers at the first place along an axis."""
    changed, start = tensor.clone(), tensor.narrow(axis, 0, 1)
    if tensor.is_floating_point() or tensor.is_complex():
        other = _drawn(start, generator)
    elif tensor.dtype == torch.bool:
        other = ~start
    else:
        least, most = int(tensor.min()), int(tensor.max())
        other = torch.where(start == least, most if most > least else int(least == 0), least)
    changed.narrow(axis, 0, 1).copy_(other)
    return changed


def _changed(one: Tensor, other: Tensor) -> Tensor:
    """Which entries differ by more than rounding."""
    if one.shape != other.shape:
        return torch.ones(1, dtype=torch.bool)
    if not (one.is_floating_point() or one.is_complex()):
        return one != other
    one, other = (each.to(torch.complex128).nan_to_num() for each in (one, other))
    scale = float(one.abs().max()) if one.numel() else 0.0
    return (one - other).abs() > 1e-5 * scale


def _is_of_first(change: Tensor, length: int) -> bool:
    """Whether what changed lies at the first of `length` places along an axis, or at the first of each `length`."""
    for axis, size in enumerate(change.shape):
        places = change.movedim(axis, 0).reshape(size, -1).any(1)
        if size % length == 0 and not (places[size // length :].any() and places.view(-1, length)[:, 1:].any()):
            return True
    return False


def trace(model: nn.Module, example: Example, *, training: bool = False, batches: Sequence[int] = BATCHES) -> Trace:
    """Traces a copy of the model; the model itself is untouched.

    Args:
        model: Any module that `torch.export` can read.
        example: The inputs of a forward, of any structure, on any device.
        training: Trace the model in training mode rather than evaluation mode.
        batches: Batch sizes to try; the first that the forward accepts is traced.

    Raises:
        ModelError: The model does not run on the example, or cannot be exported.
    """
    check_example(model, example)
    with untouched(model):
        return _traced(model, example, training=training, batches=batches)


def check_example(model: nn.Module, example: Example) -> None:
    """Checks that an example can be run and its samples counted.

    Raises:
        ModelError: There is no tensor in it, none with an entry, or one that is sparse, nested or without values.
    """
    tensors = list(tensors_in(example))
    if not tensors:
        raise ModelError(
            f"cannot read the model {type(model).__name__}: the example is {outline(example)}; expected a tensor such "
            "as torch.zeros(1, 3, 32, 32), a tuple of what the forward takes by position, a dict of what it takes by "
            "name, or transprune.Inputs for both, with tensors in it"
        )
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else "sparse"
            raise ModelError(
                f"cannot read the model {type(model).__name__}: the example holds a {kind} tensor, whose size depends "
                "on its values; expected plain ones: a padded batch and its mask, say, or places and values apart"
            )
    if any(tensor.is_meta for tensor in tensors) and any(not weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"cannot read the model {type(model).__name__}: the example, {outline(example)}, has no values (it is on "
            "the meta device, and the model is not); expected one with values, or both on the meta device"
        )
    if not any(tensor.numel() for tensor in tensors):
        raise ModelError(
            f"cannot read the model {type(model).__name__}: the example, {outline(example)}, has no sample; expected "
            "at least one"
        )


def _traced(model: nn.Module, example: Example, *, training: bool, batches: Sequence[int]) -> Trace:
    network = without_caches(copied(model))
    set_mode(network, training=training)
    frame = _without_values(model)
    inputs = inputs_for(network, example)
    axes = sample_axes(model, inputs_to_run(model, example))
    for batch in batches if axes is not None else ():
        assert axes is not None
        try:
            return _export(network, rebatched(inputs, batch, axes)).trace_of(frame, batch, axes)
        except ModelError:
            continue
    check_forward(model, inputs)
    # The forward may insist on the example's own number of samples.
    return _export(network, inputs).trace_of(frame, None, (None,) * len(list(tensors_in(inputs))))


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of a network without the values of its weights; shared parameters stay shared."""
    empty: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in model.parameters()
    }
    empty |= {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    return copied(model, empty)


def check_forward(model: nn.Module, example: Example) -> None:
    """Checks that a copy of a model runs on an example in evaluation mode.

    Raises:
        ModelError: It fails.
    """
    network, inputs = in_evaluation(model), inputs_to_run(model, example)
    try:
        with untouched(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            called(network, inputs)
    except ModelError:
        raise
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"cannot read the model {type(network).__name__}: its forward fails{_at(error)} on an example of "
            f"{_described(inputs)} ({first_line(error)}); expected an example that the model accepts (on the command "
            f"line, `run --image-size` and `inspect --input-size` set its size){_of_other_types(network)}"
        ) from error


def _of_other_types(network: nn.Module) -> str:
    """What to say of weights that are no 32-bit floats, where a network fails; nothing where all are."""
    for name, each in network.named_parameters():
        if each.is_floating_point() and each.dtype != torch.float32:
            return f"; its {name!r} is {each.dtype}: expected 32-bit floats, `model.float()`"
    return ""


class Flat(nn.Module):
    """A network as a function of tensors alone, whatever structure it takes and returns.

    `torch.export` knows few structures, and writes others down in a way of its own.
    """

    def __init__(self, network: nn.Module, inputs: Example) -> None:
        super().__init__()
        self.network = network
        self.__dict__["given"] = emptied(inputs)
        self.__dict__["note"] = _Note()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = called(self.network, filled(self.__dict__["given"], tensors))
        self.__dict__["note"].returned = emptied(outputs)
        return tuple(tensors_in(outputs))


class _Note:
    """What was returned last; `torch.export` puts lists and dicts of a module back as they were."""

    returned: Any = None


@dataclass(frozen=True)
class _Export:
    """A network that was exported as a function of tensors."""

    program: ExportedProgram
    given: Any
    returned: Any

    def trace_of(self, model: nn.Module, batch: int | None, axes: tuple[int | None, ...]) -> Trace:
        program = self.program
        graph = _without_unread(_inlined(program.graph_module))
        _check_calls(model, graph)
        kinds: dict[InputKind, dict[str, str]] = {kind: {} for kind in InputKind}
        for spec in program.graph_signature.input_specs:
            kinds[spec.kind][spec.arg.name] = spec.target or ""
        found = graph.output_node().args[0]
        assert isinstance(found, tuple | list)  # torch.export returns a flat sequence
        if next(leaves_in(self.returned), None) is None:
            raise ModelError(
                f"cannot read the model {type(model).__name__}: its forward returns {outline(self.returned)}; expected "
                "tensors, as they are or in lists, dicts, tuples and records"
            )
        specs = program.graph_signature.output_specs
        constants = {name: program.constants[target] for name, target in kinds[InputKind.CONSTANT_TENSOR].items()}
        return Trace(
            model=model,
            graph=graph,
            parameters={name: _own_path(path) for name, path in kinds[InputKind.PARAMETER].items()},
            buffers={name: _own_path(path) for name, path in kinds[InputKind.BUFFER].items()},
            constants=constants,
            inputs=tuple(kinds[InputKind.USER_INPUT]),
            given=self.given,
            signature=signature_of(model),
            outputs=tuple(node for node, spec in zip(found, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT),
            returned=self.returned,
            batch=batch,
            axes=axes,
        )


def _export(network: nn.Module, inputs: Example) -> _Export:
    flat = Flat(network, inputs)
    flat.training = network.training
    try:
        # Without gradients: what a forward keeps of its results would have a history, which cannot be copied.
        with silent(), torch.no_grad(), in_parts():
            program = torch.export.export(flat, tuple(tensors_in(inputs)), strict=False)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(
            f"cannot read the model {type(network).__name__}: torch.export cannot trace its forward{_at(error)} on an "
            f"example of {_described(inputs)} ({first_line(error)}); expected a forward that does not "
            f"branch on the values of tensors, of operators and outputs that torch.export knows"
            f"{_of_other_types(network)}"
        ) from error
    return _Export(program, flat.__dict__["given"], flat.__dict__["note"].returned)


def _own_path(path: str) -> str:
    """A path in the network itself."""
    return path.removeprefix("network").removeprefix(".")


@contextmanager
def in_parts() -> Iterator[None]:
    """Takes apart what hides several products in one operator: fused attention, and products of many tensors.

    Nor does attention look into its mask to see whether it is causal, since a trace knows no values: it applies it. And
    regions of another precision have that of the weights, as what is traced has: rounding would hide what differs.
    """
    was_fused, looks = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    torch.autocast.__enter__ = lambda region: region  # type: ignore[method-assign]
    torch.autocast.__exit__ = lambda *_: None  # type: ignore[method-assign]
    try:
        with _InPairs():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)
        transformer._detect_is_causal_mask = looks
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]


class _InPairs(TorchFunctionMode):
    """Multiplies several tensors pair by pair, as they are written.

    Torch chooses an order by their sizes, so that no cost would follow the widths.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.einsum and isinstance(args[0], str):
            equation, *tensors = args
            tensors = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
            if len(tensors) > 2:
                return _einsum_in_pairs(equation, tensors)
        elif function in (torch.linalg.multi_dot, torch.chain_matmul) and not kwargs:
            tensors = list(args[0]) if isinstance(args[0], list | tuple) else list(args)
            if tensors[-1].dim() == 1:  # what is nearest to a vector comes first
                return reduce(lambda product, each: each @ product, reversed(tensors))
            return reduce(torch.matmul, tensors)
        return function(*args, **(kwargs or {}))


def _einsum_in_pairs(equation: str, tensors: Sequence[Tensor]) -> Tensor:
    terms, output = letters_of(equation, [tensor.dim() for tensor in tensors])
    plain = dict(zip(dict.fromkeys("".join(terms)), ascii_letters, strict=False))  # torch knows no others
    found, *others = tensors
    letters = terms[0]
    for place, (term, tensor) in enumerate(zip(terms[1:], others, strict=True), start=2):
        needed = {*output, *"".join(terms[place:])}
        joint = (
            output if place == len(terms) else "".join(each for each in dict.fromkeys(letters + term) if each in needed)
        )
        pair = f"{letters},{term}->{joint}"
        found, letters = torch.einsum("".join(plain.get(each, each) for each in pair), found, tensor), joint
    return found


def letters_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The axes of the tensors of an einsum and those of its result, a letter for each; dots become letters too.

    Example:
        >>> letters_of("...ij,jk", [3, 2])
        (['αij', 'jk'], 'αik')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    dots = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    greek = "".join(chr(ord("α") + place) for place in range(max(dots)))
    if not arrow:
        named = [letter for term in terms for letter in term if letter != "."]
        output = greek + "".join(sorted({letter for letter in named if named.count(letter) == 1}))
    terms = [term.replace("...", greek[len(greek) - count :]) for term, count in zip(terms, dots, strict=True)]
    return terms, output.replace("...", greek)


@contextmanager
def silent() -> Iterator[None]:
    """Silences torch.export, of whose warnings a user can act on none.

    It warns about attributes that a forward caches, and on failure prints a traceback and the graph, which would bury
    our own message.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _at(error: Exception) -> str:
    """Where in the user's code an error was raised, for a message; empty if unknown."""
    place = own_place(error)
    return f" at {place}" if place else ""


def _check_calls(model: nn.Module, graph: fx.Graph) -> None:
    """Checks that all that was traced runs again, at sizes that do not depend on values.

    Raises:
        ModelError: It does not.
    """
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "call_function" else None
        if isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            raise ModelError(
                f"cannot read the model {type(model).__name__}: how many entries {operator(node)!r} "
                f"({source_line(node)}) gives depends on the values of tensors; expected sizes that follow "
                f"from those of the inputs"
            )
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ModelError(
                f"cannot read the model {type(model).__name__}: its forward hands functions to {str(node.target)!r} "
                f"({source_line(node)}); expected operators of tensors, and loops and branches of Python"
            )
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise ModelError(
                f"cannot read the model {type(model).__name__}: its forward transforms functions by torch.func or "
                f"torch.vmap ({source_line(node)}); expected operators that take the whole batch at once"
            )


def _inlined(module: fx.GraphModule) -> fx.Graph:
    """The graph with autocast regions replaced by their operators."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or "wrap_with" not in str(node.target):
            continue
        [(position, called)] = [
            (place, argument)
            for place, argument in enumerate(node.args)
            if isinstance(argument, fx.Node) and argument.op == "get_attr"
        ]
        region = module.get_submodule(str(called.target))
        assert isinstance(region, fx.GraphModule)
        inputs = iter(node.args[position + 1 :])
        values: dict[fx.Node, Any] = {each: next(inputs) for each in region.graph.nodes if each.op == "placeholder"}
        with graph.inserting_before(node):
            returned = graph.graph_copy(region.graph, values)
        for user in list(node.users):
            outcome = returned[user.args[1]] if isinstance(returned, tuple | list) else returned
            user.replace_all_uses_with(outcome)
            graph.erase_node(user)
        graph.erase_node(node)
    return graph


def _without_unread(graph: fx.Graph) -> fx.Graph:
    """The graph without assertions, and without views that nobody reads: a forward took their shape alone."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and operator(node) in (*ASSERTIONS, *SELECTIONS):
            graph.erase_node(node)
    return graph


def _described(inputs: Example) -> str:
    """Shapes of inputs for messages."""
    is_plain = isinstance(inputs, tuple) and all(isinstance(each, Tensor) for each in inputs)
    return f"shape {', '.join(map(outline, inputs))}" if is_plain else outline(inputs)
