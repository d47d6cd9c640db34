"""A network that runs the operators of a trace, for forwards that write down sizes which cannot follow a cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.architecture import Architecture
from transprune.errors import DataError
from transprune.kernels.feature_maps import add_padded
from transprune.reading.coupling import Arguments, Function
from transprune.reading.execution import Program, Step, Surroundings, Value
from transprune.reading.layouts import Order, Sizes, is_searched, kept_of
from transprune.reading.reading import Reading
from transprune.reading.trace import Example
from transprune.runtime.structures import inputs_of, on_device


class TracedNetwork(nn.Module):
    """A smaller network that runs the traced operators of the unpruned one.

    It has the modules and parameter names of the unpruned network, but not its forward: if that writes a number of
    channels into its code, no smaller network of its class can exist. In training it runs the operators of evaluation,
    except that batch norms use and collect the statistics of the batch, and dropout drops; stochastic depth and
    auxiliary heads are left out. Inputs have the rows and columns of the example, and any number of samples.

    Args:
        program: The operators.
        modules: The unpruned network's modules, cut.
        sizes: Widths and depths in use.
        reason: Why the network is not of its own class.
    """

    def __init__(self, program: Program, modules: nn.Module, sizes: Sizes, reason: str) -> None:
        super().__init__()
        self.__dict__["_traced"] = (program, sizes, type(modules))
        self.__dict__["_reason"] = reason
        self.__dict__["_counting"] = _counting_norms(program, sizes, modules)
        for name, child in modules._modules.items():  # one module may have several names
            self.add_module(name, child)
        for name, parameter in modules._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in modules._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in modules._non_persistent_buffers_set)
        self.train(modules.training)

    @property
    def reason(self) -> str:
        """Why the network is not of its own class."""
        return str(self.__dict__["_reason"])

    def forward(self, inputs: Tensor) -> Any:
        return self.run((inputs,))

    def run(self, inputs: Example) -> Any:
        """Runs the operators on the inputs of the unpruned network's forward.

        Raises:
            DataError: The inputs differ from the traced ones in more than the number of samples.
        """
        program, sizes, _ = self.__dict__["_traced"]
        self._check_inputs(program.reading.trace.tensors_of(inputs))
        if self.training:
            for path in self.__dict__["_counting"]:
                count = tensor_at(self, path)
                assert count is not None  # a norm that runs has its buffers
                count.add_(1)
        return program.run(PlainRun(self, program, sizes), inputs)

    def _check_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        program, _, kind = self.__dict__["_traced"]
        trace = program.reading.trace
        expected = trace.shapes_of(program.input_shapes, "batch")
        if trace.shapes_of(inputs, "batch") != expected:
            raise DataError(
                f"cannot run the operators that were traced from {kind.__name__} on inputs of shape "
                f"{_listed(tensor.shape for tensor in inputs)}: the sizes of the example are written into them; "
                f"expected {_listed(expected)}. For another size, shrink the model with an example of that size"
            )

    def extra_repr(self) -> str:
        return f"of {self.__dict__['_traced'][2].__name__}: {self.reason}"


class TracedNetworkOfSeveral(TracedNetwork):
    """A `TracedNetwork` of several inputs, or of nested ones."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(inputs_of(inputs, named))


def _listed(shapes: Iterable[Iterable[object]]) -> str:
    return ", ".join(f"[{', '.join(map(str, sizes))}]" for sizes in shapes)


def traced_network(program: Program, modules: nn.Module, sizes: Sizes, reason: str) -> TracedNetwork:
    """A `TracedNetwork` of inputs as they were traced; the arguments are the same."""
    kind = TracedNetwork if program.reading.trace.is_of_one_tensor else TracedNetworkOfSeveral
    return kind(program, modules, sizes, reason)


