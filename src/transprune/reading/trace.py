"""Traces a model: its forward as a graph of operators, with the modules and source lines of each."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from transprune.errors import ModelError
from transprune.reading.networks import in_evaluation, set_mode, untouched
from transprune.runtime.structures import on_device
from transprune.runtime.user_code import own_place

Example = Tensor | tuple[Tensor, ...]
BATCHES = (11, 2)
"""Batch sizes to trace with; the first that the forward accepts is used. More than one sample, to tell samples from
axes of size 1; 11 comes first because other axes seldom have that size."""
ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "_assert", "sym_constrain_range")
"""Checks that torch.export inserts; at another precision they would fail for no reason."""


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
    """Names of the placeholders of the inputs."""
    outputs: tuple[Any, ...]
    """What the forward returns, flattened: nodes or plain values."""
    structure: Any
    """How the outputs are nested (a tree specification of torch)."""
    batch: int | None
    """Samples in the traced batch; None if the inputs have no common first axis."""

    def is_with(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether the trace holds for inputs of these shapes and types, whatever their number of samples."""
        wanted = inputs if self.batch is None else rebatched(inputs, self.batch)
        traced = [node.meta["val"] for node in self.graph.nodes if node.name in self.inputs]
        return wanted is not None and _kinds(wanted) == _kinds(traced)

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
        return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]

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


def source_line(node: fx.Node) -> str:
    """File and line of a call in the model's code, if known."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    own = [place for place in places if "/torch/" not in place]
    if not places:
        return "source line unknown"
    file, line, *_ = (own or places)[-1].removeprefix("File ").split(", ")
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')}"


def as_inputs(example: Example) -> tuple[Tensor, ...]:
    """The example as the positional arguments of a forward."""
    return example if isinstance(example, tuple) else (example,)


def inputs_for(network: nn.Module, example: Example) -> tuple[Tensor, ...]:
    """The example as the positional arguments of a network's forward, on the network's device."""
    place, inputs = next(network.parameters(), None), as_inputs(example)
    moved: tuple[Tensor, ...] = inputs if place is None else on_device(inputs, place.device)
    return moved


def inputs_to_run(network: nn.Module, example: Example) -> tuple[Tensor, ...]:
    """The same, in the precision of the network's weights where they share one: a trace does not mind another."""
    precisions = {each.dtype for each in network.parameters() if each.is_floating_point()}
    inputs = inputs_for(network, example)
    if len(precisions) != 1:
        return inputs
    (precision,) = precisions
    return tuple(each.to(precision) if each.is_floating_point() else each for each in inputs)


