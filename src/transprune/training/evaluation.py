"""The loss and metrics of a network on a data set, and the predictions of classifiers for each sample."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transprune.data import ImageData, LoaderData, make_loader
from transprune.errors import DataError, OptionError, TranspruneError, first_line
from transprune.options import at_least
from transprune.reading.networks import refuse_handle, switched, untouched
from transprune.runtime import choose_device, processes
from transprune.runtime.structures import called, outline
from transprune.training.batches import AnyData, Batch, as_data, feed
from transprune.training.detection import DetectionTask, Labelled
from transprune.training.faults import data_problem, plain_inputs
from transprune.training.tasks import Task, classification, each_logits


@dataclass(frozen=True)
class Evaluation:
    """Loss and metrics over a data set; each metric is an attribute too, such as `top1` for classification."""

    loss: float
    """Mean loss."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The task's metrics by name."""

    def __getattr__(self, name: str) -> float:
        try:
            return float(self.__dict__["metrics"][name])
        except KeyError:
            raise AttributeError(f"the evaluation has no figure {name!r}") from None

    def headline(self) -> dict[str, float]:
        """The loss and the main metric, which is the first."""
        return {"loss": self.loss, **dict(list(self.metrics.items())[:1])}

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return {**self.metrics, "loss": self.loss}


class Meter:
    """Sums loss and metrics over the batches of this process, on the device, until `evaluation` reads them.

    Args:
        task: Has the metrics.
        training: Leave out the metrics of all samples (`Metric.of_all`).
    """

    def __init__(self, task: Task, *, training: bool = False) -> None:
        self._task, self._training = task, training
        self._metrics = {
            name: task.metric(name) for name in task.metrics if not (training and task.metric(name).of_all)
        }
        self._sums: dict[str, Tensor] = {}
        self._seen: dict[str, list[Any]] = {name: [] for name, metric in self._metrics.items() if metric.of_all}
        self._samples = 0

    @torch.no_grad()
    def add(self, loss: Tensor, outputs: Any, batch: Batch) -> None:
        """Adds the mean loss and the metrics of a batch.

        Raises:
            OptionError: A metric returns neither one number nor one row per sample.
        """
        self._count("loss", loss, batch.samples)
        for name, metric in self._metrics.items():
            value = metric.measure(outputs, batch.targets)
            if metric.of_all:
                self._seen[name] += _of_each(name, value, batch.samples)
            else:
                self._count(name, value, batch.samples)
        self._samples += batch.samples

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, on the CPU."""
        sums = {name: value.cpu() for name, value in self._sums.items()}
        return {"sums": sums, "samples": self._samples, **({"seen": self._seen} if self._seen else {})}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Adds the `state_dict` of another meter."""
        for name, value in state["sums"].items():
            self._add(name, value.to(device))
        for name, values in state.get("seen", {}).items():
            self._seen[name] += values
        self._samples += state["samples"]

    def evaluation(self) -> Evaluation:
        """The means over the batches of all processes so far; NaN if there were none.

        Raises:
            DataError: There were none to measure on.
        """
        joint = Meter(self._task, training=self._training)
        for state in processes.gathered(self.state_dict()):
            joint.load_state_dict(state, torch.device("cpu"))
        if not joint._samples and not self._training:
            raise DataError(
                "cannot measure a network on no samples: the data gave no batch; expected at least one in the part "
                "that is measured on (a loader that drops its last batch has none of fewer samples than a batch)"
            )
        told = (name for name in self._metrics if name not in joint._sums or joint._sums[name].numel())
        figures = {name: joint._figure(name) for name in ("loss", *told)}
        return Evaluation(figures.pop("loss"), figures)

    def _count(self, name: str, value: Tensor, samples: int) -> None:
        is_mean = isinstance(value, Tensor) and value.dim() == 0
        if not is_mean and not (isinstance(value, Tensor) and len(value) == samples):
            raise OptionError(
                f"cannot use the metric {name!r}: for {samples} samples it returned {outline(value)}; expected a "
                f"tensor without dimensions (the mean of the batch) or a row for each sample [{samples}, ...]"
            )
        total = (value * samples).double() if is_mean else value.double().sum(0)
        self._add(name, total)

    def _add(self, name: str, total: Tensor) -> None:
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def _figure(self, name: str) -> float:
        if not self._samples:
            return float("nan")
        mean: Any = self._seen[name] if name in self._seen else self._sums[name] / self._samples
        finish = None if name == "loss" else self._metrics[name].finish
        try:
            figure: Tensor = mean if finish is None else torch.as_tensor(finish(mean))
        except Exception as error:  # a user's function may raise anything
            raise OptionError(
                f"cannot use the metric {name!r}: its finish fails ({first_line(error)}); expected a function of the "
                f"averages {outline(mean)} of what it measures for each sample"
            ) from error
        if figure.numel() != 1:
            way = "give it a finish" if finish is None else f"which its finish makes of the averages {outline(mean)}"
            raise OptionError(
                f"cannot use the metric {name!r}: it ends in {outline(figure)}; expected one number, {way}; or let it "
                "measure one number for each sample"
            )
        return float(figure)


