"""Whether an exported file computes what its network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from transprune.errors import ExportError

TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding, as a share of the largest logit (at least 1)."""


def check_agreement(kind: str, run: Callable[[Tensor], Tensor], network: nn.Module, batches: Sequence[Tensor]) -> float:
    """Compares an exported file with the network.

    Args:
        kind: What the file is called in messages, such as "ONNX".
        run: What the file makes of images [batch, channels, rows, columns].
        network: What it was exported from; untouched.
        batches: Images, of several batch sizes.

    Returns:
        The largest difference of any logit.

    Raises:
        ExportError: The logits differ by more than rounding.
    """
    reference = copy.deepcopy(network).eval().cpu()
    largest = 0.0
    for images in (batch.cpu() for batch in batches):
        with torch.no_grad():
            expected, found = reference(images), run(images)
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"cannot trust the exported {kind} file: on a batch of {len(images)} its logits differ from torch's by "
                f"{difference:.3g}; expected at most {TOLERANCE:g} of the largest logit"
            )
        largest = max(largest, difference)
    return largest
