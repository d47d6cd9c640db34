"""Checks whether two networks compute the same, and whether a trace holds for batches of any size.

A forward may write down the number of samples: traced with 11, `x.sum(0) / x.shape[0]` becomes a division by 11. Such a
trace is right at that size and wrong at any other, so its operators are run on a batch of another size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from transprune.errors import ModelError, first_line
from transprune.reading.coupling import Arguments, Function, bound_arguments
from transprune.reading.execution import Program, Step, Surroundings
from transprune.reading.layouts import Sizes
from transprune.reading.macs import counting
from transprune.reading.networks import in_evaluation, set_mode, untouched
from transprune.reading.reading import Reading
from transprune.reading.rules import lookups
from transprune.reading.trace import (
    Example,
    Trace,
    in_parts,
    inputs_for,
    inputs_to_run,
    is_own,
    operator,
    source_line,
    trace,
)
from transprune.runtime.seeds import seeded
from transprune.runtime.structures import (
    as_numbers,
    called,
    copied,
    filled,
    inputs_of,
    mapped,
    outputs_in,
    tensors_in,
)

AGREEMENT = 1e-3
"""Largest difference between outputs that counts as rounding, as a share of the largest output."""
ROUNDING = 1e-7
"""Difference that always counts as rounding: small outputs may be what is left of larger numbers."""
OTHER_BATCHES = (2, 3, 4)
"""Batch sizes to try; the first that was not traced and that the model accepts is used. Where entries are looked up by
number, so is one above the traced size: a table that has an entry for each traced sample ends there."""


def probes(inputs: Example, traced: Trace) -> Example:
    """Inputs of the same shapes and types, with random floating-point numbers; boxes stay where they are."""
    generator = torch.Generator().manual_seed(0)
    return filled(
        inputs,
        [
            torch.randn(tensor.shape, generator=generator).to(tensor)
            if tensor.is_floating_point() and not tensor.is_meta and place not in traced.boxes
            else tensor
            for place, tensor in enumerate(tensors_in(inputs))
        ],
    )


def outputs_of(network: Callable[..., Any], inputs: Example) -> list[Tensor]:
    """The tensors that a network returns; inputs stay as they are, and each call draws the same random numbers.

    Attention runs in parts, as it does when it is traced: its fused path gives zeros where padding is masked.
    """
    with torch.no_grad(), in_parts(), seeded(0, "comparing"):
        return [each.detach() for each in tensors_in(called(network, mapped(inputs, Tensor.clone)))]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """How outputs differ, for a message; None if by no more than rounding."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "gives outputs of another shape"
    if any(tensor.is_meta for tensor in (*found, *expected)):
        return None
    for one, other in zip(map(as_numbers, found), map(as_numbers, expected), strict=True):
        finite = other[other.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        tolerance = max(AGREEMENT * largest, ROUNDING)
        if not torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True):
            return "computes something else"
    return None


def check_samples(model: nn.Module, reading: Reading, example: Example) -> None:
    """Checks that the traced operators compute what the model does in evaluation for a batch of another size.

    A model that accepts no other batch passes, since it cannot be tested. So does one that differs from its operators
    at the traced size too: there, the batch is not to blame.

    Args:
        model: The model that was read; untouched.
        reading: Its reading.
        example: The example it was read with.

    Raises:
        ModelError: The number of samples is written into the forward.
    """
    inputs = inputs_for(model, example)
    traced = reading.trace.batch
    if traced is None or any(tensor.is_meta for tensor in (*tensors_in(inputs), *model.parameters())):
        return
    program = Program(reading)
    has_lookups = any(step.operator in lookups.RULES and step.operator != "embedding" for step in program.steps)
    for sizes in (OTHER_BATCHES, (traced + 1,) if has_lookups else ()):
        _check_one_of(model, reading, program, inputs, [size for size in sizes if size != traced])


