"""Imported once by the process that the runs of `torture.py` are copies of: what takes long to import or to call first.

No gradient is computed here: torch refuses to compute any in a copy of a process that did.
"""

import torch
from torch import nn

from transprune.analysis.inspection import inspect
from transprune.data import load_data

torch.set_num_threads(1)
load_data("digits")
inspect(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)), torch.zeros(1, 1, 8, 8))
