"""Randomness that depends on the seed and the phase alone, and the device to compute on."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from transprune.errors import OptionError

_DEVICE = re.compile(r"cpu|cuda(?::(?P<index>\d+))?")


def phase_seed(seed: int, phase: str) -> int:
    """A seed of its own for each phase, so that a phase repeats exactly whether or not those before it were run.

    The number is the same on every machine and in every version of Python, and below 2³², which is what numpy and
    scikit-learn accept.
    """
    digest = hashlib.sha256(f"{seed}/{phase}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def seeded(seed: int, phase: str) -> Iterator[int]:
    """Seeds `random`, numpy and torch (CPU and CUDA) for a phase and gives the caller's states back afterwards.

    Yields:
        The seed of the phase, for generators of its own.
    """
    number = phase_seed(seed, phase)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            yield number
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def choose_device(name: str = "auto") -> torch.device:
    """Finds the device to compute on.

    Args:
        name: `auto` (CUDA if there is such a device, else the CPU), `cpu`, `cuda` (the current one) or `cuda:N`.

    Raises:
        OptionError: The name is unknown, or there is no such device.
    """
    if name == "auto":
        return choose_device("cuda" if torch.cuda.is_available() else "cpu")
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise OptionError(
            f"cannot compute on the device {name!r}: it is unknown; use --device with auto, cpu, cuda or cuda:N"
        )
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise OptionError(f"cannot compute on {name!r}: {_why_no_cuda()}; use --device cpu or --device auto")
    index = torch.cuda.current_device() if match["index"] is None else int(match["index"])
    if index >= count:
        raise OptionError(
            f"cannot compute on {name!r}: the CUDA devices of this machine are cuda:0 to cuda:{count - 1}; "
            "use one of them, or --device auto"
        )
    return torch.device("cuda", index)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no CUDA device"
