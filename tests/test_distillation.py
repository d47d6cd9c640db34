"""The distillation loss against a plain one, at its ends, and where its gradients go."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import oracles
from transprune.training.tasks import distillation_loss


def batch(samples=6, classes=5, *, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
def test_it_equals_the_formula_worked_out_sample_by_sample(weight, temperature, seed):
    student, teacher, labels = batch(seed=seed)
    loss = distillation_loss(student, teacher, labels, weight=weight, temperature=temperature)
    plain = oracles.distillation_loss(student.numpy(), teacher.numpy(), labels.numpy(), weight, temperature)
    assert loss.item() == pytest.approx(plain, rel=1e-9)


def test_the_defaults_are_the_papers():
    student, teacher, labels = batch()
    plain = oracles.distillation_loss(student.numpy(), teacher.numpy(), labels.numpy(), 0.9, 4.0)
    assert distillation_loss(student, teacher, labels).item() == pytest.approx(plain)


def test_at_weight_zero_it_is_the_cross_entropy_and_the_teacher_does_not_matter():
    student, teacher, labels = batch()
    expected = F.cross_entropy(student, labels)
    assert distillation_loss(student, teacher, labels, weight=0.0) == expected
    assert distillation_loss(student, -7 * teacher, labels, weight=0.0) == expected


def test_at_weight_one_the_labels_do_not_matter():
    student, teacher, labels = batch()
    losses = [distillation_loss(student, teacher, (labels + shift) % 5, weight=1.0) for shift in range(5)]
    assert len({loss.item() for loss in losses}) == 1
    assert losses[0] > 0


def test_a_student_that_agrees_with_its_teacher_has_only_the_labels_to_learn():
    student, _, labels = batch()
    shifted = student + torch.arange(6)[:, None]  # a softmax does not see a constant
    assert distillation_loss(student, shifted, labels, weight=1.0).item() == pytest.approx(0, abs=1e-12)
    half = distillation_loss(student, shifted, labels, weight=0.5)
    assert half.item() == pytest.approx(0.5 * F.cross_entropy(student, labels).item())


def test_no_gradient_flows_to_the_teacher_and_the_students_is_right():
    student, teacher, labels = batch()
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda logits: distillation_loss(logits, teacher.detach(), labels), student)


def test_the_gradient_points_the_student_at_the_teacher():
    student, teacher, labels = batch()
    student.requires_grad_()
    distillation_loss(student, teacher, labels, weight=1.0, temperature=1.0).backward()
    expected = (student.softmax(1) - teacher.softmax(1)) / len(labels)
    assert torch.allclose(student.grad, expected)


def test_at_high_temperature_the_gradient_keeps_its_size():
    student, teacher, labels = batch(scale=1.0)
    student.requires_grad_()
    sizes = []
    for temperature in (100.0, 1000.0):
        student.grad = None
        distillation_loss(student, teacher, labels, weight=1.0, temperature=temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_it_is_a_mean_over_the_batch():
    student, teacher, labels = batch()
    twice = distillation_loss(student.repeat(2, 1), teacher.repeat(2, 1), labels.repeat(2))
    assert twice.item() == pytest.approx(distillation_loss(student, teacher, labels).item())


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = distillation_loss(student, -student.detach(), torch.tensor([1]))
    loss.backward()
    assert np.isfinite(loss.item())
    assert student.grad.isfinite().all()


def test_at_low_precision_teacher_and_student_are_still_told_apart():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(64, 10, generator=generator).bfloat16()
    student = (teacher.float() + 0.1 * torch.randn(64, 10, generator=generator)).bfloat16()
    labels = torch.zeros(64, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(student, teacher, labels, weight=1.0)
    exact = distillation_loss(student.double(), teacher.double(), labels, weight=1.0)
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