def _check_one_of(model: nn.Module, reading: Reading, program: Program, inputs: Example, sizes: Sequence[int]) -> None:
    """Checks the first batch size that the model accepts, as `check_samples` does."""
    traced = reading.trace.batch
    assert traced is not None
    for batch in sizes:
        tried = probes(_of_samples(inputs, batch, reading.trace), reading.trace)
        try:
            expected = outputs_of(in_evaluation(model), tried)
        except Exception:  # a user's forward may raise anything
            continue
        running = _AsTraced(reading.trace, model)
        problem = _problem(program, running, tried, expected)
        own = probes(_of_samples(inputs, traced, reading.trace), reading.trace)
        if problem is not None and _holds_as_traced(model, program, own):
            raise ModelError(
                f"cannot read the model {type(model).__name__}: its forward writes down how many samples are in a batch"
                f"{_at(model, reading, tried, batch, running)}: what was traced with {traced} samples {problem} with "
                f"{batch}; expected operators that take any number of samples, such as x.mean(0) rather than "
                f"x.sum(0) / x.shape[0], and the whole batch at once rather than a loop over its samples"
            )
        return


class _AsTraced(Surroundings):
    """Runs the unpruned network, and notes the shapes of the results."""

    def __init__(self, traced: Trace, model: nn.Module) -> None:
        super().__init__(Sizes())
        self.trace, self.model = traced, copied(model)
        self.shapes: dict[fx.Node, Any] = {}
        """Shape of the result of each call so far."""

    def state(self, name: str) -> Tensor:
        if name in self.trace.constants:
            return self.trace.constants[name]
        path, _, own = name.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(path), own)
        return tensor

    def function(self, step: Step) -> Function:
        def noted(arguments: Arguments) -> Any:
            result = step.function(arguments)
            self.shapes[step.node] = _shapes(result)
            return result

        return noted


def counted_calls(reading: Reading) -> dict[fx.Node, int]:
    """The calls of which more or fewer MACs are counted for one sample than their rules say, with those counted.

    What is not torch's own is trusted where its counter sees nothing of it.
    """
    counting = _Counting(reading)
    shapes = reading.trace.shapes_of(counting.program.input_shapes, 1)
    types = [node.meta["val"].dtype for node in reading.trace.graph.nodes if node.name in reading.trace.inputs]
    inputs = [torch.empty(each, dtype=kind, device="meta") for each, kind in zip(shapes, types, strict=True)]
    counting.program.run(counting, filled(reading.trace.given, inputs))
    predicted: dict[fx.Node, int] = {}
    for facts in reading.layers:
        predicted[facts.use.node] = predicted.get(facts.use.node, 0) + facts.macs
    return {
        node: macs
        for node, macs in counting.macs.items()
        if macs != predicted.get(node, 0) and not (macs == 0 and is_own(node))
    }


