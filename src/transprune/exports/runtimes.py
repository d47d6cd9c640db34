"""The runtimes that a network is deployed in: which file each reads, how it is written, and how it runs.

A runtime is a class of three methods. What it needs beside torch is an extra of the package, imported where it is used.
Files are handed on as bytes by their endings, since one runtime has two.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from transprune.errors import ExportError, OptionError, expected_one_of, first_line
from transprune.exports.formats import (
    check_agreement,
    check_pt2,
    export_program,
    given_to,
    onnx_bytes,
    pt2_bytes,
    takes_any_batch,
)
from transprune.reading.trace import Example, rebatched, sample_axes
from transprune.runtime import choose_device
from transprune.runtime.files import write_atomically
from transprune.runtime.journal import quiet
from transprune.runtime.structures import as_inputs, mapped

Files = Mapping[str, bytes]
"""The contents of a network's files by their endings."""


@dataclass(frozen=True)
class Loaded:
    """A network in its runtime: called on the tensors of its inputs in order, it returns those of its outputs."""

    feed: Callable[[tuple[Tensor, ...]], Any]
    """Brings inputs to what `run` takes."""
    run: Callable[[Any], Iterable[Any]]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        return [torch.as_tensor(each) for each in self.run(self.feed(tensors))]

    def on(self, *tensors: Tensor) -> Callable[[], object]:
        """The network on these inputs, ready to be timed."""
        feed = self.feed(tensors)
        return lambda: self.run(feed)


class Runtime:
    """What runs a network where it is deployed."""

    name: str
    """Also the extra that installs it."""
    title: str
    """Its name in texts."""
    packages: ClassVar[Mapping[str, str]]
    """The modules that it needs, and the distributions that hold them; the first tells the version."""
    suffixes: tuple[str, ...]
    """The endings of its files."""
    reads_onnx = False
    """Whether `load` takes `.onnx` too."""
    takes_any_batch = True
    """Whether a file may take any number of samples; otherwise as many as the program was exported with."""

    def write(self, program: ExportedProgram, notes: Mapping[str, str] | None = None) -> Files:
        """The files of an exported program.

        Args:
            program: As `export_program` makes it; without free sizes where the runtime takes no batch of any size.
            notes: Texts that a file holds in its metadata by name, where it has room for them.

        Raises:
            ExportError: An operator is not known to the runtime.
        """
        raise NotImplementedError

    def load(self, files: Files, threads: int | None = None) -> Loaded:
        """A network, ready to run on the CPU.

        Args:
            files: As `write` makes them.
            threads: How many it computes on; None: the runtime's default.

        Raises:
            ExportError: The runtime does not take the files.
        """
        raise NotImplementedError

    @property
    def is_installed(self) -> bool:
        """Whether everything that it needs can be imported."""
        return all(importlib.util.find_spec(module) is not None for module in self.packages)

    @property
    def version(self) -> str:
        """The version of what runs the network."""
        return importlib.metadata.version(next(iter(self.packages.values())))

    def check_installed(self) -> None:
        """Checks that it can be used.

        Raises:
            ExportError: It is not installed.
        """
        if not self.is_installed:
            raise ExportError(f"cannot use {self.title}: it is not installed; pip install 'transprune[{self.name}]'")


