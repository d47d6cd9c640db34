"""Latency, memory and file size of networks side by side, in torch and in every runtime that is installed."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transprune.costs import in_bytes
from transprune.errors import ExportError, OptionError
from transprune.exports.formats import export_program, onnx_bytes, pt2_bytes, quantised_onnx, takes_any_batch
from transprune.exports.runtimes import RUNTIMES, Files, Loaded, files_for
from transprune.latency.backends import Backend, Call, Deployed, make_backend
from transprune.latency.stopwatch import Latency, as_batch, time_networks
from transprune.options import LatencyOptions, MeasureOptions, at_least
from transprune.reading.networks import switched
from transprune.reading.trace import Example
from transprune.runtime import choose_device, track
from transprune.runtime.environment import environment
from transprune.runtime.files import write_atomically
from transprune.runtime.structures import called, copied, mapped, tensors_in
from transprune.runtime.tensors import encode_tensors
from transprune.runtime.terminal import duration
from transprune.training.batches import AnyData, Batch, as_data, feed
from transprune.training.evaluation import Evaluation, evaluate_batches
from transprune.training.tasks import Task, classification

FORMAT = 1
log = logging.getLogger("transprune.latency")
CALIBRATION_SAMPLES = 256
"""Training samples that the ranges of activations are taken from."""
CALIBRATION_BATCH = 64
PROBE_SECONDS = 60.0
"""So long a process that measures memory may take; what takes longer has no figure."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Performance(Latency):
    """Latency, throughput, memory and file size of one network in one runtime at one batch size."""

    network: str
    throughput: float
    """Samples per second, at the median latency."""
    peak_memory_bytes: int | None
    """What loading the network and running it takes at most, in a process of its own; None: it could not be told, or
    was not asked for."""
    file_bytes: int
    """Size of the weights as safetensors, or of the runtime's files together."""

    def __repr__(self) -> str:
        memory = "" if self.peak_memory_bytes is None else f", {in_bytes(self.peak_memory_bytes)} of memory"
        return (
            f"Performance({self.network} in {self.runtime} on {self.device}, {self.threads} thread(s), batch "
            f"{self.batch_size}: {self.latency_ms:.3f} ms ({self.lower_ms:.3f} to {self.upper_ms:.3f}), "
            f"{self.throughput:,.0f} samples/s{memory}, file {in_bytes(self.file_bytes)})"
        )


def measure(
    networks: Mapping[str, nn.Module] | nn.Module,
    example: Example,
    options: MeasureOptions | None = None,
    *,
    device: torch.device | str | None = None,
) -> list[Performance]:
    """Latency, throughput, peak memory and file size of networks, in torch and in each runtime that is installed.

    The networks take turns, so that a busy machine slows all of them alike. If a network's forward or a runtime's file
    fixes the number of samples, all are measured with single samples only. A runtime that does not take a network is
    left out, which the log says.

    Args:
        networks: Networks by name, such as `{"teacher": …, "student": …}`, or a single one; untouched.
        example: Inputs of the forward, of any structure, as `inspect` takes them; only the first sample is used, with
            random numbers in place of its own, but whole numbers as they are.
        options: Batch size, threads and repeats; None: the defaults.
        device: Where torch computes: a device or its name, or `auto`; None: where the first network is.

    Raises:
        ExportError: torch cannot export a network.
        OptionError: What is given are no networks.
        LatencyError: A runtime does not run a network's file.
    """
    if isinstance(networks, nn.Module):
        networks = {"network": networks}
    if not isinstance(networks, Mapping):
        raise OptionError(
            f"cannot measure what is of the kind {type(networks).__name__}: expected a network, or several by name, "
            "such as {'student': student}"
        )
    first = next(iter(networks.values()), None)
    options, place = options or MeasureOptions(), choose_device(device, first)
    if first is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        subjects = [_Subject(name, network, example, Path(folder)) for name, network in networks.items()]
        batches = sorted({1, options.batch_size} if all(each.takes_any_batch for each in subjects) else {1})
        inputs = {batch: _noise(as_batch(first, example, batch)) for batch in batches}
        cases = [
            (runtime, batch)
            for runtime in _runtimes()
            if all(each.has_files_for(runtime) for each in subjects)
            for batch in (batches if _takes_any_batch(runtime) else [1])
        ]
        return [
            found
            for runtime, batch in track(cases, "measure", len(cases))
            for found in _measured(subjects, runtime, inputs[batch], replace(options, batch_size=batch), place)
        ]


