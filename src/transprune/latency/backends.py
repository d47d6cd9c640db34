"""Backends: the runtimes in which operators and networks are timed."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from transprune.errors import LatencyError, OptionError, expected_one_of, first_line
from transprune.exports.runtimes import RUNTIMES, Files, Runtime, find_runtime
from transprune.latency.timed_operators import TimedOperator, operator_inputs, operator_module, operator_onnx
from transprune.options import LatencyOptions
from transprune.reading.networks import switched
from transprune.reading.trace import Example, Flat, silent
from transprune.runtime import choose_device
from transprune.runtime.environment import environment
from transprune.runtime.journal import quiet
from transprune.runtime.structures import arguments_of, on_device, tensors_in

Call = Callable[[], object]
"""Runs something once and returns when it is finished, on the device too."""


class Backend:
    """A runtime in which operators and networks are timed.

    Args:
        options: Threads and batch size.
        device: Where torch computes.
    """

    def __init__(self, options: LatencyOptions, device: torch.device) -> None:
        self.options = options
        self.device = device

    def clock(self) -> int:
        """The time now, in nanoseconds."""
        return time.perf_counter_ns()

    def surroundings(self) -> dict[str, Any]:
        """The hardware and versions that latencies depend on."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[None]:
        """Applies the settings under which everything is timed, inside the block."""
        yield

    def operator(self, operator: TimedOperator, inputs: int, outputs: int) -> Call:
        """An operator at the given widths, ready to run."""
        raise NotImplementedError

    def network(self, network: nn.Module, inputs: Example) -> Call:
        """A whole network, ready to run on the inputs."""
        raise NotImplementedError


class Deployed(Backend):
    """A runtime on the CPU that reads files, and onnxruntime itself.

    Operators are timed from ONNX that is built node by node. Where a runtime does not read that, writing each of some
    hundreds would take seconds: they are timed in onnxruntime then, and the correction that is fitted to whole networks
    of the runtime makes the difference, as far as the validation bears it out.
    """

    def __init__(self, options: LatencyOptions, device: torch.device) -> None:
        super().__init__(options, torch.device("cpu"))
        self.runtime = find_runtime(options.backend)
        self._operators = self.runtime if self.runtime.reads_onnx else RUNTIMES["onnxruntime"]

    def surroundings(self) -> dict[str, Any]:
        found = environment()
        return {
            **{name: found[name] for name in ("cpu", "onnxruntime", "torch")},
            self.runtime.name: self.runtime.version,
        }

    def operator(self, operator: TimedOperator, inputs: int, outputs: int) -> Call:
        files = {".onnx": operator_onnx(operator, self.options.batch_size, inputs, outputs)}
        return self._ready(self._operators, files, operator_inputs(operator, self.options.batch_size, inputs, outputs))

    def network(self, network: nn.Module, inputs: Example) -> Call:
        tensors = tuple(tensors_in(inputs))
        one = network if inputs == tensors else Flat(network, inputs)
        if self.runtime.reads_onnx:
            return self._ready(self.runtime, {".onnx": network_onnx(one, tensors)}, tensors)
        with silent():
            program = torch.export.export(switched(one, training=False), tensors, strict=False)
        return self.file(self.runtime.write(program), tensors)

    def file(self, files: Files, inputs: tuple[Tensor, ...]) -> Call:
        """Files of the runtime, which have run once on the inputs in order, ready to run again.

        Raises:
            LatencyError: The runtime cannot run them.
        """
        return self._ready(self.runtime, files, inputs)

    def _ready(self, runtime: Runtime, files: Files, inputs: tuple[Tensor, ...]) -> Call:
        try:
            run = runtime.load(files, self.options.threads).on(*inputs)
            run()
        except Exception as error:  # each runtime has kinds of its own
            raise LatencyError(
                f"cannot measure latency in {runtime.title}: it does not run what torch wrote for it "
                f"({first_line(error)}); measure it with the backend torch"
            ) from error
        return run


class Torch(Backend):
    """Eager torch, on the device of the run."""

    def surroundings(self) -> dict[str, Any]:
        found = environment()
        device = found["cpu"] if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        return {"device": device, "torch": found["torch"]}

    @contextmanager
    def running(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.options.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def operator(self, operator: TimedOperator, inputs: int, outputs: int) -> Call:
        given = operator_inputs(operator, self.options.batch_size, inputs, outputs)
        return self.network(operator_module(operator, inputs, outputs), given)

    def network(self, network: nn.Module, inputs: Example) -> Call:
        placed = network.to(self.device)
        given = on_device(inputs, self.device)
        positional, named = arguments_of(placed, given)
        if self.device.type == "cpu":
            return lambda: placed(*positional, **named)

        def run() -> None:
            placed(*positional, **named)
            torch.cuda.synchronize(self.device)

        return run


BACKENDS: dict[str, type[Backend]] = {**dict.fromkeys(RUNTIMES, Deployed), "torch": Torch}


def make_backend(options: LatencyOptions, device: torch.device | str = "cpu") -> Backend:
    """The backend that the options name.

    Args:
        options: Backend, threads and batch size.
        device: Where torch computes; the others compute on the CPU.

    Raises:
        OptionError: There is no such backend.
        ExportError: It is not installed.
    """
    if options.backend not in BACKENDS:
        known = expected_one_of(str(options.backend), BACKENDS)
        raise OptionError(f"cannot measure latency with backend={options.backend!r}: {known}")
    return BACKENDS[options.backend](options, choose_device(device))


def network_onnx(network: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The ONNX file of a network for inputs of exactly these shapes, to be timed and discarded.

    torch's older exporter is tried first: it takes milliseconds rather than seconds, and files of both run equally
    fast. The newer one takes over where the older fails or torch no longer has it.

    Raises:
        LatencyError: Neither can export the network.
    """
    problem: Exception | None = None
    for is_newer in (False, True):
        content = io.BytesIO()
        try:
            with warnings.catch_warnings(), quiet("torch.onnx"), _no_printed_graph():
                warnings.simplefilter("ignore")  # the exporters warn about their own internals
                place: Any = None if is_newer else content
                program = torch.onnx.export(network, inputs, place, dynamo=is_newer, verbose=False)
                return content.getvalue() if program is None else program.model_proto.SerializeToString()
        except Exception as error:  # the exporters raise many kinds
            problem = error
    raise LatencyError(
        f"cannot measure the latency of {type(network).__name__} in onnxruntime: torch cannot write it as ONNX "
        f"({type(problem).__name__}: {problem}); measure it with the backend torch"
    ) from problem


@contextmanager
def _no_printed_graph() -> Iterator[None]:
    """Keeps torch's older exporter from printing the graph that it fails at, which it does whatever `verbose` says."""
    name = "_jit_onnx_log"
    printing = getattr(torch._C, name, None)
    if printing is None:
        yield
        return
    setattr(torch._C, name, lambda *parts: None)
    try:
        yield
    finally:
        setattr(torch._C, name, printing)
