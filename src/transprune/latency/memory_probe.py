"""Peak memory of one network, measured in a separate process.

    python -m transprune.latency.memory_probe KIND FILE DEVICE INPUTS

KIND is `torch` (FILE is a program of `torch.export`) or the name of a runtime (FILE is its first file; others lie
beside it), INPUTS a file of the tensors that it takes, in order, as `torch.save` writes a list of them. Loads the file,
runs it twice, and prints the growth of peak memory in bytes.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def main(kind: str, file: str, device: str, given: str) -> None:
    """Prints the peak memory in bytes."""
    import torch

    inputs = torch.load(given, weights_only=True)
    if kind == "torch":
        print((_torch_on_cpu if device == "cpu" else _torch_on_cuda)(file, device, inputs))
    else:
        print(_deployed(kind, Path(file), inputs))


def _deployed(kind: str, file: Path, inputs: list[Tensor]) -> int:
    from transprune.exports.runtimes import RUNTIMES

    runtime = RUNTIMES[kind]
    importlib.import_module(next(iter(runtime.packages)))

    def run() -> None:
        loaded = runtime.load({suffix: file.with_suffix(suffix).read_bytes() for suffix in runtime.suffixes})
        for _ in range(2):
            loaded(*inputs)

    return _growth(run)


def _torch_on_cpu(file: str, device: str, inputs: list[Tensor]) -> int:
    import torch

    torch.set_num_threads(1)
    _load_what_every_network_needs()

    def run() -> None:
        network = torch.export.load(file).module()
        with torch.inference_mode():
            for _ in range(2):
                network(*inputs)

    return _growth(run)


def _load_what_every_network_needs() -> None:
    """Loads and runs a tiny program, so that torch's own code is not counted as the network's memory."""
    import torch

    tiny, content = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.BatchNorm2d(1)).eval(), io.BytesIO()
    torch.export.save(torch.export.export(tiny, (torch.zeros(1, 1, 4, 4),)), content)
    with torch.inference_mode():
        torch.export.load(content).module()(torch.zeros(1, 1, 4, 4))


def _torch_on_cuda(file: str, device: str, inputs: list[Tensor]) -> int:
    import torch

    network = torch.export.load(file).module().to(device)
    inputs = [each.to(device) for each in inputs]
    with torch.inference_mode():
        for _ in range(2):
            network(*inputs)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def _growth(run: Callable[[], None]) -> int:
    _forget_peak()
    before = _peak()
    run()
    return max(0, _peak() - before)


def _forget_peak() -> None:
    """Resets the peak to the current use, where the system allows it: loading the libraries may have peaked higher."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Peak memory of this process, in bytes."""
    try:
        # Not `getrusage`: on Linux, its peak includes that of the parent before the fork.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held if sys.platform == "darwin" else 1024 * held


if __name__ == "__main__":
    main(*sys.argv[1:])
