"""Tasks: the loss, the metrics, and how a batch is split into inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.data.texts import IGNORED
from transprune.errors import DataError, OptionError
from transprune.options import at_least
from transprune.runtime.structures import outline, outputs_in

RESERVED = (
    *("loss", "phase", "epoch", "epochs", "learning_rate", "temperature", "entropy", "seconds"),
    *("width_probabilities", "depth_probabilities", "metrics", "headline", "to_json"),
)
"""Names that no metric may have, because other figures or attributes of `Evaluation` have them."""


@dataclass(frozen=True)
class Metric:
    """A figure over a whole data set: a function of numbers that are averaged over its samples.

    Many figures are not averages over batches: a mean intersection over union follows from the pixels of all images.
    Averaging the numbers first makes the figure independent of how the samples are batched.

    Example:
        >>> squares = Metric(lambda outputs, targets: (outputs - targets) ** 2, finish=torch.sqrt)
        >>> Task(loss=F.mse_loss, metrics={"rmse": squares}).main
        'rmse'
    """

    measure: Callable[[Any, Any], Any]
    """Maps outputs and targets to numbers for each sample [batch, ...], or to one number, the mean over the batch;
    no numbers [batch, 0] leave the figure out, where it says nothing of such outputs."""
    finish: Callable[[Any], Tensor | float] | None = None
    """Maps the averages [...], in float64, to the figure; None: there is a single average, and it is the figure."""
    of_all: bool = False
    """Whether nothing is averaged: `measure` gives a list with a value of any kind for each sample, and `finish` makes
    the figure of the list of all of them, as mean average precision needs. It is measured in evaluations alone."""


def last_is_target(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """Splits a batch that is a tuple or list: the last element is the target, the others are the inputs.

    Raises:
        DataError: The batch is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise DataError(
            "expected a tuple or list whose last element is the target; for other batches give the task a split, "
            "such as Task(split=lambda batch: (batch['image'], batch['label']), ...)"
        )
    return tuple(batch[:-1]), batch[-1]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is trained for.

    `classification`, `multi_label`, `regression` and `segmentation` make the common tasks, `causal_lm`,
    `text_classification` and `token_classification` those of texts.
    """

    loss: Loss
    """Maps outputs (whatever the network returns) and targets to one number."""
    metrics: Mapping[str, Metric | Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    """Metrics by name; the first is the main one. A plain function is a metric without `finish`."""
    outputs: Literal["values", "logits", "binary"] = "values"
    """Decides the default distillation loss: `imitation_loss` for values, `distillation_loss` for logits
    [batch, classes, ...] of which one class is right, and for binary ones, where each class is right or not."""
    distillation_loss: Callable[[Any, Any, Any], Tensor] | None = None
    """Maps student outputs, teacher outputs and targets to one number; None: the default loss, with `weight` and
    `distillation_temperature` from the options."""
    split: Callable[[Any], tuple[Any, Any]] = last_is_target
    """Splits a batch into the network's inputs (a tuple of positional arguments, a mapping of named ones, `Inputs` for
    both, or a single one) and the targets."""
    predictions: Callable[[Tensor, Any], Tensor] | None = None
    """Maps the network's logits, and targets or None, to those that a student learns from [predictions, classes, ...],
    such as the logits of tokens that count; None: all as they are."""
    sample_axis: int = 0
    """The axis of the inputs, and of outputs and targets of their size, that counts samples: 1 for batches [length,
    samples, ...], as recurrent layers take them."""

    def __post_init__(self) -> None:
        if self.outputs not in ("values", "logits", "binary"):
            raise OptionError(f"cannot use outputs={self.outputs!r} in a task; expected 'values', 'logits' or 'binary'")
        bad = [name for name in self.metrics if not name.isidentifier() or name in RESERVED]
        if bad:
            raise OptionError(
                f"cannot call a metric {bad[0]!r}: expected letters, digits and _, and none of {', '.join(RESERVED)}"
            )

    def check_axis(self, axes: Sequence[int | None]) -> None:
        """Checks that samples are counted along the axis that the network keeps apart.

        Args:
            axes: The axis of each input tensor that counts samples, as a trace has it.

        Raises:
            DataError: They are counted along another.
        """
        found = next((axis for axis in axes if axis is not None), self.sample_axis)
        if found != self.sample_axis:
            raise DataError(
                f"cannot take axis {self.sample_axis} of the inputs for samples: the network mixes what lies along it, "
                f"and keeps apart what lies along axis {found}; expected a task with sample_axis={found}, or inputs "
                f"[samples, ...]"
            )

    @property
    def main(self) -> str | None:
        """The name of the main metric, which training reports; None if there are no metrics."""
        return next(iter(self.metrics), None)

    def metric(self, name: str) -> Metric:
        """The metric with this name."""
        metric = self.metrics[name]
        return metric if isinstance(metric, Metric) else Metric(metric)

    def ignores_teacher(self, weight: float) -> bool:
        """Whether a distillation with this weight λ ignores the teacher."""
        return weight == 0 and self.distillation_loss is None

    def logits_of(self, outputs: Any, targets: Any = None) -> Tensor:
        """The logits that a student learns from [batch, classes, ...]; binary ones as [batch, 2, classes, ...]."""
        logits = each_logits(outputs)[0]
        if self.predictions is not None:
            return self.predictions(logits, targets)
        return torch.stack([logits, torch.zeros_like(logits)], dim=1) if self.outputs == "binary" else logits

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """The loss.

        Raises:
            OptionError: It is not one number.
        """
        return _one_number("loss", self.loss(outputs, targets))

    def distillation_loss_of(
        self, student_outputs: Any, teacher_outputs: Any, targets: Any, *, weight: float, temperature: float
    ) -> Tensor:
        """The loss of a student.

        Raises:
            OptionError: It is not one number, or the default loss cannot compare the outputs.
        """
        compared = student_outputs, teacher_outputs, targets
        if self.distillation_loss is not None:
            loss = self.distillation_loss(*compared)
        elif self.outputs != "values":
            loss = distillation_loss(
                self.logits_of(student_outputs, targets),
                self.logits_of(teacher_outputs, targets),
                targets,
                weight=weight,
                temperature=temperature,
                loss=lambda *_: self.loss_of(student_outputs, targets),
            )
        else:
            loss = imitation_loss(*compared, weight=weight, loss=self.loss_of)
        return _one_number("distillation loss", loss)


def _one_number(what: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() > 0:
        found = f"a tensor {outline(value)}" if isinstance(value, Tensor) else outline(value)
        raise OptionError(
            f"cannot use the task's {what}: it returned {found}; expected one number, a tensor without dimensions "
            "such as the mean over the batch"
        )
    return value


def classification(*, auxiliary_weight: float = 0.3) -> Task:
    """The default task: cross-entropy of logits [batch, classes], with `top1` and, of over five, `top5` in percent.

    If a network returns a tuple in training, as GoogLeNet and Inception do, the first element is its logits and the
    others are logits of auxiliary heads, whose cross-entropy is added.

    Args:
        auxiliary_weight: Weight of the loss of each auxiliary head; 0.3 in Szegedy et al., 2014, arXiv:1409.4842.
    """

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        logits, *auxiliary = each_logits(outputs)
        _check_classes(logits)
        total = F.cross_entropy(logits, labels)
        for one in auxiliary:
            total = total + auxiliary_weight * F.cross_entropy(one, labels)
        return total

    return Task(
        loss=loss,
        metrics={"top1": Metric(_top(1), finish=_percent), "top5": Metric(_top(5), finish=_percent)},
        outputs="logits",
    )


def multi_label() -> Task:
    """For samples that may have several classes, or none: binary cross-entropy of each logit [batch, classes].

    Targets are 1 for the classes that a sample has and 0 for the others, floats of the logits' shape. A logit above 0
    says that the class is there. `f1` is the harmonic mean of precision and recall, in percent, averaged over the
    classes that occur in targets or answers; `micro_f1` that of all answers together; `exact` the share of samples of
    which every class is answered right. A student learns each class's probability, softened by the temperature.
    """

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        logits = each_logits(outputs)[0]
        _check_multi_label(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def hits(outputs: Any, targets: Tensor) -> Tensor:
        """For each class, whether it is answered rightly, answered, and there [batch, 3, classes]."""
        logits = each_logits(outputs)[0]
        _check_multi_label(logits, targets)
        is_answered, is_there = logits > 0, targets > 0.5
        return torch.stack([is_answered & is_there, is_answered, is_there], dim=1)

    def is_exact(outputs: Any, targets: Tensor) -> Tensor:
        return ((each_logits(outputs)[0] > 0) == (targets > 0.5)).all(1)

    return Task(
        loss=loss,
        metrics={
            "f1": Metric(hits, finish=_mean_f1),
            "micro_f1": Metric(hits, finish=lambda means: _mean_f1(means.sum(1, keepdim=True))),
            "exact": Metric(is_exact, finish=_percent),
        },
        outputs="binary",
    )


def _check_multi_label(logits: Tensor, targets: Any) -> None:
    found = targets.shape if isinstance(targets, Tensor) else outline(targets)
    if found != logits.shape or logits.dim() != 2:
        raise DataError(
            f"cannot compare logits {list(logits.shape)} with targets {outline(targets)}: expected both [batch, "
            "classes], and of each target 1 for the classes that the sample has and 0 for the others"
        )


def _mean_f1(means: Tensor) -> Tensor:
    """Mean over the classes that occur in answers or targets; `means` is that of `hits` [3, classes]."""
    right, answered, there = means
    shares: Tensor = 2 * right / (answered + there)
    return 100 * shares.nanmean().nan_to_num()


def each_logits(outputs: Any) -> list[Tensor]:
    """The logits of a classifier, then those of its auxiliary heads; heads that are off (None) are left out."""
    if isinstance(outputs, Mapping):
        return _logits_in(outputs)
    return [one for one in outputs if one is not None] if isinstance(outputs, tuple | list) else [outputs]


def _logits_in(outputs: Mapping[str, Any]) -> list[Tensor]:
    """The logits in a dict of outputs: under a usual name, or the only tensor.

    Raises:
        OptionError: It is not clear which tensor they are.
    """
    tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
    named = [outputs[name] for name in ("logits", "out", "output") if isinstance(outputs.get(name), Tensor)]
    if not named and len(tensors) != 1:
        raise OptionError(
            f"cannot find the logits in {outline(outputs)}: expected them under 'logits', or as the only tensor; wrap "
            "the network in a function that returns them, or give the task a loss and a distillation_loss of its own"
        )
    return (named or tensors)[:1]


def regression() -> Task:
    """Mean squared error, with `r2` (the explained share of the variance, 1 at best) and `mse`.

    Outputs and targets have the same shape [batch, ...]. With several numbers per sample, `r2` is the mean over them.
    """
    return Task(loss=_squared_error, metrics={"r2": Metric(_moments, finish=_explained_share), "mse": _squared_error})


def segmentation(classes: int, *, ignore_index: int = -100) -> Task:
    """Cross-entropy for every pixel, with `mean_iou` and `pixel_accuracy` in percent, over the pixels of all images.

    Logits are [batch, classes, rows, columns], targets int64 [batch, rows, columns].

    Args:
        classes: The number of classes.
        ignore_index: The target of pixels that do not count.
    """
    at_least("classes", classes, 1)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.shape != (*logits.shape[:1], *logits.shape[2:]) or logits.dim() < 3 or logits.shape[1] != classes:
            raise DataError(
                f"cannot compare logits {list(logits.shape)} with targets {list(targets.shape)}: expected logits "
                f"[batch, {classes}, rows, columns], one for each class, and targets [batch, rows, columns]"
            )
        total = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
        return total / (targets != ignore_index).sum().clamp(min=1)  # all pixels of a batch may be ignored

    def overlaps(logits: Tensor, targets: Tensor) -> Tensor:
        """For each class, the pixels predicted correctly, predicted, and labelled so [batch, 3, classes]."""
        predicted, is_counted = _answers(logits, 1), targets != ignore_index
        counts = []
        for one in range(classes):
            is_predicted, is_there = (predicted == one) & is_counted, (targets == one) & is_counted
            masks = torch.stack([is_predicted & is_there, is_predicted, is_there], dim=1)
            counts.append(masks.flatten(2).sum(2))
        return torch.stack(counts, dim=2)

    return Task(
        loss=loss,
        metrics={"mean_iou": Metric(overlaps, finish=_mean_iou), "pixel_accuracy": Metric(overlaps, finish=_accuracy)},
        outputs="logits",
    )


def labels_apart(batch: Any) -> tuple[dict[str, Any], Tensor]:
    """Splits a batch by names, as collators of transformers make it: `labels` are the targets, the rest is given.

    Raises:
        DataError: The batch is something else.
    """
    if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
        raise DataError(
            "expected names and tensors, 'labels' among them, as tokenizers and collators of transformers make them; "
            "for other batches give the task a split of its own"
        )
    return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]


def causal_lm() -> Task:
    """For language models that tell the next token: `perplexity`, and `token_loss` in nats, both by token.

    Batches are mappings with `input_ids` and `labels` int64 [batch, length], the labels being the tokens themselves,
    with -100 where one does not count; logits are [batch, length, vocabulary]. The logits of each token are compared
    with the token after it.
    """

    def surprise(outputs: Any, labels: Tensor) -> Tensor:
        """Of each text, the negative logarithms of its tokens' probabilities in all, and how many count [batch, 2]."""
        logits, following = each_logits(outputs)[0][:, :-1], labels[:, 1:]
        lost = F.cross_entropy(logits.movedim(-1, 1), following, ignore_index=IGNORED, reduction="none")
        return torch.stack([lost.sum(1), torch.sum(following != IGNORED, 1)], dim=1)

    return Task(
        loss=lambda outputs, labels: _token_loss(each_logits(outputs)[0][:, :-1], labels[:, 1:]),
        metrics={
            "perplexity": Metric(surprise, finish=lambda means: (means[0] / means[1]).exp()),
            "token_loss": Metric(surprise, finish=lambda means: means[0] / means[1]),
        },
        outputs="logits",
        split=labels_apart,
        predictions=lambda logits, labels: _counted(logits[:, :-1], None if labels is None else labels[:, 1:]),
    )


