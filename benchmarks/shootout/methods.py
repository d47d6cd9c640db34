"""Ways to make a trained network smaller: each takes a problem and returns a network, before any distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from cells import Cell, Data
from torch import Tensor, nn
from torch.utils.data import DataLoader

import transprune
from transprune.budget import Limit, parse_budgets
from transprune.costs import COSTS
from transprune.errors import ModelError
from transprune.scores.compress import gather_samples

SAMPLES = transprune.CompressOptions.samples
BATCHES = 16
"""Batches that gradients are summed over, where a method wants gradients."""


@dataclass(frozen=True)
class Problem:
    """A trained network, and what is asked of the smaller one."""

    cell: Cell
    teacher: nn.Module
    data: Data
    seed: int
    device: str | None = None
    """Where networks learn and are measured; None: a GPU if there is one."""

    @cached_property
    def space(self) -> transprune.SearchSpace:
        """What could be chosen; peers take no more than the limit from it."""
        return transprune.inspect(self.teacher, self.example)

    @cached_property
    def limit(self) -> Limit:
        """The most that the smaller network may cost; all methods are counted by one counter."""
        return parse_budgets(self.cell.budget)[0].limit(self.space, COSTS)

    @property
    def example(self) -> Tensor:
        """One sample of zeros."""
        data = self.data
        return torch.zeros(1, *data.image_size) if isinstance(data, transprune.ImageData) else data.example

    @property
    def setup(self) -> transprune.Setup:
        """Seed and device, and nothing to show."""
        return transprune.Setup(seed=self.seed, device=self.device, progress=False)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """A few training batches, normalised and augmented as for training."""
        torch.manual_seed(self.seed)
        loader: Any = self.data.train
        if isinstance(self.data, transprune.ImageData):
            loader = transprune.make_loader(
                self.data.train, self.data, batch_size=128, train=True, seed=self.seed, device="cpu"
            )
        return list(islice(loader, BATCHES))

    def evaluate(self, network: nn.Module, data: Data | None = None) -> transprune.Evaluation:
        """The cell's figures on the test part."""
        return transprune.evaluate(network, data or self.data, task=self.cell.task, device=self.device)

    def fits(self, network: nn.Module) -> bool:
        """Whether a network keeps to the budget."""
        return transprune.count_macs(network, self.example) <= self.limit.most


# --- ours


def scores(problem: Problem) -> nn.Module:
    """What the scores of 512 samples say, repaired; nothing is trained."""
    found = transprune.compress(
        problem.teacher,
        problem.data,
        problem.cell.budget,
        task=problem.cell.task,
        seed=problem.seed,
        device=problem.device,
    )
    return found.student


def tas(problem: Problem) -> nn.Module:
    """A search that starts from the scores."""
    return _searched(problem, problem.cell.searching())


def tas_paper(problem: Problem) -> nn.Module:
    """The paper's search, interpolation and all depths mixed, as many epochs from the trained weights."""
    options = replace(
        transprune.get_preset("paper-cifar").search,
        epochs=problem.cell.search_epochs,
        batch_size=problem.cell.searching().batch_size,
        start="model",
        optimizer=None,
        learning_rate=None,
        architecture_learning_rate=None,
    )
    return transprune.estimate_statistics(
        _searched(problem, options), problem.data, task=problem.cell.task, seed=problem.seed
    )


def _searched(problem: Problem, options: transprune.SearchOptions) -> nn.Module:
    found = transprune.search(
        problem.teacher,
        problem.data,
        problem.cell.budget,
        options,
        space=problem.space,
        task=problem.cell.task,
        setup=problem.setup,
    )
    return found.student


# --- what is free


def uniform(problem: Problem) -> nn.Module:
    """The same share of every width, repaired as ours."""
    return _cut(problem, transprune.uniform_architecture(problem.space, [problem.limit]))


