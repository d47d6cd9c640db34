"""Training and distilling one network: teachers, students and baselines."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from transprune.errors import OptionError
from transprune.kernels.feature_maps import use_channels_last_if_suited
from transprune.kernels.normalisation import average_norms
from transprune.options import (
    DEFAULT_PRESET,
    DistillationOptions,
    TrainingOptions,
    at_least,
    from_preset,
)
from transprune.reading.networks import inside, switched, unwrapped
from transprune.reading.trace import axes_along
from transprune.runtime import choose_device, seeded
from transprune.runtime.structures import called, copied, on_device, outline, tensors_in
from transprune.training.batches import AnyData, Batch, Data, Feed, as_data, example_of, feed
from transprune.training.evaluation import evaluate_batches, evaluation_mode
from transprune.training.faults import check_first_loss, warn_of_one_class
from transprune.training.hints import Hints, hint_place
from transprune.training.loop import Loop, Setup
from transprune.training.tasks import Task, classification, each_logits
from transprune.training.update import Update, cosine_schedule, optimizer_of, settled

log = logging.getLogger("transprune.run")

Teacher = nn.Module | Callable[..., Any]
"""Whatever gives outputs for inputs."""


def train(
    network: nn.Module,
    data: AnyData,
    options: TrainingOptions | str = DEFAULT_PRESET,
    *,
    task: Task | None = None,
    setup: Setup | None = None,
) -> nn.Module:
    """Trains a copy of a network on the targets.

    Args:
        network: The network to start from; untouched.
        data: Samples to learn from and to test on: `ImageData`, `LoaderData`, a `DataLoader`, an indexed data set, or a
            pair of these.
        options: How to train: figures, or the name of a preset, such as `quick` or `paper-cifar`.
        task: Loss, metrics, and how batches are split; None: `classification()`.
        setup: Seed, device, progress, callbacks and checkpoints; None: the defaults.

    Raises:
        DataError: The data cannot be read, or a batch cannot be split.
        OptionError: The task's loss or a metric returns something unexpected.
        DivergenceError: The loss or a gradient is not finite.
        ResourceError: Memory ran out, or a data worker died.
        StoppedError: A signal or the time limit of the checkpoints ended it.
    """
    options = from_preset(options, lambda preset: preset.teacher)
    return _fitted(network, None, data, options, task=task, setup=setup, phase="teacher")


def distill(
    student: nn.Module,
    teacher: Teacher,
    data: AnyData,
    options: DistillationOptions | str = DEFAULT_PRESET,
    *,
    task: Task | None = None,
    setup: Setup | None = None,
) -> nn.Module:
    """Trains a copy of a student on the targets and on a teacher's outputs.

    The loss is the task's own `distillation_loss` if it has one, else `distillation_loss` or `imitation_loss` of
    `transprune.training.tasks`.

    Args:
        student: The network to start from; untouched.
        teacher: The trained network to imitate; untouched. It need only run: TorchScript and functions serve too.
        data: As in `train`.
        options: How to train: figures, or the name of a preset, such as `quick` or `paper-cifar`.
        task: As in `train`.
        setup: As in `train`.

    Raises:
        TranspruneError: As in `train`.
    """
    options = from_preset(options, lambda preset: preset.distill)
    return _fitted(student, teacher, data, options, task=task, setup=setup, phase="distill")


def _fitted(
    start: nn.Module,
    teacher: Teacher | None,
    data: AnyData,
    options: TrainingOptions,
    *,
    task: Task | None,
    setup: Setup | None,
    phase: str,
) -> nn.Module:
    setup, task = (setup or Setup()).named(phase, start), task or classification()
    data = as_data(data, task, batch_size=options.batch_size)
    with seeded(setup.seed, setup.phase):
        fit = Fit(start, teacher, data, options, task, setup=setup)
        fit.run()
    return fit.finished()


class Fit(Loop):
    """The loop of `train` and `distill`; see these for the arguments.

    Args:
        feeds: The batches to learn from and to measure on; None: the parts of the data.
    """

    def __init__(
        self,
        start: nn.Module,
        teacher: Teacher | None,
        data: Data,
        options: TrainingOptions,
        task: Task,
        *,
        setup: Setup,
        feeds: tuple[Feed, Feed] | None = None,
    ) -> None:
        setup = setup.placed(start)
        device = choose_device(setup.device)
        self.network = copied(unwrapped(start)).to(device)
        example = on_device(example_of(data), device)
        is_channels_last = use_channels_last_if_suited(switched(self.network, training=True), example)
        has_fast_norms = is_channels_last and device.type == "cpu" and not options.compile
        options = settled(options, self.network)
        self.compute = compiled(self.network, options)
        batches, self.test_batches = feeds or tuple(
            feed(data, part, task, batch_size=options.batch_size, seed=setup.seed, device=device) for part in PARTS
        )
        super().__init__(epochs=options.epochs, batches=batches, task=task, network=self.network, setup=setup)
        self.options = options
        self.hints: Hints | None = None
        if (
            isinstance(options, DistillationOptions)
            and teacher is not None
            and not task.ignores_teacher(options.weight)
        ):
            guide = guide_of(teacher, example)
            if options.hints:
                self.hints = _hints(self.network, guide, example, options.hints)
            ask: Callable[..., Any] = torch.compile(guide) if options.compile else guide
            self.loss = loss_function(ask, task, weight=options.weight, temperature=options.distillation_temperature)
        else:
            self.loss = loss_function(None, task, weight=0)
        weights = [*self.network.parameters(), *([] if self.hints is None else self.hints.parameters())]
        self.optimizer = optimizer_of(weights, options, setup.optimizer)
        self.update = Update(
            self.optimizer,
            self.network,
            options,
            device,
            self.sentinel,
            has_fast_norms=has_fast_norms,
            clip=options.gradient_clip,
            axes=axes_along(self.network, example, task.sample_axis) if options.accumulate > 1 else None,
        )
        self.average = averaged(self.network, options.average)
        self._soften = softening(self.network, options, example)
        self.schedule = cosine_schedule(self.optimizer, self.steps_an_epoch, options.epochs, options.warm_up_epochs)

    def parts(self) -> dict[str, Any]:
        others = {"average": self.average, "hints": self.hints}
        known = {name: part for name, part in others.items() if part is not None}
        return {"network": self.network, "optimizer": self.update, "schedule": self.schedule, **known}

    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, batch: Batch) -> None:
        switched(self.network, training=True)
        soften = self._soften
        learned = self.update.step(batch if soften is None else soften(batch), self._forward)
        for loss, outputs, part in learned:
            self.meter.add(loss, outputs, part if soften is None else hardened(part))
        self.schedule.step()
        if self.average is not None and learned:
            self.average.update_parameters(self.network)

    def _forward(self, batch: Batch) -> tuple[Tensor, Any]:
        outputs = called(self.compute, batch.inputs)
        loss = self.loss(outputs, batch)
        if self.hints is not None:
            loss = loss + self.hints()
        if self.schedule.last_epoch == 0:
            check_first_loss(loss, self.phase)
            warn_of_one_class(batch.targets, self.phase)
        return loss, outputs

    @property
    def kept(self) -> nn.Module:
        """The network whose weights are measured and kept: the averaged one, where there is one."""
        return self.network if self.average is None else self.average.module

    def finished(self) -> nn.Module:
        """The trained network in evaluation mode, in torch's default memory format."""
        if self.hints is not None:
            self.hints.stop()
        return switched(self.kept.to(memory_format=torch.contiguous_format), training=False)

    def end_of_epoch(self) -> dict[str, Any]:
        if self.epoch % self.options.evaluate_every and self.epoch != self.epochs:
            return {}
        with evaluation_mode(self.kept):
            tested = evaluate_batches(self.kept, self.test_batches, self.task)
        return {f"{self.test_batches.part}_{name}": value for name, value in tested.to_json().items()}


