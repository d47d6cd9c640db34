"""Plain training, distillation and evaluation."""

import copy

import pytest
import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.data import Augmentation, ImageData, LoaderData, MemorySplit
from transprune.errors import DataError, DivergenceError, OptionError
from transprune.options import DistillationOptions, TrainingOptions
from transprune.shrinking.shrink import shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.training import faults
from transprune.training.batches import Batch
from transprune.training.evaluation import Meter, evaluate, evaluate_batches, evaluation_mode
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import distill, estimate_statistics, train
from transprune.training.update import cosine_schedule, sgd


def two_colours(samples=64, seed=0):
    """Images [samples, 1, 4, 4] that are dark (class 0) or bright (class 1): any network can tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    noise = torch.randint(0, 60, (samples, 1, 4, 4), generator=generator)
    images = (noise + 180 * labels[:, None, None, None]).to(torch.uint8)
    split = MemorySplit(images=images, labels=labels)
    return ImageData(
        name="two colours",
        train=split,
        test=split,
        classes=("dark", "bright"),
        image_size=(1, 4, 4),
        mean=(0.45,),
        std=(0.36,),
        augmentation=Augmentation(),
    )


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


SHORT = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "warm_up_epochs": 1}


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_training_learns_an_easy_task():
    data = two_colours()
    trained = train(small_network(), data, TrainingOptions(**SHORT))
    assert evaluate(trained, data).top1 == 100.0


def test_training_leaves_the_network_it_was_given_untouched():
    network = small_network().train()
    before = state_of(network)
    train(network, two_colours(), TrainingOptions(**SHORT))
    assert_same_state(before, network.state_dict())
    assert network.training


def test_the_same_seed_gives_the_same_weights_bit_for_bit_whatever_the_callers_random_state():
    data, network = two_colours(), small_network()
    torch.manual_seed(1)
    first = train(network, data, TrainingOptions(**SHORT), setup=Setup(seed=3))
    torch.manual_seed(2)
    second = train(network, data, TrainingOptions(**SHORT), setup=Setup(seed=3))
    other = train(network, data, TrainingOptions(**SHORT), setup=Setup(seed=4))
    assert_same_state(first.state_dict(), second.state_dict())
    assert not torch.equal(first[0].weight, other[0].weight)


def test_every_epoch_is_reported_and_the_last_is_always_tested():
    seen = []
    train(small_network(), two_colours(), TrainingOptions(**SHORT, evaluate_every=3), setup=Setup(on_epoch=seen.append))
    assert [figures["epoch"] for figures in seen] == [1, 2, 3, 4]
    assert ["test_top1" in figures for figures in seen] == [False, False, True, True]
    assert all(figures["phase"] == "teacher" and figures["epochs"] == 4 for figures in seen)


def test_after_every_step_the_callback_sees_how_far_the_phase_is():
    seen = []

    def look(loop):
        seen.append((loop.epoch, loop.steps, loop.steps_an_epoch, loop.meter.evaluation().loss > 0))

    train(small_network(), two_colours(), TrainingOptions(**SHORT), setup=Setup(on_step=look))
    assert seen == [(epoch, step, 4, True) for epoch in (1, 2, 3, 4) for step in (1, 2, 3, 4)]


def test_a_student_follows_a_teacher_that_contradicts_the_labels():
    data = two_colours()
    contrary = train(small_network(1), data, TrainingOptions(**SHORT))
    with torch.no_grad():
        contrary[4].weight.neg_()
        contrary[4].bias.neg_()
    assert evaluate(contrary, data).top1 == 0.0
    student = distill(small_network(2), contrary, data, DistillationOptions(**SHORT, weight=1.0))
    assert evaluate(student, data).top1 == 0.0
    on_labels = distill(small_network(2), contrary, data, DistillationOptions(**SHORT, weight=0.0))
    assert evaluate(on_labels, data).top1 == 100.0


def test_distilling_leaves_student_and_teacher_untouched():
    student, teacher = small_network(1), small_network(2).train()
    before = state_of(student), state_of(teacher)
    distill(student, teacher, two_colours(), DistillationOptions(**SHORT))
    assert_same_state(before[0], student.state_dict())
    assert_same_state(before[1], teacher.state_dict())
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_loss_that_becomes_no_number_stops_the_training_and_names_phase_and_layer():
    place = "phase 'teacher', epoch 1, step 2"
    expected = f"^cannot go on with {place}: the loss is nan; the output of the layer '4' is the first that is not"
    with pytest.raises(DivergenceError, match=expected):
        train(small_network(), two_colours(), TrainingOptions(**{**SHORT, "learning_rate": 1e38}))


def test_a_loss_that_is_no_number_from_the_start_stops_the_training_before_any_step():
    network = small_network()
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"begin phase 'teacher': the loss of the first batch is nan; look for"):
        train(network, two_colours(), TrainingOptions(**SHORT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"batch_size": 1}, "batch_size=1: expected at least 2"),
        (
            {"epochs": 3, "warm_up_epochs": 3},
            "epochs=3 and warm_up_epochs=3: expected a warm-up of at least 0 epochs that is shorter",
        ),
        ({"learning_rate": float("nan")}, "learning_rate=nan: expected at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        TrainingOptions(**options)


@pytest.mark.parametrize("options", [{"weight": 1.5}, {"weight": -0.1}, {"distillation_temperature": 0.0}])
def test_distillation_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match=r"expected a weight in \[0, 1\] and a temperature above 0"):
        DistillationOptions(**options)


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_zero_at_the_very_end():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = sgd([parameter], 0.1, 0.9, 0.0)
    schedule = cosine_schedule(optimizer, 10, epochs=10, warm_up_epochs=2)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert max(rates) == pytest.approx(0.1)
    assert 0 <= rates[-1] < 1e-4
    assert all(rate > 0 for rate in rates), "no step may train at rate zero"


def test_accuracy_counts_the_five_most_probable_classes():
    logits = torch.eye(10)[[0, 1, 2, 3]] + torch.linspace(0, 0.5, 10).flip(0)
    labels = torch.tensor([0, 1, 9, 3])
    batches = [Batch((logits[:3],), labels[:3]), Batch((logits[3:],), labels[3:])]
    figures = evaluate_batches(lambda images: images, batches, classification())
    assert figures.top1 == 75.0
    assert figures.top5 == 75.0
    assert figures.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_an_average_over_nothing_is_no_number():
    assert str(Meter(classification(), training=True).evaluation().top1) == "nan"
    with pytest.raises(DataError, match="on no samples"):
        Meter(classification()).evaluation()


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    network = small_network().train()
    network[1].eval()
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert not network[1].training


def test_estimated_statistics_are_those_of_the_training_images():
    data = two_colours(samples=64)
    network = small_network()
    estimated = estimate_statistics(network, data, batch_size=64)
    images = (data.train.images / 255 - 0.45) / 0.36
    features = network[0](images)
    assert torch.allclose(estimated[1].running_mean, features.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(estimated[1].running_var, features.var((0, 2, 3)), atol=1e-4)
    assert estimated[1].momentum == network[1].momentum
    assert torch.equal(network[1].running_mean, torch.zeros(4))


class WritesDownItsWidth(nn.Module):
    """A smaller one runs the operators that were traced."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, momentum=momentum)
        self.classifier = nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(images))
        return self.classifier(features.view(-1, 6, 36).mean(2))