def text_classification() -> Task:
    """As `classification`, for texts: batches are mappings, with `labels` int64 [batch] among them."""
    return replace(classification(), split=labels_apart)


def token_classification() -> Task:
    """Cross-entropy for every token, with the share of tokens answered right, `token_accuracy`, in percent.

    Batches are mappings with `labels` int64 [batch, length] among them, -100 where a token does not count, such as in
    padding; logits are [batch, length, classes].
    """

    def hits(outputs: Any, labels: Tensor) -> Tensor:
        """Of each text, the tokens that are answered right, and how many count [batch, 2]."""
        is_right = _answers(each_logits(outputs)[0], -1) == labels
        return torch.stack([is_right.sum(1), torch.sum(labels != IGNORED, 1)], dim=1)

    return Task(
        loss=lambda outputs, labels: _token_loss(each_logits(outputs)[0], labels),
        metrics={"token_accuracy": Metric(hits, finish=lambda means: 100 * means[0] / means[1])},
        outputs="logits",
        split=labels_apart,
        predictions=_counted,
    )


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"cannot compare logits {list(logits.shape)} with labels {list(labels.shape)}: expected logits [batch, "
            "length, classes] and a label for each token [batch, length]"
        )
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)  # no token of a batch may count


def _counted(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The logits of all tokens that count [tokens, classes]."""
    return logits.flatten(0, -2) if labels is None else logits[labels != IGNORED]


def _answers(logits: Tensor, axis: int) -> Tensor:
    """The most probable class along an axis; -1, which is none, where a logit is no number."""
    return logits.argmax(axis).masked_fill(logits.isnan().any(axis), -1)


def _top(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    def is_hit(outputs: Any, labels: Tensor) -> Tensor:
        """Whether the label of each sample is among its `count` most probable classes [batch], if it may not be."""
        logits = each_logits(outputs)[0]
        if labels.dim() != 1:
            raise DataError(
                f"cannot tell samples apart by targets {outline(labels)}: expected the class of each, int64 [batch]; "
                "where a sample may have several classes, the task is transprune.multi_label() (--task multi_label); "
                "where numbers or classes of each pixel are learned, regression() or segmentation(classes); or one of "
                "your own (--task FILE.py:FUNCTION)"
            )
        if count > 1 and count >= logits.shape[1]:
            return labels.new_empty(len(labels), 0)  # it always is
        ranks = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return ranks[:, :count].any(1) & ~logits.isnan().any(1)

    return is_hit


def _percent(share: Tensor) -> Tensor:
    return 100 * share


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:
        raise DataError(
            f"cannot compare outputs {list(outputs.shape)} with targets {list(targets.shape)}: expected one shape; "
            "reshape the targets in the data set, or the outputs in the network"
        )
    return F.mse_loss(outputs, targets)


def _moments(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared errors, targets and squared targets [batch, 3, numbers per sample]."""
    found, wanted = (values.double().reshape(len(values), -1) for values in (outputs, targets))
    return torch.stack([(found - wanted) ** 2, wanted, wanted**2], dim=1)


def _explained_share(means: Tensor) -> Tensor:
    squared_error, mean, mean_square = means
    unexplained: Tensor = squared_error / (mean_square - mean**2)
    return 1 - unexplained.mean()


def _mean_iou(means: Tensor) -> Tensor:
    """Mean over the classes that occur in predictions or labels; `means` is that of `overlaps` [3, classes]."""
    right, predicted, there = means
    shares: Tensor = right / (predicted + there - right)
    return 100 * shares.nanmean()


def _accuracy(means: Tensor) -> Tensor:
    right, _, there = means
    share: Tensor = right.sum() / there.sum()
    return 100 * share


Loss = Callable[[Any, Any], Tensor]
"""Maps outputs and targets to one number."""


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

    The divergence is the mean over all predictions: over the batch, and over pixels if each has its own logits.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.3, with λ = 0.9 and T = 4, after Hinton et al., 2015,
    arXiv:1503.02531.

    Deviation: as in the authors' code, λ weighs the teacher's term, and T² keeps the gradients of both terms on one
    scale; the printed formula puts λ on the labels and has no T².

    Args:
        student_logits: [batch, classes, ...].
        teacher_logits: [batch, classes, ...]; no gradient flows to them.
        targets: Targets for `loss`; for cross-entropy, the class of each prediction [batch, ...].
        weight: λ in [0, 1]; 0 ignores the teacher.
        temperature: T, above zero.
        loss: Loss of the student's logits against the targets.

    Raises:
        OptionError: Student and teacher do not each return one tensor, their shapes differ, or they tell no classes
            apart.
    """
    _check_same_shapes(student_logits, teacher_logits)
    _check_classes(student_logits)
    from_targets = loss(student_logits, targets)
    student, teacher = (_at_least_float32(each) for each in (student_logits, teacher_logits.detach()))
    from_teacher = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="sum",
        log_target=True,
    ) / (student_logits.numel() // student_logits.shape[1])
    return (1 - weight) * from_targets + weight * temperature**2 * from_teacher


def _check_classes(logits: Tensor) -> None:
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise OptionError(
            f"cannot tell classes apart by outputs of {outline(logits)}: expected logits [batch, classes, ...] of at "
            "least 2 classes; for numbers give task=regression(), for a single yes or no task=multi_label()"
        )


def _at_least_float32(logits: Tensor) -> Tensor:
    """Logits in float32 or more: at high temperatures, teacher and student differ by less than bfloat16 resolves."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def imitation_loss(
    student_outputs: Any, teacher_outputs: Any, targets: Any, *, weight: float = 0.9, loss: Loss = F.mse_loss
) -> Tensor:
    """(1 − λ) · loss(student, targets) + λ · mean squared difference of student and teacher, for any outputs.

    Args:
        student_outputs: Tensors of any structure; every tensor has the same weight.
        teacher_outputs: The same structure; no gradient flows to it. Of two mappings the common names are compared;
            caches are not.
        targets: Targets for `loss`.
        weight: λ in [0, 1]; 0 ignores the teacher.
        loss: Loss of the student's outputs against the targets.

    Raises:
        OptionError: The outputs of student and teacher differ in structure or shape.
    """
    compared: list[Any] = [student_outputs, teacher_outputs]
    if all(isinstance(outputs, Mapping) for outputs in compared):  # some are given in evaluation alone, as caches are
        common = [name for name in student_outputs if name in teacher_outputs]
        compared = [{name: outputs[name] for name in common} for outputs in compared]
    _check_same_shapes(*compared)
    pairs = zip(*map(outputs_in, compared), strict=True)
    numbers = [(student, teacher.detach()) for student, teacher in pairs if student.is_floating_point()]
    from_teacher = torch.stack([F.mse_loss(*pair) for pair in numbers]).mean() if numbers else 0.0
    return (1 - weight) * loss(student_outputs, targets) + weight * from_teacher


def _check_same_shapes(student: Any, teacher: Any) -> None:
    shapes = [[tensor.shape for tensor in outputs_in(outputs)] for outputs in (student, teacher)]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise OptionError(
            f"cannot compare the student's outputs ({outline(student)}) with the teacher's ({outline(teacher)}): "
            "expected tensors of the same shapes; give the task a distillation_loss of its own"
        )


TEXTS: Mapping[str, Callable[[], Task]] = {
    "causal-lm": causal_lm,
    "text-classification": text_classification,
    "token-classification": token_classification,
}
"""Tasks of texts, by the names that transformers has for them."""
READY: Mapping[str, Callable[[], Task]] = {"multi_label": multi_label, "regression": regression, **TEXTS}
"""Tasks that the command line knows by name, beside classification."""