def random(problem: Problem) -> nn.Module:
    """Candidates at random within the budget, repaired as ours."""
    return _cut(problem, transprune.random_architecture(problem.space, [problem.limit], seed=problem.seed))


def _cut(problem: Problem, architecture: transprune.Architecture) -> nn.Module:
    (samples,), _ = gather_samples(problem.teacher, problem.data, SAMPLES, task=problem.cell.task, seed=problem.seed)
    origin = transprune.sort_channels(problem.teacher, problem.example)
    student = transprune.shrink(origin, architecture, problem.example)
    return transprune.repair(student, origin, architecture, samples)


def unpruned(problem: Problem) -> nn.Module:
    """The network itself: what the distillation alone is worth."""
    return copy.deepcopy(problem.teacher)


# --- peers, each as its documentation has it


def torch_pruning_magnitude(problem: Problem) -> nn.Module:
    """Torch-Pruning: group magnitude over all layers, in many small steps."""
    import torch_pruning

    return _by_torch_pruning(problem, torch_pruning.importance.GroupMagnitudeImportance(p=2))


def torch_pruning_taylor(problem: Problem) -> nn.Module:
    """Torch-Pruning: first-order Taylor expansions of the loss over all layers, gradients anew before each step."""
    import torch_pruning

    return _by_torch_pruning(problem, torch_pruning.importance.GroupTaylorImportance(), with_gradients=True)


def _by_torch_pruning(problem: Problem, importance: Any, *, with_gradients: bool = False) -> nn.Module:
    """All widths, or those that one layer has alone where what is cut of all no longer runs (padded shortcuts)."""
    head = [_head(problem.teacher)]
    try:
        return _in_steps(problem, importance, head, with_gradients)
    except ModelError:
        alone = {group.layers[0] for group in problem.space.groups if len(group.layers) == 1}
        named = problem.teacher.named_modules()
        shared = [each for name, each in named if isinstance(each, nn.Conv2d | nn.Linear) and name not in alone]
        return _in_steps(problem, importance, shared, with_gradients)


def _in_steps(problem: Problem, importance: Any, ignored: list[nn.Module], with_gradients: bool) -> nn.Module:
    """Many small steps, or fewer where so small ones cut nothing (widths are rounded to a multiple)."""
    for steps in (20,) if with_gradients else (200, 20):
        network = _after_steps(problem, importance, ignored, with_gradients, steps)
        if network is not None:
            return network
    raise RuntimeError(f"Torch-Pruning does not reach {problem.limit}")


def _after_steps(
    problem: Problem, importance: Any, ignored: list[nn.Module], with_gradients: bool, steps: int
) -> nn.Module | None:
    import torch_pruning

    copied: dict[int, Any] = {}
    network = copy.deepcopy(problem.teacher, copied)
    attentions = [each for each in network.modules() if isinstance(each, nn.MultiheadAttention)]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        problem.example,
        importance=importance,
        global_pruning=True,
        iterative_steps=steps,
        pruning_ratio=0.95,
        max_pruning_ratio=0.9,
        ignored_layers=[copied[id(each)] for each in ignored],
        num_heads={each: each.num_heads for each in attentions},
        round_to=4 if attentions else None,
    )
    batches = problem.batches() if with_gradients else []
    for _ in range(steps):
        if problem.fits(network):
            return network
        _gradients(problem, network, batches)
        pruner.step()
    return network if problem.fits(network) else None


