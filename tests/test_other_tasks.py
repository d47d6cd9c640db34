"""The whole job on tasks that are no classification: regression, segmentation, two inputs, several outputs."""

import copy
from collections import namedtuple

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import transprune
from shapes import CLASSES, SmallUNet, shapes_data
from test_training import assert_same_state, state_of
from transprune import DistillationOptions, LoaderData, Metric, SearchOptions, Task, TrainingOptions


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These networks are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options_of(kind, epochs, learning_rate):
    return kind(epochs=epochs, learning_rate=learning_rate, warm_up_epochs=1, weight_decay=1e-3)


def from_trained(epochs, learning_rate=0.01):
    """A search that starts from the teacher's weights."""
    return SearchOptions(
        epochs=epochs, learning_rate=learning_rate, architecture_learning_rate=0.05, start="model", alignment="pad"
    )


def params(network):
    return sum(parameter.numel() for parameter in network.parameters())


def student_of(teacher, found, example):
    """The smaller network with the supernet's weights."""
    origin = copy.deepcopy(teacher)
    origin.load_state_dict(found.weights, strict=False)
    return transprune.shrink(origin, found.architecture, example)


# Regression.


def diabetes():
    """Standardised, 342 patients to learn from and 100 to test on."""
    inputs, targets = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    inputs, targets = inputs / inputs.std(0), ((targets - targets.mean()) / targets.std())[:, None]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = (TensorDataset(inputs[places], targets[places]) for places in (order[:342], order[342:]))
    return LoaderData(train=DataLoader(train, 32, shuffle=True), test=DataLoader(test, 64), example=inputs[:1])


def test_a_regression_at_half_the_parameters_stays_near_its_teacher():
    data, task = diabetes(), transprune.regression()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    teacher = transprune.train(network, data, options_of(TrainingOptions, 20, 0.01), task=task)
    before = state_of(teacher)
    found = transprune.search(teacher, data, "params=0.5", from_trained(10), task=task)
    student = student_of(teacher, found, data.example)
    student = transprune.distill(student, teacher, data, options_of(DistillationOptions, 20, 0.01), task=task)
    networks = network, teacher, student
    untrained, taught, distilled = (transprune.evaluate(network, data, task=task).r2 for network in networks)
    assert untrained < 0.2
    assert taught > 0.45
    assert distilled > taught - 0.05
    assert params(student) == found.actual <= found.target == params(teacher) // 2
    assert_same_state(before, teacher.state_dict())
    assert {"r2", "validation_r2"} <= set(found.history[0])
    assert not any("top1" in name for name in found.history[0])


# Segmentation.


def test_a_u_net_with_fewer_parameters_still_segments():
    data, task = shapes_data(), transprune.segmentation(CLASSES)
    torch.manual_seed(0)
    teacher = transprune.train(SmallUNet(), data, options_of(TrainingOptions, 12, 0.1), task=task)
    found = transprune.search(teacher, data, "macs=0.5", from_trained(3, 0.02), task=task)
    student = transprune.estimate_statistics(student_of(teacher, found, data.example), data, task=task)
    student = transprune.distill(student, teacher, data, options_of(DistillationOptions, 6, 0.1), task=task)
    untrained, taught, distilled = (
        transprune.evaluate(network, data, task=task) for network in (SmallUNet(), teacher, student)
    )
    assert untrained.mean_iou < 35
    assert taught.mean_iou > 75
    assert distilled.mean_iou > taught.mean_iou - 8
    assert distilled.pixel_accuracy > 90
    assert 0.99 * found.target <= found.actual <= found.target
    assert params(student) < params(teacher)
    assert {"mean_iou", "validation_mean_iou"} <= set(found.history[0])


# Two inputs in dict batches.


