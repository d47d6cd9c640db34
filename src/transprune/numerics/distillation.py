"""Knowledge transfer from a teacher's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, weight: float = 0.9, temperature: float = 4.0
) -> Tensor:
    """(1 − λ) · CE(student, labels) + λ · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.3, with λ = 0.9 and T = 4, after Hinton et al., 2015,
    arXiv:1503.02531.

    Deviation: λ weighs the teacher's part, and T² keeps the two parts' gradients on one scale, as in the authors' code;
    the formula as printed puts λ on the labels and has no T².

    Args:
        student_logits: [batch, classes].
        teacher_logits: [batch, classes]; no gradient flows to them.
        labels: Class of each sample [batch].
        weight: λ in [0, 1]; 0 ignores the teacher.
        temperature: T, above zero.
    """
    from_labels = F.cross_entropy(student_logits, labels)
    from_teacher = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * from_labels + weight * temperature**2 * from_teacher