def averaged(network: nn.Module, share: float) -> AveragedModel | None:
    """A moving average of a network's weights and buffers; None at share 0."""
    if not share:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(share), use_buffers=True)


def softening(
    network: nn.Module, options: TrainingOptions, example: tuple[Tensor, ...]
) -> Callable[[Batch], Batch] | None:
    """Blends images and spreads labels as the options say; None where they ask for neither.

    What is drawn at random is drawn from torch's global state.

    Source: Zhang et al., 2018, arXiv:1710.09412 (mixup); Yun et al., 2019, arXiv:1905.04899 (CutMix).
    """
    if not (options.mixup or options.cutmix or options.label_smoothing):
        return None
    from torchvision.transforms import v2

    with evaluation_mode(network), torch.no_grad():
        classes = each_logits(called(network, example))[0].shape[1]
    each = [v2.MixUp(alpha=options.mixup, num_classes=classes)] if options.mixup else []
    each += [v2.CutMix(alpha=options.cutmix, num_classes=classes)] if options.cutmix else []
    blend = v2.RandomChoice(each) if each else None

    def soft(batch: Batch) -> Batch:
        inputs, labels = batch.inputs, batch.targets
        images = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else None
        is_image = isinstance(images, Tensor) and images.dim() == 4
        is_labels = isinstance(labels, Tensor) and labels.dim() == 1 and labels.dtype == torch.int64
        if not is_labels or (blend is not None and not is_image):
            raise OptionError(
                f"cannot spread or blend the labels of a batch of {outline(batch.inputs)} and {outline(labels)}: "
                "expected a class for each sample, and for mixup and cutmix one tensor of images [batch, channels, "
                "rows, columns]; leave label_smoothing, mixup and cutmix at 0 for other tasks"
            )
        if blend is not None:
            images, spread = blend(images, labels)
            batch = batch._replace(inputs=(images,))
        else:
            spread = F.one_hot(labels, classes).to(torch.get_default_dtype())
        spread = (1 - options.label_smoothing) * spread + options.label_smoothing / classes
        return batch._replace(targets=spread)

    return soft


