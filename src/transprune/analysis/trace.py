"""A model's computation as a graph of operators, with what is needed to speak about it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from transprune.errors import ModelError

Example = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass, in order."""

    model: nn.Module
    """The copy, in evaluation mode, that was traced."""
    graph: fx.Graph
    parameters: dict[str, str]
    """Path of each parameter by the name of its placeholder."""
    buffers: frozenset[str]
    """Names of the placeholders of buffers."""

    @cached_property
    def calls(self) -> tuple[fx.Node, ...]:
        """The operator calls."""
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    def parameter(self, node: object) -> str | None:
        """Path of the parameter that a node stands for; None if it is no parameter."""
        return self.parameters.get(node.name) if isinstance(node, fx.Node) else None

    def inputs(self, node: fx.Node) -> Iterator[fx.Node]:
        """The tensors a call reads that are no parameters or buffers."""
        return (
            source
            for source in node.all_input_nodes
            if source.name not in self.parameters and source.name not in self.buffers
        )

    def module_path(self, node: fx.Node) -> str:
        """Path of the innermost module in whose forward the call stands; empty: the model itself."""
        paths = self.module_paths(node)
        return paths[-1] if paths else ""

    def module_paths(self, node: fx.Node) -> list[str]:
        """Paths of all modules in whose forward the call stands, the outermost first."""
        return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]

    def module(self, node: fx.Node) -> nn.Module:
        """The innermost module in whose forward the call stands."""
        return self.model.get_submodule(self.module_path(node))


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's value; None if it is no single tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None


def operator(node: fx.Node) -> str:
    """Name of the operator without its overload; in-place and out-of-place forms have one name."""
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def source_line(node: fx.Node) -> str:
    """File and line of the call in the model's code, or the module's path when that is not known."""
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


def trace(model: nn.Module, example: Example) -> Trace:
    """Traces a copy of the model in evaluation mode; the model itself is untouched.

    Args:
        model: Any module that `torch.export` can read.
        example: An input batch, or a tuple of the forward's positional arguments.

    Raises:
        ModelError: The model does not run on the example, or cannot be exported.
    """
    network = copy.deepcopy(model).eval()
    inputs = as_inputs(example)
    shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
    name = type(model).__name__
    try:
        with torch.no_grad():
            network(*inputs)
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"cannot read the model {name}: its forward fails on an example of shape {shapes} "
            f"({_first_line(error)}); expected an example that the model accepts"
        ) from error
    try:
        program = torch.export.export(network, inputs, strict=False)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(
            f"cannot read the model {name}: torch.export cannot trace its forward on an example of shape {shapes} "
            f"({_first_line(error)}); the forward must not branch on the values of tensors"
        ) from error
    signature = program.graph_signature
    return Trace(
        model=network,
        graph=program.graph,
        parameters=dict(signature.inputs_to_parameters),
        buffers=frozenset(signature.inputs_to_buffers),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