class OnnxRuntime(Runtime):
    """onnxruntime, from ONNX."""

    name, title, suffixes = "onnxruntime", "onnxruntime", (".onnx",)
    packages: ClassVar[Mapping[str, str]] = {"onnxruntime": "onnxruntime"}
    reads_onnx = True

    def write(self, program: ExportedProgram, notes: Mapping[str, str] | None = None) -> Files:
        return {".onnx": onnx_bytes(program, notes)}

    def load(self, files: Files, threads: int | None = None) -> Loaded:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3  # errors only
        with _refused("run", self):
            session = onnxruntime.InferenceSession(files[".onnx"], settings, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        return Loaded(
            lambda tensors: {name: each.numpy() for name, each in zip(names, tensors, strict=True)},
            lambda feed: session.run(None, feed),
        )


class OpenVino(Runtime):
    """OpenVINO, from its own files, which are made of ONNX."""

    name, title, suffixes = "openvino", "OpenVINO", (".xml", ".bin")
    packages: ClassVar[Mapping[str, str]] = {"openvino": "openvino"}
    reads_onnx = True

    def write(self, program: ExportedProgram, notes: Mapping[str, str] | None = None) -> Files:
        import openvino

        onnx = onnx_bytes(program)
        with _refused("write", self), tempfile.TemporaryDirectory() as folder:
            model = openvino.Core().read_model(onnx)
            for name, text in (notes or {}).items():
                model.set_rt_info(text, [name])
            path = Path(folder) / "network.xml"
            openvino.save_model(model, path, compress_to_fp16=False)
            return {suffix: path.with_suffix(suffix).read_bytes() for suffix in self.suffixes}

    def load(self, files: Files, threads: int | None = None) -> Loaded:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads or 0, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        with _refused("run", self):
            core = openvino.Core()
            model = (
                core.read_model(files[".xml"], files[".bin"]) if ".xml" in files else core.read_model(files[".onnx"])
            )
            request = core.compile_model(model, "CPU", settings).create_infer_request()

        return Loaded(
            lambda tensors: [each.numpy() for each in tensors], lambda feed: list(request.infer(feed).values())
        )


class LiteRT(Runtime):
    """LiteRT, which was TensorFlow Lite, from `.tflite`."""

    name, title, suffixes = "litert", "LiteRT", (".tflite",)
    packages: ClassVar[Mapping[str, str]] = {"ai_edge_litert": "ai-edge-litert", "litert_torch": "litert-torch"}
    takes_any_batch = False

    def write(self, program: ExportedProgram, notes: Mapping[str, str] | None = None) -> Files:
        with _refused("write", self), _without_chatter(), tempfile.TemporaryDirectory() as folder:
            import litert_torch

            path = Path(folder) / "network.tflite"
            litert_torch.convert(program.module(), _zeros(program)).export(str(path))
            return {".tflite": path.read_bytes()}

    def load(self, files: Files, threads: int | None = None) -> Loaded:
        from ai_edge_litert.interpreter import Interpreter

        with _refused("run", self):
            interpreter = Interpreter(model_content=files[".tflite"], num_threads=threads)
            interpreter.allocate_tensors()
        signature = interpreter.get_signature_runner()
        inputs, outputs = map(_places, (signature.get_input_details(), signature.get_output_details()))

        def run(feed: list[Any]) -> list[Any]:
            for place, value in zip(inputs, feed, strict=True):
                interpreter.set_tensor(place, value)
            interpreter.invoke()
            return [interpreter.get_tensor(place) for place in outputs]

        return Loaded(lambda tensors: [each.numpy() for each in tensors], run)


def _places(details: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Where a `.tflite` file has the tensors that are called `args_0`, `args_1` and so on, in order."""
    return [details[name]["index"] for name in sorted(details, key=lambda name: int(name.rsplit("_", 1)[1]))]


class ExecuTorch(Runtime):
    """ExecuTorch, its operators handed to XNNPACK where that has them, from `.pte`."""

    name, title, suffixes = "executorch", "ExecuTorch", (".pte",)
    _is_in_use = False
    packages: ClassVar[Mapping[str, str]] = {"executorch": "executorch"}
    takes_any_batch = False

    def write(self, program: ExportedProgram, notes: Mapping[str, str] | None = None) -> Files:
        with _refused("write", self), _without_chatter():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return {".pte": bytes(lowered.to_executorch().buffer)}

    def load(self, files: Files, threads: int | None = None) -> Loaded:
        with _without_chatter():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime as Runner

        with _refused("run", self):
            if threads not in (None, portable_lib._threadpool_get_thread_count()):
                self._change_threads(threads, portable_lib._unsafe_reset_threadpool)
            program = Runner.get().load_program(files[".pte"])
            method = program.load_method("forward")
        type(self)._is_in_use = True
        held = program, method  # a method whose program is gone reads memory that is gone

        def run(feed: list[Tensor]) -> Any:
            return held[1].execute(feed)

        return Loaded(list, run)

    def _change_threads(self, threads: int, change: Callable[[int], None]) -> None:
        """Makes the pool of threads anew that all networks of a process share, as long as none is there to share it."""
        if self._is_in_use:
            raise ExportError(
                f"cannot run the network for ExecuTorch on {threads} threads: others of this process run on another "
                "number already, and all share one pool; run it in a process of its own"
            )
        change(threads)


RUNTIMES: dict[str, Runtime] = {each.name: each for each in (OnnxRuntime(), OpenVino(), LiteRT(), ExecuTorch())}
"""All that are known, by name; the first is the default, and always installed."""


def find_runtime(name: str) -> Runtime:
    """The runtime of a name, ready to use.

    Raises:
        OptionError: There is none of that name.
        ExportError: It is not installed.
    """
    if name not in RUNTIMES:
        raise OptionError(f"cannot use the runtime {name!r}: {expected_one_of(name, RUNTIMES)}")
    RUNTIMES[name].check_installed()
    return RUNTIMES[name]


def files_for(
    runtime: Runtime,
    network: nn.Module,
    example: Example,
    program: ExportedProgram,
    notes: Mapping[str, str] | None = None,
) -> Files:
    """The files of a network, from its program, or from one for single samples where the runtime takes no other.

    Raises:
        ExportError: torch cannot export the network, or an operator is not known to the runtime.
    """
    if takes_any_batch(program) and not runtime.takes_any_batch:
        program = export_program(network, example, any_batch=False)
    return runtime.write(program, notes)


def check_files(runtime: Runtime, files: Files, network: nn.Module, batches: Sequence[Example]) -> float:
    """Runs files and compares what comes out with the network.

    Args:
        runtime: Runs them.
        files: As it wrote them.
        network: The network that was exported.
        batches: Inputs of the network, of several batch sizes if the files take any.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The files cannot be run, or their logits differ by more than rounding.
    """
    loaded = runtime.load(files)

    def run(*tensors: Tensor) -> list[Tensor]:
        with _refused("run", runtime):
            return loaded(*tensors)

    return check_agreement(runtime.suffixes[0], run, network, batches)


def export(network: nn.Module, example: Example, path: str | Path) -> Path:
    """Writes a network to a file that runs without its code, and compares the file with torch.

    Args:
        network: The network, in evaluation mode in the file; untouched.
        example: Inputs of the forward, of any structure. The file takes their tensors one after another, and any number
            of samples, where the forward and the runtime do.
        path: Where to: `NAME.onnx` for ONNX, `NAME.pt2` for a program that `torch.export.load` reads, and with the
            extra of a runtime `NAME.xml` for OpenVINO (which writes `NAME.bin` beside it), `NAME.tflite` for LiteRT and
            `NAME.pte` for ExecuTorch.

    Raises:
        ExportError: The name ends otherwise, the runtime is not installed, the network cannot be exported, or the file
            gives something else.
        RunFolderError: The file cannot be written.
    """
    path = Path(path)
    found = {each.suffixes[0]: each for each in RUNTIMES.values()}
    if path.suffix not in (".pt2", *found):
        raise ExportError(f"cannot export to '{path}': expected a name that ends in {', '.join(found)} or .pt2")
    runtime = found.get(path.suffix)
    if runtime is not None:
        runtime.check_installed()
    choose_device(None, network)  # refuses weights without values
    inputs = mapped(as_inputs(example), lambda tensor: tensor.detach().cpu())
    axes = sample_axes(network, inputs)
    one = inputs if axes is None else rebatched(inputs, 1, axes)
    program = export_program(network, example, any_batch=runtime is None or runtime.takes_any_batch)
    batch = inputs if takes_any_batch(program) else one
    if runtime is None:
        files: Files = {".pt2": pt2_bytes(program)}
        check_pt2(files[".pt2"], network, [batch])
    else:
        files = runtime.write(program)
        check_files(runtime, files, network, [batch])
    for suffix, content in files.items():
        write_atomically(path.with_suffix(suffix), content)
    return path


def _zeros(program: ExportedProgram) -> tuple[Tensor, ...]:
    """Inputs of a program without free sizes."""
    return tuple(torch.zeros(tuple(map(int, each.shape)), dtype=each.dtype) for each in given_to(program))


@contextmanager
def _refused(what: str, runtime: Runtime) -> Iterator[None]:
    """Says which runtime does not take a network, and why."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # each has kinds of its own, or none
        raise ExportError(f"cannot {what} the network for {runtime.title}: {first_line(error)}") from error


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keeps what converters warn and log about their own insides from the user."""
    with warnings.catch_warnings(), quiet(""):
        warnings.simplefilter("ignore")
        yield
