"""The environment of a run: versions and hardware, nothing personal; oneDNN's kernel cache; how wide a terminal is."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any, TextIO

_PACKAGES = ("torchvision", "onnxruntime", "numpy")
KERNELS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 16384
"""Capacity of oneDNN's kernel cache in a search. A supernet convolves at new widths in every step, and oneDNN compiles
a kernel for each shape: a few thousand for a large network. It would cache 1024 and keep recompiling the others."""


def environment() -> dict[str, Any]:
    """Versions and hardware on which results and timings depend; no host names, user names or paths.

    Returns:
        Text for `transprune`, `python`, `torch`, `torchvision`, `onnxruntime`, `numpy` (None if not installed),
        `platform` and `cpu`; the `cores` that this process may use, the `threads` that torch uses, the machine's
        `memory_gib` (None if unknown); `cuda_device`, `cuda_memory_gib` and `cuda_version`, all None without CUDA.
    """
    import torch

    return {
        "transprune": _version("transprune"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # unlike the package's version, it names the build (+cpu, +cu132)
        **{package: _version(package) for package in _PACKAGES},
        "platform": _platform(),
        "cpu": _cpu(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        **_cuda(),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # not needed for help, which is to answer at once

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _platform() -> str:
    """System, numeric version and processor family; the rest of a kernel's name could identify its owner."""
    release = re.match(r"[\d.]*", platform.release())
    return " ".join(filter(None, [platform.system(), release[0] if release else "", platform.machine()]))


def _cpu() -> str:
    """The name of the processor if the system knows it, otherwise its family."""
    found = None
    if platform.system() == "Linux":
        found = re.search(r"^model name\s*: *(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if found:
        return found[1].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def available_cores() -> int:
    """The cores that this process may use; a container or scheduler may limit them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not available on every system
        return None


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"cuda_device": None, "cuda_memory_gib": None, "cuda_version": None}
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "cuda_device": device.name,
        "cuda_memory_gib": round(device.total_memory / 2**30, 1),
        "cuda_version": torch.version.cuda,
    }


def fitted(text: str, stream: TextIO | None = None) -> str:
    """A text in lines that a terminal shows whole, broken between words alone; as it is for a stream to elsewhere."""
    if stream is not None and not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, text.splitlines()))


def keep_kernels() -> None:
    """Makes oneDNN cache all kernels of a search, unless the environment sets the capacity.

    Call it before the first convolution of the process, when oneDNN reads the variable.
    """
    os.environ.setdefault(KERNELS_VARIABLE, str(KERNELS))
