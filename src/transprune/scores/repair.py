"""Repair without training: what was cut is made good by the layers behind it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.reading.execution import Program
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read
from transprune.reading.trace import Example, inputs_for
from transprune.scores.cut_run import sizes_of
from transprune.scores.refit import RIDGE, Refit, Targets, record_targets
from transprune.shrinking.traced_network import PlainRun, tensor_at
from transprune.training.evaluation import evaluation_mode


def repair(
    student: nn.Module,
    teacher: nn.Module,
    architecture: Architecture,
    samples: Example,
    *,
    ridge: float = RIDGE,
    reading: Reading | None = None,
) -> nn.Module:
    """A copy of a smaller network whose layers are fitted to what the unpruned one gives. Labels are not needed.

    Every convolution and linear layer, from the first to the last, gets the weights that come closest, in the mean
    square, to the outputs that it has in the unpruned network, from the inputs that it has in the smaller one. Where
    its outputs are added to others, the sum is what they come closest to. Batch norms keep their statistics: constants
    go into the bias, or the running mean behind. Transposed convolutions and layers that are called several times stay
    as they are.

    Args:
        student: What `shrink(teacher, architecture, samples)` gave, or that network trained further; untouched.
        teacher: The unpruned network, its channels in the order in which they were cut; untouched.
        architecture: The student's widths and depths.
        samples: A batch of inputs, or a tuple of the forward's positional arguments; some hundreds of samples. All are
            run at once.
        ridge: How strongly the new weights are drawn towards the student's, as a share of the inputs' mean square.
        reading: What is known of the teacher already.

    Raises:
        ModelError: The teacher cannot be read (see `inspect`).
    """
    teacher = unwrapped(teacher)
    reading = read(teacher, samples, reading)
    with evaluation_mode(teacher):
        targets = record_targets(teacher, Program(reading), inputs_for(teacher, samples))
    return repair_read(student, reading, targets, architecture, samples, ridge=ridge)


@torch.no_grad()
def repair_read(
    student: nn.Module,
    reading: Reading,
    targets: Targets,
    architecture: Architecture,
    samples: Example,
    *,
    ridge: float = RIDGE,
) -> nn.Module:
    """`repair` for a network that is read and has run already; for many students of one teacher."""
    repaired, program = copy.deepcopy(student), Program(reading)
    with evaluation_mode(repaired):
        refit = Refit(PlainRun(repaired, program, sizes_of(architecture)), targets, ridge=ridge)
        program.run(refit, inputs_for(repaired, samples))
    for name, fitted in refit.fitted.items():
        for path in program.aliases.get(name, (name,)):
            tensor = tensor_at(repaired, path)
            if tensor is not None:
                tensor.copy_(fitted)
    return repaired
