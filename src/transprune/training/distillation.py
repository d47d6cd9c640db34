"""Knowledge transfer from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.errors import OptionError
from transprune.runtime.structures import outline, tensors_in

Loss = Callable[[Any, Any], Tensor]
"""From outputs and targets to one number."""


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Any,
    *,
    weight: float = 0.9,
    temperature: float = 4.0,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """(1 − λ) · loss(student, targets) + λ · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), for logits.

    The divergence is a mean over all predictions: over the batch, and over the pixels where every pixel has logits.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.3, with λ = 0.9 and T = 4, after Hinton et al., 2015,
    arXiv:1503.02531.

    Deviation: λ weighs the teacher's part, and T² keeps the two parts' gradients on one scale, as in the authors' code;
    the formula as printed puts λ on the labels and has no T².

    Args:
        student_logits: [batch, classes, ...].
        teacher_logits: [batch, classes, ...]; no gradient flows to them.
        targets: What `loss` compares the student with; for cross-entropy the class of each prediction [batch, ...].
        weight: λ in [0, 1]; 0 ignores the teacher.
        temperature: T, above zero.
        loss: Of the student's logits and the targets.

    Raises:
        OptionError: Student and teacher do not return one tensor each, of one shape.
    """
    _check_same_shapes(student_logits, teacher_logits)
    from_targets = loss(student_logits, targets)
    student, teacher = (_at_least_float32(each) for each in (student_logits, teacher_logits.detach()))
    from_teacher = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="sum",
        log_target=True,
    ) / (student_logits.numel() // student_logits.shape[1])
    return (1 - weight) * from_targets + weight * temperature**2 * from_teacher


def _at_least_float32(logits: Tensor) -> Tensor:
    """Teacher and student differ by less than bfloat16 tells apart once the temperature has brought them together."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def imitation_loss(
    student_outputs: Any, teacher_outputs: Any, targets: Any, *, weight: float = 0.9, loss: Loss = F.mse_loss
) -> Tensor:
    """(1 − λ) · loss(student, targets) + λ · mean squared difference of student and teacher, for outputs of any kind.

    Args:
        student_outputs: A tensor, or tuples, lists and dicts of tensors; each tensor counts the same.
        teacher_outputs: The same structure; no gradient flows to it.
        targets: What `loss` compares the student with.
        weight: λ in [0, 1]; 0 ignores the teacher.
        loss: Of the student's outputs and the targets.

    Raises:
        OptionError: The outputs of student and teacher differ in structure or shape.
    """
    _check_same_shapes(student_outputs, teacher_outputs)
    pairs = zip(tensors_in(student_outputs), tensors_in(teacher_outputs), strict=True)
    from_teacher = torch.stack([F.mse_loss(student, teacher.detach()) for student, teacher in pairs]).mean()
    return (1 - weight) * loss(student_outputs, targets) + weight * from_teacher


def _check_same_shapes(student: Any, teacher: Any) -> None:
    shapes = [[tensor.shape for tensor in tensors_in(outputs)] for outputs in (student, teacher)]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise OptionError(
            f"cannot compare the student's outputs ({outline(student)}) with the teacher's ({outline(teacher)}): "
            "expected tensors of the same shapes; give the task a distillation_loss of its own"
        )
