"""A search in progress: weights learn on one part of the training data, the architecture on the other.

Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2 and Algorithm 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.errors import OptionError
from transprune.models.resnet import initialise
from transprune.options import SearchOptions
from transprune.reading.networks import switched, unwrapped
from transprune.reading.reading import read_for
from transprune.reading.trace import Trace, axes_along
from transprune.runtime import KeptGenerator, choose_device, processes
from transprune.runtime.seeds import generator_of
from transprune.runtime.structures import called, copied, on_device
from transprune.shrinking.sort import Importance, magnitude, sort_channels
from transprune.space import SearchSpace
from transprune.tas.expected_cost import ExpectedCost, sum_of_penalties
from transprune.tas.prior import Prior
from transprune.tas.probabilities import Probabilities
from transprune.tas.sampling import ArchitectureParameters, Selection
from transprune.tas.supernet import Supernet
from transprune.training.batches import Batch, Data, example_of, search_feeds
from transprune.training.evaluation import Evaluation, evaluate_batches, evaluation_mode
from transprune.training.faults import check_first_loss
from transprune.training.loop import Loop, Setup
from transprune.training.tasks import Task, classification
from transprune.training.train import guide_of, loss_function
from transprune.training.update import Update, anneal, cosine_schedule, optimizer_of, settled

log = logging.getLogger("transprune.run")

PAPER_STEPS = 58_800
"""Steps of the paper's search on CIFAR: 600 epochs of 25,000 images in batches of 256."""
TRAVEL = 30.0
"""How far an architecture parameter can come in a search that sets its own learning rate."""