class PlainRun(Surroundings):
    """One architecture: parameters are as large as they are, batch norms and dropout follow the module's mode."""

    def __init__(self, network: nn.Module, program: Program, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.network = network
        self.program = program
        self.order: Order = program.reading.first_units
        """The units of each group, in their own order."""

    def state(self, name: str) -> Tensor:
        constants = self.program.reading.trace.constants
        if name in constants:
            constant: Tensor = on_device(
                cut_constant(self.program, name, self.sizes), next(self.network.parameters()).device
            )
            return constant
        for path in self.program.aliases.get(name, (name,)):
            found = tensor_at(self.network, path)
            if found is not None:
                return found
        raise RuntimeError(f"the network has no {name!r} any more")  # a block that runs has all its parameters

    def function(self, step: Step) -> Function:
        if step.rule.in_training:
            function = in_mode(step, self.network.training)
            momentum = self._momentum(step) if function is _batch_norm_in_training else None
            return function if momentum is None else lambda arguments: function({**arguments, "momentum": momentum})
        shortcut = self.program.free_sums.get(step.node)
        if shortcut is not None:
            module = self.network.get_submodule(shortcut)
            return lambda arguments: arguments["self"] + module(arguments["other"])
        return step.function

    def _momentum(self, step: Step) -> float | None:
        """Momentum of the norm itself, which a trace in evaluation mode may lack; None to run as traced."""
        path = _running_mean(self.program, step, self.network)
        norm = self.network.get_submodule(path.rpartition(".")[0]) if path is not None else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            return None
        if norm.momentum is not None or norm.num_batches_tracked is None:
            return norm.momentum
        return 1 / float(norm.num_batches_tracked)


def _running_mean(program: Program, step: Step, network: nn.Module) -> str | None:
    """Path of the running mean that a batch norm reads; None if it reads none, or for other steps."""
    statistics = step.reads.get("running_mean") if step.operator == "batch_norm" else None
    traced = program.reading.trace.state(statistics.key) if isinstance(statistics, Value) else None
    paths = () if traced is None else program.aliases.get(traced, (traced,))
    return next((path for path in paths if tensor_at(network, path) is not None), None)


def _counting_norms(program: Program, sizes: Sizes, modules: nn.Module) -> tuple[str, ...]:
    """Paths of the buffers in which batch norms count batches."""
    surroundings, found = Surroundings(sizes), []
    for step in program.steps:
        path = _running_mean(program, step, modules)
        if path is not None and surroundings.runs(step):
            count = f"{path.removesuffix('running_mean')}num_batches_tracked"
            if tensor_at(modules, count) is not None:
                found.append(count)
    return tuple(found)


def in_mode(step: Step, training: bool) -> Function:
    """The function that computes a call which differs between training and evaluation."""
    if not training:
        return step.function
    if step.operator == "batch_norm":
        return _batch_norm_in_training  # unlike the operator, it rejects a single value, which has no variance
    return lambda arguments: step.function({**arguments, **step.rule.in_training})


def _batch_norm_in_training(arguments: Arguments) -> Tensor:
    return F.batch_norm(
        arguments["input"],
        arguments["running_mean"],
        arguments["running_var"],
        arguments["weight"],
        arguments["bias"],
        training=True,
        momentum=arguments["momentum"],
        eps=arguments["eps"],
    )


def tensor_at(network: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer at a path, if there is one."""
    *modules, name = path.split(".")
    for each in modules:
        inner = network._modules.get(each)
        if inner is None:
            return None
        network = inner
    found = network._parameters.get(name)
    return network._buffers.get(name) if found is None else found


def cut_constant(program: Program, name: str, sizes: Sizes) -> Tensor:
    """A tensor that the forward creates, at the sizes in use."""
    constant = program.reading.trace.constants[name]
    for axis, layout in enumerate(program.reading.states.get(name, ())):
        if is_searched(layout):
            kept = kept_of(layout, sizes, program.reading.first_units)
            constant = constant.index_select(axis, torch.from_numpy(kept).to(constant.device))
    return constant


def sizes_of(architecture: Architecture, reading: Reading) -> Sizes:
    """What is in use in an architecture."""
    blocks = {stage.name: (architecture.kept(stage.name, stage.blocks),) for stage in reading.stages}
    return Sizes(architecture.widths, blocks)


class CutRun(PlainRun):
    """A run that computes what the shrunk network would, were its channels sorted first.

    A residual sum whose sides have come to differ pads or drops channels, as its new projection would.

    Args:
        network: The unpruned network.
        program: Its operators.
        sizes: Widths and depths in use.
        order: The units of each group, the most important first.
        changed: Parameters and buffers that take the place of the network's own, by path and at full size.
    """

    def __init__(
        self,
        network: nn.Module,
        program: Program,
        sizes: Sizes,
        order: Order | None = None,
        changed: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(network, program, sizes)
        self.order = order or program.reading.first_units
        self.changed = {} if changed is None else changed

    def state(self, name: str) -> Tensor:
        paths = self.program.aliases.get(name, (name,))
        tensor = next((self.changed[path] for path in paths if path in self.changed), None)
        if tensor is None:
            tensor = super().state(name)
        if name in self.program.reading.trace.constants:
            return tensor
        for axis, layout in enumerate(self.program.reading.states.get(name, ())):
            if not is_searched(layout):
                continue
            kept = kept_of(layout, self.sizes, self.order)
            if len(kept) < tensor.shape[axis] or (kept != np.arange(len(kept))).any():
                tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
        return tensor

    def function(self, step: Step) -> Function:
        if step.node in self.program.free_sums:
            return _padded_sum
        return super().function(step)


def _padded_sum(arguments: dict[str, Any]) -> Tensor:
    main: Tensor = arguments["self"]
    return add_padded(main, arguments["other"][:, : main.shape[1]])