class TwoInputs(nn.Module):
    """An image [batch, 1, 8, 8] and a row of numbers [batch, 4] to one number [batch, 1]."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(1, 12, 3)
        self.row = nn.Linear(4, 16)
        self.from_image, self.from_row = nn.Linear(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, images, rows):
        features = self.from_image(self.image(images).relu().mean((2, 3)))
        return self.head((features + self.from_row(self.row(rows).relu())).relu())


def image_and_row(samples=96, seed=0):
    """Dict batches, whose target is the mean of the image plus the first number of the row."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 1, 1, 1, generator=draw) + 0.1 * torch.randn(samples, 1, 8, 8, generator=draw)
    rows = torch.randn(samples, 4, generator=draw)
    targets = images.mean((1, 2, 3)) + rows[:, 0]
    named = [
        {"image": image, "row": row, "sum": target[None]}
        for image, row, target in zip(images, rows, targets, strict=True)
    ]
    return LoaderData(
        train=DataLoader(named, 16, shuffle=True),
        test=DataLoader(named, 16),
        example=(images[:1], rows[:1]),
    )


def test_a_model_with_two_inputs_learns_from_dict_batches():
    data = image_and_row()
    task = Task(
        loss=F.mse_loss,
        metrics={"error": F.l1_loss},
        split=lambda batch: ((batch["image"], batch["row"]), batch["sum"]),
    )
    torch.manual_seed(0)
    teacher = transprune.train(TwoInputs(), data, options_of(TrainingOptions, 20, 0.02), task=task)
    found = transprune.search(teacher, data, "params=0.6", from_trained(4), task=task)
    student = transprune.shrink(teacher, found.architecture, data.example)
    student = transprune.distill(student, teacher, data, options_of(DistillationOptions, 20, 0.02), task=task)
    untrained, taught, distilled = (
        transprune.evaluate(network, data, task=task).error for network in (TwoInputs(), teacher, student)
    )
    assert taught < untrained / 3
    assert distilled < untrained / 3
    assert params(student) == found.actual <= found.target


# An auxiliary head in training.

WithAuxiliary = namedtuple("WithAuxiliary", ["main", "auxiliary"])


class Auxiliary(nn.Module):
    """Gives a second output in training alone, as GoogLeNet and Inception do."""

    def __init__(self):
        super().__init__()
        self.body, self.hidden = nn.Linear(4, 16), nn.Linear(16, 24)
        self.main, self.auxiliary = nn.Linear(24, 1), nn.Linear(16, 1)

    def forward(self, rows):
        features = self.body(rows).relu()
        main = self.main(self.hidden(features).relu())
        return WithAuxiliary(main, self.auxiliary(features)) if self.training else main


def main_of(outputs):
    return outputs.main if isinstance(outputs, WithAuxiliary) else outputs


def with_auxiliary(outputs, targets):
    loss = F.mse_loss(main_of(outputs), targets)
    return loss + 0.3 * F.mse_loss(outputs.auxiliary, targets) if isinstance(outputs, WithAuxiliary) else loss


def rows_and_sums():
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    batches = [(part, part.sum(1, keepdim=True)) for part in rows.split(16)]
    return LoaderData(train=batches, test=batches, search=(batches[:2], batches[2:]), example=rows[:1])


def test_outputs_that_are_several_in_training_are_the_losses_matter():
    data = rows_and_sums()
    task = Task(
        loss=with_auxiliary,
        metrics={"error": Metric(lambda outputs, targets: (main_of(outputs) - targets).abs())},
        distillation_loss=lambda student, teacher, targets: F.mse_loss(student.main, teacher),
    )
    torch.manual_seed(0)
    teacher = transprune.train(Auxiliary(), data, options_of(TrainingOptions, 30, 0.05), task=task)
    found = transprune.search(teacher, data, "params=0.6", from_trained(2), task=task)
    student = transprune.shrink(teacher, found.architecture, data.example)
    student = transprune.distill(student, teacher, data, options_of(DistillationOptions, 30, 0.05), task=task)
    untrained, taught, distilled = (
        transprune.evaluate(network, data, task=task).error for network in (Auxiliary(), teacher, student)
    )
    assert taught < untrained / 3
    assert distilled < untrained / 3
    assert student.hidden.out_features < 24 or student.body.out_features < 16
    assert student.auxiliary.in_features == student.body.out_features