class Bilevel(Loop):
    """A search in progress: a supernet, its architecture parameters, an optimizer for each, and two parts of the data.

    `step_weights` and `step_architecture` are the two halves of an iteration; use them in a loop of your own,
    `run_epoch` for a whole pass, or `run` for all. See `search` for the arguments; `teacher` is the network that the
    supernet learns from where `options.distillation` asks for one, by default the model.

    Deviation: the paper's begins with all candidates alike. With a `prior` the channels stand in its order, and the
    architecture parameters begin at its probabilities (`transprune.searching.search`).
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: SearchOptions,
        *,
        space: SearchSpace,
        limits: Sequence[Limit],
        task: Task | None = None,
        importance: Importance | None = None,
        prior: Prior | None = None,
        teacher: nn.Module | None = None,
        setup: Setup | None = None,
    ) -> None:
        setup = (setup or Setup()).named("search", model)
        device = choose_device(setup.device)
        task = task or classification()
        start, example = copied(unwrapped(prior.network if prior else model)).cpu(), example_of(data)
        options = settled(options, start)
        reading = read_for(start, example, space)
        task.check_axis(reading.trace.axes)
        space = replace(prior.space if prior else space, reading=reading)
        self.space, self.options, self.limits = space, options, prior.within if prior else tuple(limits)
        self.model, self.data, self.example, self.prior = model, data, example, prior
        if options.start == "scratch":
            initialise(start)
        elif prior is None and (importance is not None or options.importance == "magnitude"):
            start = sort_channels(start, example, importance or magnitude, reading=space.reading)
        supernet = Supernet(start, space, example, alignment=options.alignment).to(device)
        self.supernet = switched(supernet, training=True)
        # On the CPU, since the sizes that are drawn are wanted there: no step of the weights waits for a device.
        self.parameters = ArchitectureParameters(space)
        if prior is not None:
            self.parameters.start_at(prior.probabilities)
        self.expected_costs = [ExpectedCost(space, limit.cost) for limit in self.limits]
        self.generator = generator_of(setup.seed)
        self.feeds = partial(
            search_feeds,
            data,
            task,
            batch_size=options.batch_size,
            weights_share=options.weights_share,
            seed=setup.seed,
            device=device,
        )
        feeds = self.feeds()
        super().__init__(epochs=options.epochs, batches=feeds.weights, task=task, network=self.supernet, setup=setup)
        self.weight_batches, self.validation_batches = feeds.weights, feeds.validation
        self._architecture_feed = feeds.architecture
        self.architecture_batches = _endless(feeds.architecture)
        self.weights = [parameter for parameter in self.supernet.parameters() if parameter.requires_grad]
        if not self.weights:
            raise OptionError(
                f"cannot search with {type(unwrapped(model)).__name__}: no weight of it may learn (requires_grad); "
                "expected a network that trains, or compress, which does without"
            )
        self.weight_optimizer = optimizer_of(self.weights, options, setup.optimizer)
        self.schedule = cosine_schedule(
            self.weight_optimizer, self.steps_an_epoch, options.epochs, options.warm_up_epochs
        )
        # A distillation loss of the task's own would ask the teacher for answers even if its share is zero.
        guide = (model if teacher is None else teacher) if options.distillation else None
        ask = None if guide is None else guide_of(guide, on_device(example, device))
        self.loss = loss_function(ask, task, weight=options.distillation)
        epochs = options.epochs - math.floor(options.architecture_after * options.epochs)
        self._architecture_steps = max(1, self.steps_an_epoch * epochs)
        rate, decay = architecture_rates(options, self._architecture_steps)
        self.architecture_optimizer = torch.optim.Adam(
            self.parameters.parameters(), lr=rate, betas=options.architecture_betas, weight_decay=decay
        )
        axes = axes_along(start, example, task.sample_axis) if options.accumulate > 1 else None
        self.weight_update, self.architecture_update = (
            Update(optimizer, self.supernet, options, device, self.sentinel, clip=clip, axes=axes)
            for optimizer, clip in ((self.weight_optimizer, options.gradient_clip), (self.architecture_optimizer, None))
        )

    def parts(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet,
            "parameters": self.parameters,
            "weight_optimizer": self.weight_update,
            "schedule": self.schedule,
            "architecture_optimizer": self.architecture_update,
            "architecture_batches": self._architecture_feed,
            "generator": KeptGenerator(self.generator),
        }

    def learning_rate(self) -> float:
        return float(self.weight_optimizer.param_groups[0]["lr"])

    def step(self, batch: Batch) -> None:
        temperature = self.temperature(self.epoch, self.steps)
        self.step_weights(batch, temperature)
        if self.epoch > self.options.architecture_after * self.options.epochs:
            self.step_architecture(next(self.architecture_batches), temperature)

    def temperature(self, epoch: int, steps: int = 0) -> float:
        """The sampling temperature τ of an epoch (from 1) after some of its steps.

        Deviation: the paper's moves from epoch to epoch, and so does this one where the learning rate of the
        architecture is given. A search of few epochs would take few temperatures.
        """
        options = self.options
        progress = (epoch - 1) / max(1, options.epochs - 1)
        if options.architecture_learning_rate is None:
            progress = min(1.0, (epoch - 1 + steps / self.steps_an_epoch) / options.epochs)
        return anneal(options.temperature_start, options.temperature_end, progress, options.temperature_schedule)

    def select(self, temperature: float) -> Selection:
        """Draws the candidates of one step."""
        return self.parameters.sample(
            temperature,
            width_samples=self.options.width_samples,
            depth_samples=self.options.depth_samples,
            generator=self.generator,
            device=self.device,
        )

    def step_weights(self, batch: Batch, temperature: float) -> None:
        """One step of the weights, with the architecture parameters held."""
        if self.schedule.last_epoch == 0:
            _warn_of_other_sizes(self.space.reading.trace, batch)
        with torch.no_grad():
            selection = self.select(temperature)

        def forward(part: Batch) -> tuple[Tensor, Any]:
            outputs = called(partial(self.supernet, selection), part.inputs)
            loss = self.loss(outputs, part)
            if self.schedule.last_epoch == 0:
                check_first_loss(loss, self.phase)
            return loss, outputs

        for learned in self.weight_update.step(batch, forward):
            self.meter.add(*learned)
        self.schedule.step()

    def step_architecture(self, batch: Batch, temperature: float) -> None:
        """One step of the architecture parameters, with the weights held; no gradient of a weight is computed."""
        before = self.generator.get_state()

        def forward(part: Batch) -> tuple[Tensor, Any]:
            self.generator.set_state(before)  # all parts draw the same candidates, each in a graph of its own
            with torch.autocast("cpu", enabled=False):  # costs need more digits than bfloat16 has
                selection, penalty = self.select(temperature), on_device(self.penalty(), self.device)
            outputs = called(partial(self.supernet, selection), part.inputs)
            return self.loss(outputs, part) + self.options.penalty_weight * penalty, outputs

        self.architecture_update.step(batch, forward)
        self.parameters.sharpen(self.options.sharpening ** (1 / self._architecture_steps))

    def penalty(self) -> Tensor:
        """How far the expected costs should move, from the costs of the most probable architecture."""
        probabilities = self.parameters.probabilities()
        likeliest = probabilities.one_hot()
        costs = [(expected(probabilities), expected(likeliest)) for expected in self.expected_costs]
        expected, actual = (torch.stack(each) for each in zip(*costs, strict=True))
        return sum_of_penalties(expected, actual, [limit.most for limit in self.limits], self.options.tolerance)

    @torch.no_grad()
    def probabilities(self) -> Probabilities:
        """Probability of every candidate, on the CPU and without gradient."""
        probabilities = self.parameters.probabilities()
        return Probabilities(probabilities.widths.cpu(), probabilities.depths.cpu())

    def plain_weights(self, architecture: Architecture) -> dict[str, Tensor]:
        """The supernet's weights as an architecture uses them, on the CPU; see `Supernet.plain_weights`."""
        return {name: value.cpu() for name, value in self.supernet.plain_weights(architecture).items()}

    def validate(self, architecture: Architecture) -> Evaluation:
        """Figures of an architecture in the supernet, on the architecture's part of the data; images not augmented."""
        selection = Selection.of(self.space, architecture, self.device)
        with evaluation_mode(self.supernet):
            return evaluate_batches(partial(self.supernet, selection), self.validation_batches, self.task)

    def end_of_epoch(self) -> dict[str, Any]:
        probabilities = self.probabilities()
        likeliest = probabilities.most_probable(self.space)
        validated = self.validate(likeliest)
        costs: dict[str, Any] = {}
        for expected, limit in zip(self.expected_costs, self.limits, strict=True):
            kind = limit.cost.kind
            with torch.no_grad():
                costs[f"expected_{kind}"] = float(expected(self.parameters.probabilities()))
            costs[f"actual_{kind}"] = self.space.cost(limit.cost, likeliest)
            costs[f"target_{kind}"] = limit.most
        return {
            "temperature": self.temperature(self.epoch, self.steps),
            **{f"validation_{name}": value for name, value in validated.headline().items()},
            **costs,
            "entropy": self.parameters.entropy(),
            "width_probabilities": probabilities.by_group(self.space),
            "depth_probabilities": probabilities.by_stage(self.space),
        }


def architecture_rates(options: SearchOptions, steps: int) -> tuple[float, float]:
    """Learning rate and weight decay of the architecture parameters in so many steps.

    Adam moves a parameter whose gradient keeps its sign by the learning rate in each step, whatever the gradient's
    size: how far a parameter can come is the rate times the steps.

    Deviation: the paper has one rate, for one number of steps. Where none is given, the rate is the one that brings a
    parameter as far in the steps that there are.
    """
    if options.architecture_learning_rate is not None:
        return options.architecture_learning_rate, options.architecture_weight_decay
    return TRAVEL / steps, options.architecture_weight_decay * min(1.0, steps / PAPER_STEPS)


def _warn_of_other_sizes(traced: Trace, batch: Batch) -> None:
    """Says so if the samples that costs are counted for are not those that are learned from."""
    given = traced.tensors_of(batch.inputs)
    shapes = (traced.shapes_of(tensors, "samples") for tensors in (traced.tensors, given))
    ours, theirs = ([[size for size in sizes if size != "samples"] for sizes in each] for each in shapes)
    if ours != theirs and processes.is_first():
        log.warning(
            "the batches hold samples of the shapes %s, the example of %s: costs are counted for the example",
            theirs,
            ours,
        )


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches
