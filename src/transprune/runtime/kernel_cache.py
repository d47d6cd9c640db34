"""How many compiled kernels this process keeps. Knows no machine learning."""

from __future__ import annotations

import os

VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 16384
"""What a search keeps. A supernet convolves at other widths in every step, and oneDNN compiles a kernel for each: a few
thousand for a large network, of which it keeps 1024 by itself and compiles the others again and again."""


def keep_kernels() -> None:
    """Lets oneDNN keep all kernels of a search, unless the environment says how many.

    It asks once, before the first convolution of the process.
    """
    os.environ.setdefault(VARIABLE, str(KERNELS))