class _Counting(Surroundings):
    """Runs the operators of the unpruned network on shapes alone, and counts what each of them costs."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(Sizes())
        self.program = Program(reading)
        self.macs: dict[fx.Node, int] = {}

    def state(self, name: str) -> Tensor:
        trace = self.program.reading.trace
        if name in trace.constants:
            return trace.constants[name].to("meta")
        path, _, own = name.rpartition(".")
        tensor: Tensor = getattr(trace.model.get_submodule(path), own)
        return tensor

    def function(self, step: Step) -> Function:
        def counted(arguments: Arguments) -> Any:
            with counting() as counter:
                result = step.function(arguments)
            self.macs[step.node] = counter.macs
            return result

        return counted


def cached_calls(model: nn.Module, example: Example, reading: Reading) -> dict[fx.Node, tuple[int, ...]]:
    """The calls whose results a network keeps for its next call, with the shapes that are kept; none if one is missing.

    The network runs once with its caches, and its operators once more: keys and values are found by what is in them. A
    cache with a window keeps the last ones.
    """
    finding = _Finding(reading.trace, model)
    set_mode(finding.model, training=False)
    inputs = probes(inputs_to_run(finding.model, example), reading.trace)
    try:
        with untouched(model), torch.no_grad(), seeded(0, "caches"):
            returned = called(finding.model, inputs)
            others = {id(each) for each in outputs_in(returned)}
            finding.missing = [
                each for each in tensors_in(returned) if id(each) not in others and each.is_floating_point()
            ]
            Program(reading).run(finding, inputs)
    except Exception:  # a user's forward may raise anything, and may do so only with caches
        return {}
    return {} if finding.missing else finding.found


class _Finding(_AsTraced):
    """Runs the unpruned network, and notes which calls first give some tensors, or more of the same."""

    def __init__(self, traced: Trace, model: nn.Module) -> None:
        super().__init__(traced, model)
        self.missing: list[Tensor] = []
        """What no call has given yet."""
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def function(self, step: Step) -> Function:
        def noted(arguments: Arguments) -> Any:
            result = step.function(arguments)
            for place, wanted in enumerate(self.missing):
                if isinstance(result, Tensor) and _ends_in(result, wanted):
                    self.found[step.node] = tuple(wanted.shape)
                    del self.missing[place]
                    break
            return result

        return noted


def _ends_in(tensor: Tensor, last: Tensor) -> bool:
    """Whether the last entries of a tensor along its axes are another one."""
    if tensor.dim() != last.dim() or tensor.dtype != last.dtype or tensor.shape[0] != last.shape[0]:
        return False
    for axis, (size, kept) in enumerate(zip(tensor.shape, last.shape, strict=True)):
        if size < kept:
            return False
        tensor = tensor.narrow(axis, size - kept, kept)
    return bool((tensor - last).abs().max() <= AGREEMENT * last.abs().max())


def _of_samples(inputs: Example, batch: int, traced: Trace) -> Example:
    """The inputs with `batch` samples, repeating their own."""

    def repeated(tensor: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return tensor
        return tensor.index_select(axis, torch.arange(batch, device=tensor.device) % tensor.shape[axis])

    return filled(inputs, [repeated(*pair) for pair in zip(tensors_in(inputs), traced.axes, strict=True)])


def _problem(program: Program, running: _AsTraced, inputs: Example, expected: Sequence[Tensor]) -> str | None:
    """What the operators do instead of what is expected, for a message; None if they do as expected."""
    try:
        found = outputs_of(lambda *given, **named: program.run(running, inputs_of(given, named)), inputs)
    except Exception as error:  # operators raise many kinds
        return f"fails ({first_line(error)})"
    return difference(found, expected)


def _holds_as_traced(model: nn.Module, program: Program, inputs: Example) -> bool:
    expected = outputs_of(in_evaluation(model), inputs)
    return _problem(program, _AsTraced(program.reading.trace, model), inputs, expected) is None


def _at(model: nn.Module, reading: Reading, inputs: Example, batch: int, running: _AsTraced) -> str:
    """Where the number of samples is written down, for a message: the first call that differs in a second trace."""
    try:
        again = trace(model, inputs, batches=[batch])
    except ModelError:
        return ""
    for node, other in zip(reading.trace.calls, again.calls, strict=False):
        rewritten = reading.rewrites.get(node, {})
        if (
            operator(node) != operator(other)
            or _numbers(node, rewritten) != _numbers(other, rewritten)
            or running.shapes.get(node) != _shapes(other.meta.get("val"))
        ):
            return f" at {operator(node)!r} ({source_line(node)})"
    return ""


def _numbers(node: fx.Node, rewritten: Collection[str]) -> list[str]:
    """The arguments of a call, except tensors and those that follow the sizes in use."""
    named = bound_arguments(node) or {str(place): value for place, value in enumerate(node.args)}
    return [str(fx.node.map_arg(value, lambda _: None)) for name, value in named.items() if name not in rewritten]


def _shapes(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shapes(each) for each in value]
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else None
