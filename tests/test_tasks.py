"""Tasks: the default one equals a plain loop, the ready ones equal slow figures, and wrong ones are refused early."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, r2_score
from torch import nn
from torch.nn import functional as F

from shapes import iou_pixel_by_pixel
from test_searching import Residual
from test_training import SHORT, assert_same_state, small_network, two_colours
from transprune.budget import Limit
from transprune.costs import MACS
from transprune.data import LoaderData, make_loader
from transprune.errors import DataError, DivergenceError, OptionError
from transprune.options import DistillationOptions, SearchOptions, TrainingOptions
from transprune.reading.inspection import inspect
from transprune.runtime.structures import on_device, outline, tensors_in
from transprune.scores.evidence import distance_of
from transprune.searching.search import search
from transprune.tas.bilevel import Bilevel
from transprune.training.batches import Batch
from transprune.training.evaluation import Evaluation, evaluate, evaluate_batches
from transprune.training.loop import Setup
from transprune.training.tasks import (
    Metric,
    Task,
    classification,
    multi_label,
    regression,
    segmentation,
    token_classification,
)
from transprune.training.train import distill, train

# The default task against a loop in which everything is written out.


def learning_rates(steps, peak, warm_up):
    """One for each step: up in a straight line over the share `warm_up`, then down half a cosine, which goes on."""
    rising = warm_up * steps
    for step in range(1, steps + 1):
        if step <= rising:
            yield peak * step / rising
        else:
            yield peak * (1 + math.cos(math.pi * (step - rising) / (steps + 1 - rising))) / 2


def train_plainly(network, data, loss_of, *, epochs, batch_size, learning_rate, warm_up_epochs):
    """Trains in place; gives loss and share of right answers of every epoch."""
    loader = make_loader(data.train, data, batch_size=batch_size, train=True, seed=0, device="cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rates = learning_rates(epochs * len(loader), learning_rate, warm_up_epochs / epochs)
    figures = []
    for _ in range(epochs):
        network.train()
        total, right, samples = 0.0, 0, 0
        for images, labels in loader:
            optimizer.param_groups[0]["lr"] = next(rates)
            logits = network(images)
            loss = loss_of(logits, images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            right += sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
            samples += len(labels)
        figures.append((total / samples, 100 * right / samples))
    return figures


def reported(figures):
    return [(each["loss"], each["top1"]) for each in figures]


def assert_close_figures(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def assert_close_states(first, second):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6, msg=name)


def test_training_without_a_task_equals_a_plain_loop_with_cross_entropy():
    data, plain, seen = two_colours(), small_network(), []
    trained = train(small_network(), data, TrainingOptions(**SHORT), setup=Setup(on_epoch=seen.append))
    expected = train_plainly(plain, data, lambda logits, _, labels: F.cross_entropy(logits, labels), **SHORT)
    assert_close_figures(reported(seen), expected)
    assert_close_states(trained.state_dict(), plain.state_dict())


def test_distilling_without_a_task_equals_a_plain_loop_with_softened_logits():
    data, plain, seen = two_colours(), small_network(), []
    teacher = train(small_network(1), data, TrainingOptions(**SHORT))
    options = DistillationOptions(**SHORT, weight=0.7, distillation_temperature=3.0)
    trained = distill(small_network(), teacher, data, options, setup=Setup(on_epoch=seen.append))

    def loss_of(logits, images, labels):
        soft = (teacher(images).detach() / 3).softmax(1)
        divergence = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum() / len(labels)
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * 9 * divergence

    assert_close_figures(reported(seen), train_plainly(plain, data, loss_of, **SHORT))
    assert_close_states(trained.state_dict(), plain.state_dict())


def test_an_epoch_of_the_search_without_a_task_equals_the_two_steps_written_out():
    data = two_colours()
    torch.manual_seed(0)
    model = Residual()
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    options = SearchOptions(epochs=1, batch_size=16, architecture_learning_rate=0.05)
    limits = [Limit(MACS, 9000)]

    def bilevel():
        torch.manual_seed(0)
        return Bilevel(model, data, options, space=space, limits=limits)

    searching, plain = bilevel(), bilevel()
    figures = searching.run_epoch()
    losses = []
    for (images,), labels, *_ in plain.weight_batches:
        with torch.no_grad():
            selection = plain.select(10.0)
        loss = F.cross_entropy(plain.supernet(selection, images), labels)
        plain.weight_optimizer.zero_grad()
        loss.backward()
        plain.weight_optimizer.step()
        plain.schedule.step()
        losses.append(loss.item())
        others = next(plain.architecture_batches)
        loss = (
            F.cross_entropy(plain.supernet(plain.select(10.0), *others.inputs), others.targets) + 2.0 * plain.penalty()
        )
        plain.architecture_optimizer.zero_grad()
        loss.backward(inputs=list(plain.parameters.parameters()))
        plain.architecture_optimizer.step()
    assert figures["loss"] == pytest.approx(sum(losses) / len(losses))
    assert_same_state(searching.parameters.state_dict(), plain.parameters.state_dict())
    assert_same_state(searching.supernet.state_dict(), plain.supernet.state_dict())


def test_without_a_task_the_figures_have_the_names_of_a_classification():
    data, seen, found = two_colours(), [], []
    trained = train(small_network(), data, TrainingOptions(**SHORT), setup=Setup(on_epoch=seen.append))
    torch.manual_seed(0)
    search(Residual(), data, "macs=0.5", SearchOptions(epochs=1, batch_size=16), setup=Setup(on_epoch=found.append))
    assert set(seen[0]) == {
        *("phase", "epoch", "epochs", "loss", "top1", "learning_rate", "seconds"),
        *("test_loss", "test_top1"),  # the label of one of two classes is always among the first five
    }
    assert {name for name in found[0] if "top" in name or "loss" in name} == {
        *("loss", "top1", "validation_loss", "validation_top1"),
    }
    assert list(evaluate(trained, data).to_json()) == ["top1", "loss"]
    six = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
    of_six = [(torch.zeros(4, 4), torch.arange(4))]
    data = LoaderData(train=of_six, test=of_six, example=torch.zeros(1, 4))
    assert list(evaluate(six, data).to_json()) == ["top1", "top5", "loss"]


# Figures.


def evaluated(task, outputs, targets, sizes):
    parts = zip(outputs.split(sizes), targets.split(sizes), strict=True)
    return evaluate_batches(lambda found: found, [Batch((found,), wanted) for found, wanted in parts], task)


SIZES = [[20], [7, 13], [1, 1, 18]]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_figures_of_a_regression_are_those_of_scikit_learn_however_the_samples_are_batched(sizes):
    generator = torch.Generator().manual_seed(0)
    targets = 50 + torch.randn(20, 3, generator=generator)
    outputs = targets + 0.5 * torch.randn(20, 3, generator=generator)
    figures = evaluated(regression(), outputs, targets, sizes)
    assert figures.r2 == pytest.approx(r2_score(targets, outputs), rel=1e-5)
    assert figures.mse == figures.loss == pytest.approx(((outputs - targets) ** 2).mean().item())


@pytest.mark.parametrize("ignored", [-100, 0, 255])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_figures_of_a_segmentation_are_those_counted_pixel_by_pixel_however_the_images_are_batched(sizes, ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, 4, 3, generator=generator)
    logits[:, 4] = -9.0  # a class that is neither predicted nor there
    targets = torch.randint(4, (20, 4, 3), generator=generator)
    targets[:, 0, 0] = ignored
    figures = evaluated(segmentation(5, ignore_index=ignored), logits, targets, sizes)
    mean_iou, accuracy = iou_pixel_by_pixel(logits, targets, classes=5, ignored=ignored)
    assert figures.mean_iou == pytest.approx(mean_iou)
    assert figures.pixel_accuracy == pytest.approx(accuracy)


def test_several_labels_are_learned_and_their_figures_are_those_of_sklearn():
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(40, 5, generator=generator), (torch.rand(40, 5, generator=generator) > 0.6).float()
    figures = evaluated(multi_label(), logits, wanted, [7, 13, 20])
    answers = (logits > 0).int()
    for name, average in (("f1", "macro"), ("micro_f1", "micro")):
        assert getattr(figures, name) == pytest.approx(100 * f1_score(wanted, answers, average=average))
    assert figures.exact == pytest.approx(100 * accuracy_score(wanted, answers))
    nothing = torch.full((3, 2), -1.0)
    assert evaluated(multi_label(), nothing, torch.zeros(3, 2), [3]).f1 == 0  # no class occurs


def test_of_several_labels_a_student_learns_the_probability_of_each():
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    wanted = (torch.rand(6, 3) > 0.5).float()
    found = multi_label().distillation_loss_of(student, teacher, wanted, weight=0.7, temperature=2.0)
    ours, theirs = (torch.distributions.Bernoulli(logits=each / 2) for each in (student, teacher))
    expected = 0.3 * F.binary_cross_entropy_with_logits(student, wanted) + 0.7 * 4 * (
        torch.distributions.kl_divergence(theirs, ours).mean()
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("targets", [torch.tensor([0, 1]), torch.zeros(2, 4)], ids=["one label", "other classes"])
def test_targets_that_are_no_rows_of_labels_are_refused(targets):
    with pytest.raises(DataError, match=r"both \[batch, classes\]"):
        multi_label().loss(torch.zeros(2, 3), targets)
    with pytest.raises(DataError, match="multi_label"):
        classification().metric("top1").measure(torch.zeros(2, 3), torch.zeros(2, 3))


def test_a_segmentation_without_a_pixel_that_counts_costs_nothing():
    logits = torch.randn(2, 5, 4, 3, requires_grad=True)
    loss = segmentation(5, ignore_index=255).loss(logits, torch.full((2, 4, 3), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_metric_may_be_a_plain_function_and_batches_then_count_by_their_samples():
    outputs, targets = torch.tensor([[1.0], [1.0], [4.0]]), torch.zeros(3, 1)
    task = Task(loss=F.mse_loss, metrics={"error": F.l1_loss, "largest": lambda found, wanted: found[:, 0]})
    figures = evaluated(task, outputs, targets, [2, 1])
    assert figures.metrics == {"error": 2.0, "largest": 2.0}
    assert figures.loss == pytest.approx(6.0)


def test_an_evaluation_gives_its_metrics_as_attributes_and_no_others():
    figures = Evaluation(0.5, {"r2": 0.9})
    assert (figures.loss, figures.r2) == (0.5, 0.9)
    with pytest.raises(AttributeError, match="the evaluation has no figure 'top1'"):
        _ = figures.top1


def test_training_reports_the_main_metric_and_evaluation_all():
    seen = []
    batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(2)]
    data = LoaderData(train=batches, test=batches, example=batches[0][0])
    train(
        nn.Linear(2, 1),
        data,
        TrainingOptions(epochs=1, warm_up_epochs=0),
        task=regression(),
        setup=Setup(on_epoch=seen.append),
    )
    names = {name for name in seen[0] if name.endswith(("r2", "mse", "top1"))}
    assert names == {"r2", "test_r2", "test_mse"}


# Losses of a student.


def following(outputs="values", **changes):
    return Task(loss=F.mse_loss if outputs == "values" else F.cross_entropy, outputs=outputs, **changes)


def test_a_student_of_values_imitates_them_by_their_squared_difference_in_any_structure():
    draw = torch.Generator().manual_seed(0)
    student, teacher = ({"a": torch.randn(4, 2, generator=draw), "b": [torch.randn(4, generator=draw)]} for _ in "st")
    task = Task(loss=lambda outputs, targets: outputs["a"].sum() - targets)
    loss = task.distillation_loss_of(student, teacher, 3.0, weight=0.25, temperature=9.0)
    differences = [((student["a"] - teacher["a"]) ** 2).mean(), ((student["b"][0] - teacher["b"][0]) ** 2).mean()]
    assert loss.item() == pytest.approx((0.75 * (student["a"].sum() - 3) + 0.25 * sum(differences) / 2).item())


def test_caches_are_not_compared_for_a_student_without_some_layers_has_fewer_in_them():
    cache_utils = pytest.importorskip("transformers.cache_utils")
    task = Task(loss=lambda outputs, targets: outputs["values"].sum())

    def given(layers, heads):
        cache = cache_utils.DynamicCache()
        for place in range(layers):
            cache.update(torch.zeros(2, heads, 3, 4), torch.zeros(2, heads, 3, 4), place)
        return {"values": torch.full((2, 3), float(layers)), "past_key_values": cache}

    loss = task.distillation_loss_of(given(2, 1), given(3, 4), None, weight=1.0, temperature=1.0)
    assert loss.item() == 1.0
    assert float(distance_of(task)(given(2, 1), given(3, 4))) == 1.0


def test_a_student_of_pixels_is_taught_as_if_each_pixel_were_a_sample():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, 3, 5, generator=draw)
    labels = torch.randint(4, (6, 3, 5), generator=draw)
    given = {"weight": 0.6, "temperature": 2.0}
    by_pixel = [logits.movedim(1, -1).reshape(-1, 4) for logits in (student, teacher)]
    whole = following("logits").distillation_loss_of(student, teacher, labels, **given)
    flat = classification().distillation_loss_of(*by_pixel, labels.flatten(), **given)
    assert whole.item() == pytest.approx(flat.item(), rel=1e-5)


@pytest.mark.parametrize("outputs", ["values", "logits"])
def test_no_gradient_flows_to_the_teacher(outputs):
    student, teacher = torch.randn(2, 4, 3, requires_grad=True).unbind()
    student, teacher = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    targets = torch.zeros(4, 3) if outputs == "values" else torch.zeros(4, dtype=torch.int64)
    following(outputs).distillation_loss_of(student, teacher, targets, weight=0.5, temperature=2.0).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_distillation_loss_of_ones_own_replaces_the_default_whatever_the_weight():
    asked = []

    def contrary(student, teacher, targets):
        asked.append(targets)
        return F.mse_loss(student, -teacher)

    batches = [
        (torch.randn(32, 2, generator=torch.Generator().manual_seed(seed)), torch.ones(32, 1)) for seed in (0, 1)
    ]
    data = LoaderData(train=batches, test=batches, example=batches[0][0])
    torch.manual_seed(0)
    teacher, student = nn.Linear(2, 1), nn.Linear(2, 1)
    options = DistillationOptions(epochs=40, warm_up_epochs=0, weight_decay=0.0, weight=0.0)
    student = distill(student, teacher, data, options, task=following(distillation_loss=contrary))
    assert torch.allclose(student.weight, -teacher.weight, atol=0.05)
    assert torch.equal(asked[0], torch.ones(32, 1))


def test_outputs_that_cannot_be_compared_are_refused_with_both_shapes():
    with pytest.raises(OptionError, match=r"student's outputs \(\[4, 2\]\) with the teacher's \(\[4, 3\]\).*own"):
        following().distillation_loss_of(
            torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4, 2), weight=0.5, temperature=1.0
        )


# What is wrong is said at the first batch.


def short_training(task=None, batches=None, network=None, **changes):
    batches = [(torch.randn(8, 2), torch.randn(8, 1))] if batches is None else batches
    data = LoaderData(train=batches, test=batches, example=torch.zeros(1, 2))
    network = network or nn.Linear(2, 1)
    options = TrainingOptions(epochs=1, warm_up_epochs=0)
    return train(network, data, options, task=task or Task(loss=F.mse_loss, **changes))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda outputs, targets: (outputs - targets) ** 2,
            r"loss: it returned a tensor \[8, 1\]; expected one number",
        ),
        (lambda outputs, targets: 0.5, "loss: it returned a float; expected one number"),
        (lambda outputs, targets: F.mse_loss(outputs.detach(), targets), "does not depend on any weight"),
    ],
)
def test_a_loss_that_nothing_can_learn_from_is_refused(loss, message):
    with pytest.raises(OptionError, match=message):
        short_training(Task(loss=loss))


def test_inputs_that_are_no_numbers_are_noticed_at_the_first_batch_of_training_and_search():
    batches = [(torch.full((8, 2), float("nan")), torch.zeros(8, 1))]
    with pytest.raises(DivergenceError, match="begin phase 'teacher': the loss of the first batch is nan"):
        short_training(batches=batches)
    data = LoaderData(train=batches, test=batches, search=(batches, batches), example=torch.zeros(1, 2))
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    with pytest.raises(DivergenceError, match="begin phase 'search': the loss of the first batch is nan"):
        search(network, data, "params=0.5", SearchOptions(epochs=1), task=Task(loss=F.mse_loss))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, targets: 0.5, "metric 'score': for 8 samples it returned a float"),
        (
            lambda outputs, targets: torch.zeros(3),
            r"metric 'score': for 8 samples it returned \[3\]; expected .* \[8, ",
        ),
        (lambda outputs, targets: torch.zeros(8, 2), r"metric 'score': it ends in \[2\]; expected one number"),
        (Metric(lambda outputs, targets: torch.zeros(8), finish=lambda mean: torch.ones(2)), r"it ends in \[2\]"),
    ],
)
def test_a_metric_that_gives_no_figure_is_refused_by_name(metric, message):
    with pytest.raises(OptionError, match=message):
        short_training(metrics={"score": metric})


@pytest.mark.parametrize("name", ["loss", "seconds", "to_json", "mean iou", ""])
def test_a_metric_may_not_have_the_name_of_another_figure(name):
    with pytest.raises(OptionError, match=f"cannot call a metric '{name}'"):
        Task(loss=F.mse_loss, metrics={name: F.l1_loss})


def test_outputs_of_an_unknown_kind_are_refused():
    with pytest.raises(OptionError, match=r"outputs='probabilities'.*expected 'values', 'logits' or 'binary'"):
        Task(loss=F.mse_loss, outputs="probabilities")


def test_targets_of_another_shape_are_refused_instead_of_spread_over_the_outputs():
    with pytest.raises(DataError, match=r"outputs \[8, 1\] with targets \[8\]: expected one shape"):
        short_training(regression(), [(torch.randn(8, 2), torch.randn(8))])


def test_a_batch_that_cannot_be_taken_apart_is_described():
    batches = [{"image": torch.zeros(8, 2), "label": torch.zeros(8)}]
    with pytest.raises(
        DataError, match=r"of the train loader, a dict of image: \[8, 2\], label: \[8\]: expected a tuple or list"
    ):
        short_training(batches=batches)
    with pytest.raises(DataError, match=r"cannot take apart a batch of the train loader.*KeyError\('target'\)"):
        short_training(batches=batches, split=lambda batch: (batch["image"], batch["target"]))


# Values made of tensors.


def test_moving_a_value_keeps_its_structure():
    value = Batch(({"a": [torch.zeros(2), "text"]}, (1, None)), torch.ones(3))
    moved = on_device(value, "meta")
    assert isinstance(moved, Batch)
    assert [tensor.device.type for tensor in tensors_in(moved)] == ["meta", "meta"]
    assert moved.inputs[0]["a"][1] == "text"
    assert moved.inputs[1] == (1, None)
    assert (
        outline(moved.inputs) == "a tuple of a dict of a: a list of [2] and a str and a tuple of a int and a NoneType"
    )


def test_of_a_long_list_a_message_shows_the_first_entries():
    assert outline([torch.zeros(2)] * 4) == "a list of [2] and [2] and [2] and [2]"
    assert outline([torch.zeros(2)] * 16) == "a list of [2] and [2] and [2] and 13 more"


def test_a_batch_counts_its_samples_by_its_first_input():
    assert Batch((torch.zeros(5, 2), torch.zeros(3)), None).samples == 5
    assert Batch(({"words": torch.zeros(4, 9)},), None).samples == 4
    assert Batch((3,), torch.zeros(7)).samples == 1


def test_an_output_that_is_no_number_answers_nothing_right():
    logits, labels = torch.tensor([[torch.nan, 0.0], [torch.nan, torch.nan], [1.0, 0.0]]), torch.zeros(3).long()
    assert classification().metric("top1").measure(logits, labels).tolist() == [False, False, True]
    assert token_classification().metric("token_accuracy").measure(logits[None], labels[None]).tolist() == [[1, 3]]
    counts = segmentation(2).metric("mean_iou").measure(logits.T[None, :, None], labels[None, None])
    assert counts[0].tolist() == [[1, 0], [1, 0], [3, 0]]