def _of_each(name: str, values: Any, samples: int) -> list[Any]:
    """What a metric measured of each sample.

    Raises:
        OptionError: It is no list with as many values.
    """
    if isinstance(values, list) and len(values) == samples:
        return values
    raise OptionError(
        f"cannot use the metric {name!r}: for {samples} samples it returned {outline(values)}; expected of one of all "
        "samples (of_all) a list with a value for each"
    )


@torch.no_grad()
def evaluate_batches(network: Callable[..., Any], batches: Iterable[Batch], task: Task) -> Evaluation:
    """Loss and metrics of a network, or of any function from inputs to outputs, over batches.

    Raises:
        DataError: A batch does not suit the network.
    """
    meter = Meter(task)
    for batch in batches:
        try:
            outputs = called(network, batch.inputs)
            meter.add(task.loss_of(outputs, batch.targets), outputs, batch)
        except Exception as error:  # a user's forward or loss may raise anything
            problem = None if isinstance(error, TranspruneError) else data_problem(error, batch)
            if problem is None:
                raise
            raise DataError(f"cannot measure on a batch of {outline(plain_inputs(batch))}: {problem}") from error
    return meter.evaluation()


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode inside the block, then restores the mode of each module.

    What its forward writes into buffers and attributes is put back, too; what hooks collect is left to them.
    """
    with untouched(network, with_hooks=False):
        switched(network, training=False)
        yield


def evaluate(
    network: nn.Module,
    data: AnyData,
    *,
    task: Task | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Loss and metrics on the test part of a data set.

    Args:
        network: The network; moved to the device.
        data: The data set.
        task: Loss, metrics, and how batches are split; None: `classification()`.
        batch_size: Images per forward, for `ImageData`.
        device: Where to run: a device or its name, or `auto`; None: where the network is.

    Raises:
        DataError: The data cannot be read, or a batch does not suit the network.
    """
    at_least("batch_size", batch_size, 1)
    task, place = task or classification(), choose_device(device, network)
    data = as_data(data, task, batch_size=batch_size, is_tested=False)
    batches = feed(data, "test", task, batch_size=batch_size, seed=0, device=place)
    refuse_handle(network)
    placed = network.to(place)
    with evaluation_mode(placed):
        return evaluate_batches(placed, batches, task)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The predicted class of every image of a split."""

    classes: Tensor
    """int64 [samples]."""
    confidences: Tensor
    """Their probabilities, float32 [samples]."""


@torch.no_grad()
def answers(
    networks: Mapping[str, nn.Module], data: ImageData, *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> dict[str, Answers]:
    """The predictions of several classifiers for the test images, in the order of the split; decodes each image once.

    Args:
        networks: The classifiers by name, on the device.
        data: The data set.
        batch_size: Images per forward.
        device: Where to run.
    """
    loader = make_loader(data.test, data, batch_size=batch_size, train=False, seed=0, device=device)
    found: dict[str, list[Tensor]] = {name: [] for name in networks}
    with contextlib.ExitStack() as modes:
        for network in networks.values():
            modes.enter_context(evaluation_mode(network))
        for images, _ in loader:
            for name, network in networks.items():
                probabilities = each_logits(network(images))[0].float().softmax(1)
                found[name].append(torch.stack(probabilities.max(1)).cpu())  # [2, batch]
    joined = {name: torch.cat(parts, dim=1) for name, parts in found.items()}
    return {name: Answers(classes=best[1].long(), confidences=best[0]) for name, best in joined.items()}


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What several detectors find on one image."""

    labelled: Labelled
    """The image, and what is on it."""
    found: Mapping[str, Mapping[str, Tensor]]
    """By the name of the detector: `boxes`, `labels` and `scores`, on the CPU."""


@torch.no_grad()
def detections(
    networks: Mapping[str, nn.Module], data: LoaderData, task: DetectionTask, *, device: torch.device
) -> Iterator[Detections]:
    """What the searched parts of several detectors lead to on the test images, one after another.

    Args:
        networks: The parts by name, on the device.
        data: The test images.
        task: Draws the boxes.
        device: Where to run.
    """
    with contextlib.ExitStack() as modes:
        for network in networks.values():
            modes.enter_context(evaluation_mode(network))
        for batch in feed(data, "test", task, batch_size=1, seed=0, device=device):
            found = {name: task.boxes(called(each, batch.inputs), batch.targets) for name, each in networks.items()}
            for place, labelled in enumerate(batch.targets):
                yield Detections(labelled=labelled, found={name: each[place]["found"] for name, each in found.items()})
