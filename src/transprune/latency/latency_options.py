"""What decides how latency is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transprune.errors import OptionError

BackendName = Literal["onnxruntime", "torch"]


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """Where latency is measured, how thoroughly, and how far a model of it may be off."""

    backend: BackendName = "onnxruntime"
    """What runs the network: `onnxruntime` on the CPU, as a deployed model, or `torch` on the device of the run."""
    threads: int = 1
    """Threads that compute on the CPU: as many as the network will have where it is deployed."""
    batch_size: int = 1
    """Samples in a batch; a latency is the time of one batch."""
    grid: int = 8
    """Widths at which an operator is measured along each axis; those between them are interpolated. The paper has 8
    candidates, so all are measured: kernels have steps at multiples of 4, 8 or 16, which a coarser grid misses."""
    repeats: int = 30
    """Times that each operator runs, in three turns; whole networks run twice as often."""
    architectures: int = 20
    """Whole networks from the smallest to the full one that teach the model what lies between operators."""
    validations: int = 12
    """Random whole networks that the model is held against."""
    bound: float = 0.15
    """Largest median error of the model, as a share of the measured latency, with which a search trusts it."""
    remeasure: bool = False
    """Measure anew, also where a model of this network on this machine is kept."""

    def __post_init__(self) -> None:
        least = {"threads": 1, "batch_size": 1, "grid": 2, "repeats": 3, "architectures": 4, "validations": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise OptionError(
                    f"cannot measure latency with {name}={getattr(self, name)}: expected at least {smallest}"
                )
        if not 0 < self.bound < 1:
            raise OptionError(f"cannot measure latency with bound={self.bound}: expected a share in (0, 1)")