def _kinds(tensors: Iterable[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _types(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return f"a {type(value).__name__}"


def rebatched(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...] | None:
    """The first sample of the inputs, `batch` times; None if the inputs have no common first axis."""
    if not inputs or any(tensor.dim() == 0 for tensor in inputs):
        return None
    if len({tensor.shape[0] for tensor in inputs}) != 1 or inputs[0].shape[0] == 0:
        return None
    return tuple(tensor[:1].expand(batch, *tensor.shape[1:]).clone() for tensor in inputs)


def trace(model: nn.Module, example: Example, *, training: bool = False, batches: Sequence[int] = BATCHES) -> Trace:
    """Traces a copy of the model; the model itself is untouched.

    Args:
        model: Any module that `torch.export` can read.
        example: An input batch, or a tuple of the forward's positional arguments, on any device.
        training: Trace the model in training mode rather than evaluation mode.
        batches: Batch sizes to try; the first that the forward accepts is traced.

    Raises:
        ModelError: The model does not run on the example, or cannot be exported.
    """
    if not all(isinstance(tensor, Tensor) for tensor in as_inputs(example)):
        raise ModelError(
            f"cannot read the model {type(model).__name__}: the example is {_types(example)}; expected a tensor such "
            "as torch.zeros(1, 3, 32, 32), or a tuple of tensors where the forward takes several"
        )
    with untouched(model):
        return _traced(model, example, training=training, batches=batches)


def _traced(model: nn.Module, example: Example, *, training: bool, batches: Sequence[int]) -> Trace:
    network = _copied(model)
    set_mode(network, training=training)
    frame = _without_values(model)
    inputs = inputs_for(network, example)
    for batch in batches:
        wanted = rebatched(inputs, batch)
        if wanted is None:
            break
        try:
            return _trace_of(frame, _exported(network, wanted), batch)
        except ModelError:
            continue
    check_forward(model, inputs)
    # The forward may insist on the example's own number of samples.
    return _trace_of(frame, _exported(network, inputs), None)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what a network holds may refuse in any way
        raise ModelError(
            f"cannot copy the network {type(model).__name__}: {first_line(error)}; expected one that "
            f"copy.deepcopy(model) copies: keep open files, locks and the like outside of it, and detach what a "
            f"forward keeps"
        ) from error


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of a network without the values of its weights; shared parameters stay shared."""
    empty: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad) for each in model.parameters()
    }
    empty |= {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    return copy.deepcopy(model, empty)


def check_forward(model: nn.Module, example: Example) -> None:
    """Checks that a copy of a model runs on an example in evaluation mode.

    Raises:
        ModelError: It fails.
    """
    network, inputs = in_evaluation(model), inputs_to_run(model, example)
    try:
        with untouched(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(*inputs)
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"cannot read the model {type(network).__name__}: its forward fails{_at(error)} on an example of shape "
            f"{_shapes(inputs)} ({first_line(error)}); expected an example that the model accepts (on the command "
            f"line, `run --image-size` and `inspect --input-size` set its size)"
        ) from error


def _exported(network: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    try:
        # Without gradients: what a forward keeps of its results would have a history, which cannot be copied.
        with _silent(), torch.no_grad(), attention_in_parts():
            return torch.export.export(network, inputs, strict=False)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(
            f"cannot read the model {type(network).__name__}: torch.export cannot trace its forward{_at(error)} on an "
            f"example of shape {_shapes(inputs)} ({first_line(error)}); expected a forward that does not "
            f"branch on the values of tensors, of operators and outputs that torch.export knows"
        ) from error


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Turns off the fused path that attention takes without gradients, which hides its matrix products."""
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)


@contextmanager
def _silent() -> Iterator[None]:
    """Silences torch.export.

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


def _trace_of(model: nn.Module, program: ExportedProgram, batch: int | None) -> Trace:
    graph = _without_assertions(_inlined(program.graph_module))
    _check_sizes(model, graph)
    kinds: dict[InputKind, dict[str, str]] = {kind: {} for kind in InputKind}
    for spec in program.graph_signature.input_specs:
        kinds[spec.kind][spec.arg.name] = spec.target or ""
    returned = graph.output_node().args[0]
    assert isinstance(returned, tuple | list)  # torch.export returns a flat sequence
    specs = program.graph_signature.output_specs
    users = tuple(value for value, spec in zip(returned, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT)
    constants = {name: program.constants[target] for name, target in kinds[InputKind.CONSTANT_TENSOR].items()}
    return Trace(
        model=model,
        graph=graph,
        parameters=kinds[InputKind.PARAMETER],
        buffers=kinds[InputKind.BUFFER],
        constants=constants,
        inputs=tuple(kinds[InputKind.USER_INPUT]),
        outputs=users,
        structure=program.call_spec.out_spec,
        batch=batch,
    )


def _check_sizes(model: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "call_function" else None
        if isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            raise ModelError(
                f"cannot read the model {type(model).__name__}: how many entries {operator(node)!r} "
                f"({source_line(node)}) gives depends on the values of tensors; expected sizes that follow "
                f"from those of the inputs"
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


def _without_assertions(graph: fx.Graph) -> fx.Graph:
    for node in list(graph.nodes):
        if node.op == "call_function" and operator(node) in ASSERTIONS and not node.users:
            graph.erase_node(node)
    return graph


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in inputs)


def first_line(error: Exception) -> str:
    """Class of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
