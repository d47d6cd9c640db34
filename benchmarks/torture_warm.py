"""Imported once by the process that the runs of `torture.py` are copies of: what takes long to import or to call first.

No gradient is computed here: torch refuses to compute any in a copy of a process that did. Nor is the number of threads
set by torch, whose pool of threads a copy cannot use: now and then it would end the copy by itself (SIGABRT).
"""

import os
from importlib import import_module

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import nn

from transprune.data import load_data
from transprune.reading.inspection import inspect

for name in ("transprune.cli", "transprune.runs", "scipy.optimize", "torchvision.transforms.v2"):
    import_module(name)
load_data("digits")
inspect(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)), torch.zeros(1, 1, 8, 8))