def fastnas(problem: Problem) -> nn.Module:
    """FastNAS of NVIDIA's Model Optimizer: a sensitivity for each width, and one threshold for all."""
    import modelopt.torch.prune as mtp

    config = mtp.fastnas.FastNASConfig()
    for kind, name in (("nn.Conv2d", "channel_divisor"), ("nn.BatchNorm2d", "feature_divisor")):
        config[kind]["*"][name] = 4  # its default of 32 leaves small networks no choice; its example has 16
    measured_on = _subset(problem)

    def accuracy(network: nn.Module) -> float:
        return getattr(problem.evaluate(network, measured_on), problem.cell.figure)

    share = problem.limit.most / transprune.count_macs(problem.teacher, problem.example)
    while True:  # it counts by a counter of its own
        network, _ = mtp.prune(
            model=copy.deepcopy(problem.teacher),
            mode=[("fastnas", config)],
            constraints={"flops": f"{100 * share:.2f}%"},
            dummy_input=problem.example,
            config={
                "data_loader": problem.batches(),
                "collect_func": lambda batch: batch[0],
                "score_func": accuracy,
                "checkpoint": None,
                "max_iter_data_loader": BATCHES,
            },
        )
        if problem.fits(network):
            return network
        share *= 0.98


def _subset(problem: Problem) -> Data:
    """1,000 training samples to measure accuracy on, as its documentation advises where all would take long."""
    data = problem.data
    if isinstance(data, transprune.ImageData):
        return replace(data, test=data.train.subset(range(1000)))
    batches = list(islice(DataLoader(data.train.dataset, 250), 4))
    return replace(data, test=batches)


def kirigami(problem: Problem) -> nn.Module:
    """torch-kirigami: greedy by group magnitude to a number of parameters, the largest that keeps to the budget."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, PlanningError, Pruner

    def pruned(most: int) -> nn.Module | None:
        network = copy.deepcopy(problem.teacher).eval()
        pruner = Pruner(network, graph=DependencyGraph.build(network, args=(problem.example,)))
        try:
            network, _ = pruner.prune(
                pruner.discover_candidates(),
                budget=ParameterBudget(max_params=most),
                strategy=Greedy(GroupMagnitude(p=2)),
            )
        except PlanningError:
            return None
        return network

    low, high = 0, sum(each.numel() for each in problem.teacher.parameters())
    found = None
    for _ in range(12):
        middle = (low + high) // 2
        network = pruned(middle)
        if network is not None and problem.fits(network):
            found, low = network, middle
        elif network is None:
            low = middle
        else:
            high = middle
    if found is None:
        raise RuntimeError(f"torch-kirigami does not reach {problem.limit}")
    return found


def _head(network: nn.Module) -> nn.Module:
    """The last layer with weights, whose outputs are the network's."""
    return [each for each in network.modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]


def _gradients(problem: Problem, network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    network.zero_grad()
    for inputs, targets in batches:
        problem.cell.task.loss(network(inputs), targets).backward()


METHODS: dict[str, tuple[str, Callable[[Problem], nn.Module]]] = {
    "scores": ("transprune, scores alone", scores),
    "tas": ("transprune, TAS from the scores", tas),
    "tas-paper": ("transprune, TAS as in the paper", tas_paper),
    "uniform": ("uniform widths", uniform),
    "random": ("random candidates", random),
    "tp-magnitude": ("Torch-Pruning, magnitude", torch_pruning_magnitude),
    "tp-taylor": ("Torch-Pruning, Taylor", torch_pruning_taylor),
    "fastnas": ("Model Optimizer, FastNAS", fastnas),
    "kirigami": ("torch-kirigami, magnitude", kirigami),
    "unpruned": ("not pruned, trained further", unpruned),
}
OURS = ("scores", "tas")
PACKAGES = {
    "tp-magnitude": ("torch-pruning==1.6.1",),
    "tp-taylor": ("torch-pruning==1.6.1",),
    "fastnas": (
        "nvidia-modelopt==0.47.0",
        "pulp<4",
        "omegaconf",
        "antlr4-python3-runtime==4.9.3",
        "nvidia-ml-py",
        "pydantic",
        "pydantic-core",
        "annotated-types",
        "typing-inspection",
        "regex",
        "requests",
        "urllib3",
        "idna",
        "charset-normalizer",
        "certifi",
        "torchprofile==0.0.4",
        "ninja",
    ),
    "kirigami": ("torch-kirigami==0.2.1",),
}
"""What each peer needs beside torch, in a folder of its own."""