def hardened(batch: Batch) -> Batch:
    """A batch that `softening` made, with the likeliest label of each sample."""
    return batch._replace(targets=batch.targets.argmax(1))


PARTS: tuple[Literal["train"], Literal["test"]] = ("train", "test")
"""The parts of the data that a network is trained and tested on."""


def loss_function(
    guide: Callable[..., Any] | None, task: Task, *, weight: float, temperature: float = 4.0
) -> Callable[[Any, Batch], Tensor]:
    """The loss as a function of outputs and batch: the task's loss, or its distillation loss if there is a guide.

    Args:
        guide: Answers in the place of the teacher (see `guide_of`). None: learn from the targets alone.
        task: The task.
        weight: λ, the weight of the teacher's term.
        temperature: T, which softens the logits.
    """
    if guide is None:
        return lambda outputs, batch: task.loss_of(outputs, batch.targets)

    def loss(outputs: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            guidance = called(guide, batch.inputs)
        return task.distillation_loss_of(outputs, guidance, batch.targets, weight=weight, temperature=temperature)

    return loss


def guide_of(teacher: Teacher, example: Any) -> Callable[..., Any]:
    """What is asked in the place of a teacher, which need only run: a copy of a network, or a function as it is.

    Args:
        teacher: The trained network to imitate; untouched.
        example: An input batch, on the device of the batches.

    Raises:
        OptionError: It cannot be called.
    """
    if not callable(teacher):
        raise OptionError(
            f"cannot distill from a teacher that is a {type(teacher).__name__}: expected a network, or a function of "
            "its inputs"
        )
    if not isinstance(teacher, nn.Module):
        return teacher
    device = next(tensors_in(example)).device
    choose_device(device, teacher)  # which looks whether it has weights
    if isinstance(teacher, torch.jit.ScriptModule):
        content = io.BytesIO()  # its parameters do not survive deepcopy
        torch.jit.save(teacher, content)
        content.seek(0)
        restored: Callable[..., Any] = torch.jit.load(content, map_location=device).eval()
        return restored
    guide = switched(copied(inside(teacher)).to(device), training=False).requires_grad_(False)
    use_channels_last_if_suited(guide, example)
    return guide


def _hints(student: nn.Module, guide: Callable[..., Any], example: Any, weight: float) -> Hints | None:
    """Hints where student and guide have a place for them; says which."""
    place = hint_place(student, guide, example)
    if place is None or not isinstance(guide, nn.Module):
        log.info("No hints: no module of the student has features that can be held against the teacher's")
        return None
    log.info("Hints: features of %s, %d channels for %d", place.module, place.student, place.teacher)
    device = next(tensors_in(example)).device
    return Hints(student, guide, place, weight).to(device)


def compiled(network: nn.Module, options: TrainingOptions) -> Callable[..., Any]:
    """The forward of a network, compiled if the options ask for it."""
    forward: Callable[..., Any] = torch.compile(network) if options.compile else network
    return forward


def estimate_statistics(
    network: nn.Module, data: AnyData, *, task: Task | None = None, batch_size: int = 256, seed: int = 0
) -> nn.Module:
    """Copies a network and sets its batch norms to the mean statistics over one pass through the training data.

    Use it for weights from a supernet, which keeps no running statistics.

    Args:
        network: The network; untouched.
        data: The data set; its training part is used.
        task: How batches are split; None: `classification()`.
        batch_size: Images per forward, for `ImageData`.
        seed: Decides order and augmentation of the samples.
    """
    at_least("batch_size", batch_size, 1)
    task = task or classification()
    data = as_data(data, task, batch_size=batch_size, is_tested=False)
    device = next(network.parameters()).device
    with seeded(seed, "statistics"):
        return with_statistics(network, feed(data, "train", task, batch_size=batch_size, seed=seed, device=device))


@torch.no_grad()
def with_statistics(network: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy of a network whose batch norms have the mean statistics of some batches; untouched itself."""
    network = switched(copied(network), training=True)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
    with average_norms():
        for batch in batches if norms else ():
            called(network, batch.inputs)
    return switched(network, training=False)