def most_time(networks: int, options: MeasureOptions) -> str:
    """How long measuring takes at most, in words; a network of which five batches take longer takes that long."""
    cases = sum(len({1, options.batch_size}) if _takes_any_batch(runtime) else 1 for runtime in _runtimes())
    latency = f"latency takes {duration(cases * options.seconds)} at most"
    if not options.memory:
        return f"{latency}; memory is left out"
    probes = cases * networks
    return (
        f"{latency}; memory takes {probes} processes, seconds each and {duration(probes * PROBE_SECONDS)} at most in "
        "all (--no-memory leaves it out)"
    )


def _runtimes() -> list[str]:
    return ["torch", *(name for name, each in RUNTIMES.items() if each.is_installed)]


def _takes_any_batch(runtime: str) -> bool:
    return runtime == "torch" or RUNTIMES[runtime].takes_any_batch


class _Subject:
    """A network to measure, with its exported files."""

    def __init__(self, name: str, network: nn.Module, example: Example, folder: Path) -> None:
        self.name, self._example, self._folder = name, example, folder
        self.network = switched(copied(network), training=False).cpu()
        self._program = export_program(self.network, example)
        self.takes_any_batch = takes_any_batch(self._program)
        self.files: dict[str, Files] = {"torch": {".pt2": pt2_bytes(self._program)}}
        self.sizes = {"torch": len(encode_tensors(self.network.state_dict()))}

    def has_files_for(self, runtime: str) -> bool:
        """Whether the runtime takes the network; its files are written for it."""
        if runtime == "torch":
            return True
        try:
            self.files[runtime] = files_for(RUNTIMES[runtime], self.network, self._example, self._program)
        except ExportError as error:
            if runtime == next(iter(RUNTIMES)):
                raise
            log.warning("measure: %s is left out: %s", RUNTIMES[runtime].title, error)
            return False
        self.sizes[runtime] = sum(map(len, self.files[runtime].values()))
        return True

    def ready(self, backend: Backend, inputs: Example) -> Call:
        """The network, ready to run on a batch."""
        if isinstance(backend, Deployed):
            return backend.file(self.files[backend.runtime.name], tuple(tensors_in(inputs)))
        return backend.network(copied(self.network), inputs)

    def peak_memory(self, runtime: str, inputs: Example, device: torch.device) -> int | None:
        """Peak memory in a separate process on a batch, in bytes; None if that fails."""
        for suffix, content in self.files[runtime].items():
            file = self._folder / f"{self.name}{suffix}"
            file.write_bytes(content)
        first = self._folder / f"{self.name}{next(iter(self.files[runtime]))}"
        given = self._folder / "inputs.pt"
        torch.save(list(tensors_in(inputs)), given)
        probe = [sys.executable, "-m", "transprune.latency.memory_probe"]
        command = [*probe, runtime, str(first), str(device) if runtime == "torch" else "cpu", str(given)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROBE_SECONDS)
            return int(done.stdout.split()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None


def _noise(inputs: Example) -> Example:
    """Inputs of the same form with random numbers, and whole numbers as they are, which may be places in a table."""
    generator = torch.Generator().manual_seed(0)
    return mapped(
        inputs,
        lambda each: (
            torch.randn(each.shape, generator=generator, dtype=each.dtype) if each.is_floating_point() else each
        ),
    )


def _measured(
    subjects: list[_Subject], runtime: str, inputs: Example, options: MeasureOptions, device: torch.device
) -> list[Performance]:
    batch = options.batch_size
    backend = make_backend(LatencyOptions(backend=runtime, threads=options.threads, batch_size=batch), device)  # type: ignore[arg-type]
    with backend.running():
        calls = [subject.ready(backend, inputs) for subject in subjects]
        found = time_networks(calls, backend, repeats=options.repeats, seconds=options.seconds)
    return [
        Performance(
            **asdict(latency),
            network=subject.name,
            throughput=1000 * batch / latency.latency_ms if latency.latency_ms else math.inf,
            peak_memory_bytes=subject.peak_memory(runtime, inputs, device) if options.memory else None,
            file_bytes=subject.sizes[runtime],
        )
        for subject, latency in zip(subjects, found, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A network in 8 bits beside itself in 32, both in onnxruntime."""

    path: Path
    """The ONNX file in 8 bits."""
    before: Evaluation
    """On the test samples, in 32 bits."""
    after: Evaluation
    """In 8 bits."""
    latency_before: Latency
    latency_after: Latency
    bytes_before: int
    """Size of the ONNX file."""
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """The contents of `int8.json`."""
        return {
            "format": FORMAT,
            "float": {
                **self.before.to_json(),
                "latency_ms": self.latency_before.latency_ms,
                "file_bytes": self.bytes_before,
            },
            "int8": {
                **self.after.to_json(),
                "latency_ms": self.latency_after.latency_ms,
                "file_bytes": self.bytes_after,
            },
            "threads": self.latency_after.threads,
            "batch_size": self.latency_after.batch_size,
            "environment": environment(),
        }


def quantise(
    network: nn.Module,
    data: AnyData,
    path: str | Path,
    *,
    task: Task | None = None,
    samples: int = CALIBRATION_SAMPLES,
    latency: LatencyOptions | None = None,
    seed: int = 0,
) -> Quantised:
    """Writes a network as ONNX in 8 bits, and measures what that costs: accuracy, latency and size, beside 32 bits.

    Post-training static quantisation: a scale for each output channel of weights, one range for each activation.

    Args:
        network: The network; untouched.
        data: Its training samples decide the ranges of activations, its test samples the accuracy.
        path: The file to write, `NAME.onnx`.
        task: Metrics, and how a batch is taken apart; None: `classification()`.
        samples: How many training samples are looked at.
        latency: Threads, batch size and repeats; None: the defaults. The backend is onnxruntime.
        seed: Decides which samples.

    Raises:
        ExportError: The name ends otherwise, or the network cannot be exported or quantised.
        DataError: The data cannot be read.
        RunFolderError: The file cannot be written.
    """
    path, task = Path(path), task or classification()
    if path.suffix != ".onnx":
        raise ExportError(f"cannot write 8 bits to '{path}': expected a name that ends in .onnx")
    at_least("samples", samples, 1)
    data, place = as_data(data, task, batch_size=CALIBRATION_BATCH), torch.device("cpu")
    reference = switched(copied(network), training=False).to(place)
    learned_from = feed(data, "train", task, batch_size=CALIBRATION_BATCH, seed=seed, device=place)
    looked_at = list(_first(learned_from, samples))
    one = looked_at[0].part(slice(0, 1)).inputs
    program = export_program(reference, one)
    if not takes_any_batch(program):
        looked_at = [batch.part(slice(at, at + 1)) for batch in looked_at for at in range(batch.samples)]
    onnx = onnx_bytes(program)
    small = quantised_onnx(onnx, [tuple(tensors_in(batch.inputs)) for batch in looked_at])
    options = replace(latency or LatencyOptions(), backend="onnxruntime")
    backend, contents = make_backend(options, place), (onnx, small)
    inputs = tuple(tensors_in(as_batch(reference, one, options.batch_size)))
    with backend.running():
        assert isinstance(backend, Deployed)
        calls = [backend.file({".onnx": content}, inputs) for content in contents]
        times = time_networks(calls, backend, repeats=2 * options.repeats)
    with torch.no_grad():
        outputs = called(reference, one)
    found = []
    for content in contents:
        loaded = backend.runtime.load({".onnx": content})
        tests = feed(data, "test", task, batch_size=CALIBRATION_BATCH, seed=0, device=place)
        found.append(evaluate_batches(partial(_answered, loaded, outputs), tests, task))
    write_atomically(path, small)
    return Quantised(
        path=path,
        before=found[0],
        after=found[1],
        latency_before=times[0],
        latency_after=times[1],
        bytes_before=len(onnx),
        bytes_after=len(small),
    )


def _first(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """The first batches that hold so many samples, the last one cut."""
    left = samples
    for batch in batches:
        yield batch.part(slice(0, left))
        left -= batch.samples
        if left <= 0:
            return


def _answered(loaded: Loaded, outputs: Any, *positional: Any, **named: Any) -> Any:
    """What a loaded network returns, in the structure of the network's own outputs."""
    found = iter(loaded(*tensors_in((positional, named))))
    return mapped(outputs, lambda _: next(found))


def measurements_json(found: list[Performance], options: MeasureOptions, device: torch.device | str) -> dict[str, Any]:
    """The contents of `measurements.json`."""
    return {
        "format": FORMAT,
        "options": asdict(options),
        "device": str(device),
        "measurements": [asdict(each) for each in found],
        "environment": environment(),
    }
