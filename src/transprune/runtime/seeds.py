"""Randomness that depends only on the seed and the phase, and the choice of the device."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from transprune.errors import OptionError

log = logging.getLogger("transprune.run")

_DEVICE = re.compile(r"cpu|cuda(?::(?P<index>\d+))?")


def phase_seed(seed: int, phase: str) -> int:
    """A separate seed for each phase, so that a phase repeats exactly whether or not earlier phases were run.

    It is the same on every machine and in every version of Python, and below 2³², the limit of numpy and scikit-learn.
    """
    digest = hashlib.sha256(f"{seed}/{phase}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def generator_of(seed: int) -> torch.Generator:
    """A generator that a whole number of any size decides; torch's own takes 64 bits."""
    return torch.Generator().manual_seed(seed % 2**63)


@contextmanager
def seeded(seed: int, phase: str) -> Iterator[int]:
    """Seeds `random`, numpy and torch (CPU and CUDA) for a phase, and restores the caller's states afterwards.

    Yields:
        The seed of the phase, for other generators.
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


def random_states() -> dict[str, Any]:
    """The states of the generators of `random`, numpy and torch (CPU and CUDA)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restores what `random_states` returned; states of CUDA devices that are now missing are skipped."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, state in enumerate(states["cuda"][:present]):
        torch.cuda.set_rng_state(state, index)


class KeptGenerator:
    """Makes a generator one of the parts of a loop that checkpoints keep."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores the state; a generator on another kind of device, where it does not fit, is seeded from it."""
        if len(state["state"]) == len(self.generator.get_state()):
            self.generator.set_state(state["state"])
            return
        log.warning("going on on another kind of device: random numbers differ from those of one run alone")
        self.generator.manual_seed(int.from_bytes(hashlib.sha256(state["state"].numpy().tobytes()).digest()[:4]))


def choose_device(name: torch.device | str | None = "auto", network: torch.nn.Module | None = None) -> torch.device:
    """Finds the device to compute on.

    Args:
        name: `auto` (CUDA if available, otherwise the CPU), `cpu`, `cuda` (the current device) or `cuda:N`; or a
            device, which is taken as it is. None: where the network is.
        network: What is to be computed; without weights it is nowhere, and None means `auto`.

    Raises:
        OptionError: The name is unknown, or the device does not exist, or the network's weights have no values.
    """
    held = [] if network is None else [*network.parameters(), *network.buffers()]
    is_wanted = str(name) == "meta"  # to follow shapes alone, as the tests do that look for waits
    if not is_wanted and any(each.is_meta for each in held):
        raise OptionError(
            f"cannot compute with the {type(network).__name__}: its weights have no values (they are on the meta "
            "device); expected them to be read first: model.to_empty(device='cpu'), then model.load_state_dict(...)"
        )
    if name is None:
        name = held[0].device if held else "auto"
    if isinstance(name, torch.device):
        return name
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
