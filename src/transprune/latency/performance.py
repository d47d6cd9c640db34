"""Latency, memory and file size of networks side by side, in torch and in every runtime that is installed."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transprune.errors import ExportError
from transprune.exports.formats import export_program, pt2_bytes, takes_any_batch
from transprune.exports.runtimes import RUNTIMES, Files
from transprune.latency.backends import Backend, Call, Deployed, make_backend
from transprune.latency.stopwatch import Latency, time_networks
from transprune.options import LatencyOptions, MeasureOptions
from transprune.reading.networks import switched
from transprune.runtime import choose_device, track
from transprune.runtime.environment import environment
from transprune.runtime.structures import copied
from transprune.runtime.tensors import encode_tensors
from transprune.runtime.terminal import duration

FORMAT = 1
TURNS = 5
"""Rounds in which the networks take turns."""
log = logging.getLogger("transprune.latency")
PROBE_SECONDS = 60.0
"""So long a process that measures memory may take; what takes longer has no figure."""


@dataclass(frozen=True, kw_only=True)
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


def measure(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    options: MeasureOptions | None = None,
    *,
    device: torch.device | str | None = None,
) -> list[Performance]:
    """Latency, throughput, peak memory and file size of networks, in torch and in each runtime that is installed.

    The networks take turns, so that a busy machine slows all of them alike. If a network's forward or a runtime's file
    fixes the number of samples, all are measured with single samples only. A runtime that does not take a network is
    left out, which the log says.

    Args:
        networks: Networks by name, such as `{"teacher": …, "student": …}`; untouched.
        example: Images [batch, channels, rows, columns]; only the first is used.
        options: Batch size, threads and repeats; None: the defaults.
        device: Where torch computes: a device or its name, or `auto`; None: where the first network is.

    Raises:
        ExportError: torch cannot export a network.
    """
    options, place = options or MeasureOptions(), choose_device(device, next(iter(networks.values()), None))
    with tempfile.TemporaryDirectory() as folder:
        subjects = [_Subject(name, network, example[:1].cpu(), Path(folder)) for name, network in networks.items()]
        batches = sorted({1, options.batch_size} if all(each.takes_any_batch for each in subjects) else {1})
        cases = [
            (runtime, batch)
            for runtime in _runtimes()
            if all(each.has_files_for(runtime) for each in subjects)
            for batch in (batches if _takes_any_batch(runtime) else [1])
        ]
        return [
            found
            for runtime, batch in track(cases, "measure", len(cases))
            for found in _measured(subjects, runtime, batch, options, place)
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

    def __init__(self, name: str, network: nn.Module, example: Tensor, folder: Path) -> None:
        self.name, self.example, self._folder = name, example, folder
        self.network = switched(copied(network), training=False).cpu()
        self._program = export_program(self.network, example)
        self.takes_any_batch = takes_any_batch(self._program)
        self.files: dict[str, Files] = {"torch": {".pt2": pt2_bytes(self._program)}}
        self.sizes = {"torch": len(encode_tensors(self.network.state_dict()))}

    def has_files_for(self, runtime: str) -> bool:
        """Whether the runtime takes the network; its files are written for it."""
        if runtime == "torch":
            return True
        program = self._program
        if self.takes_any_batch and not RUNTIMES[runtime].takes_any_batch:
            program = export_program(self.network, self.example, any_batch=False)
        try:
            self.files[runtime] = RUNTIMES[runtime].write(program)
        except ExportError as error:
            if runtime == next(iter(RUNTIMES)):
                raise
            log.warning("measure: %s is left out: %s", RUNTIMES[runtime].title, error)
            return False
        self.sizes[runtime] = sum(map(len, self.files[runtime].values()))
        return True

    def images(self, batch: int) -> Tensor:
        """A batch of random images."""
        return torch.randn(batch, *self.example.shape[1:], generator=torch.Generator().manual_seed(0))

    def ready(self, backend: Backend, batch: int) -> Call:
        """The network, ready to run on a batch."""
        inputs = (self.images(batch),)
        if isinstance(backend, Deployed):
            return backend.file(self.files[backend.runtime.name], inputs)
        return backend.network(copied(self.network), inputs)

    def peak_memory(self, runtime: str, batch: int, device: torch.device) -> int | None:
        """Peak memory in a separate process, in bytes; None if that fails."""
        for suffix, content in self.files[runtime].items():
            file = self._folder / f"{self.name}{suffix}"
            file.write_bytes(content)
        first = self._folder / f"{self.name}{next(iter(self.files[runtime]))}"
        shape = map(str, (batch, *self.example.shape[1:]))
        probe = [sys.executable, "-m", "transprune.latency.memory_probe"]
        command = [*probe, runtime, str(first), str(device) if runtime == "torch" else "cpu", *shape]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROBE_SECONDS)
            return int(done.stdout.split()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None


def _measured(
    subjects: list[_Subject], runtime: str, batch: int, options: MeasureOptions, device: torch.device
) -> list[Performance]:
    backend = make_backend(LatencyOptions(backend=runtime, threads=options.threads, batch_size=batch), device)  # type: ignore[arg-type]
    with backend.running():
        calls = [subject.ready(backend, batch) for subject in subjects]
        found = time_networks(calls, backend, repeats=options.repeats, seconds=options.seconds, turns=TURNS)
    return [
        Performance(
            **asdict(latency),
            network=subject.name,
            throughput=1000 * batch / latency.latency_ms if latency.latency_ms else math.inf,
            peak_memory_bytes=subject.peak_memory(runtime, batch, device) if options.memory else None,
            file_bytes=subject.sizes[runtime],
        )
        for subject, latency in zip(subjects, found, strict=True)
    ]


def measurements_json(found: list[Performance], options: MeasureOptions, device: torch.device | str) -> dict[str, Any]:
    """The contents of `measurements.json`."""
    return {
        "format": FORMAT,
        "options": asdict(options),
        "device": str(device),
        "measurements": [asdict(each) for each in found],
        "environment": environment(),
    }