def traced(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    network, images = WritesDownItsWidth(momentum), torch.zeros(2, 1, 8, 8)
    student = shrink(network, Architecture(widths={"conv": 3}), images)
    assert isinstance(student, TracedNetwork)
    return student


@pytest.mark.parametrize("make", [WritesDownItsWidth, traced], ids=["own", "traced"])
def test_estimated_statistics_weigh_every_batch_by_its_images(make):
    network = make()
    batches = [(torch.randn(size, 1, 8, 8) * size**0.5, torch.zeros(size, dtype=torch.int64)) for size in (16, 16, 2)]
    estimated = estimate_statistics(network, LoaderData(train=batches, test=batches, example=batches[0][0]))
    features = [network.conv(images) for images, _ in batches]
    for found, measure in ((estimated.norm.running_mean, torch.mean), (estimated.norm.running_var, torch.var)):
        torch.testing.assert_close(found, sum(len(each) * measure(each, (0, 2, 3)) for each in features) / 34)
    assert network.norm.running_mean.tolist() == [0] * network.norm.num_features


@pytest.mark.parametrize("momentum", [None, 0.1, 0.4])
def test_norms_of_a_traced_network_follow_the_batches_as_their_modules_would(momentum):
    network = traced(momentum)
    norm = copy.deepcopy(network.norm)
    for _ in range(3):
        images = torch.randn(8, 1, 8, 8)
        network.train()(images)
        norm.train()(network.conv(images))
    assert_same_state(network.norm.state_dict(), norm.state_dict())
    assert network.norm.running_mean.any()


def test_training_on_a_copy_does_not_share_memory_with_the_start():
    network = small_network()
    trained = train(copy.deepcopy(network), two_colours(), TrainingOptions(**SHORT))
    assert not torch.equal(trained[0].weight, network[0].weight)


class Answering(nn.Module):
    """Gives its logits in a dict, as networks of Hugging Face do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return {"hidden": images, "logits": self.network(images)}


def test_a_teacher_need_only_run():
    """Whatever form it has, the student learns the same."""
    teacher, data = small_network(seed=1).eval(), two_colours()
    options = DistillationOptions(**SHORT | {"epochs": 1, "warm_up_epochs": 0})
    expected = distill(small_network(), teacher, data, options).state_dict()
    traced = torch.jit.trace(teacher, torch.zeros(2, 1, 4, 4))
    for form in (Answering(teacher), teacher.forward, traced):
        found = distill(small_network(), form, data, options).state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=f"{form}: {name}")


def test_labels_that_are_all_equal_are_said(monkeypatch):
    said = []
    monkeypatch.setattr(faults.log, "warning", lambda text, *figures: said.append(text % figures))
    images = torch.randn(32, 1, 4, 4)
    for labels in (torch.arange(32) % 2, torch.ones(32, dtype=torch.int64)):
        data = [(images[at : at + 16], labels[at : at + 16]) for at in (0, 16)]
        train(small_network(), (data, data), TrainingOptions(**{**SHORT, "epochs": 1, "warm_up_epochs": 0}))
    assert [text.partition(",")[0] for text in said] == ["phase 'teacher': all 16 labels of the first batch are 1"]
