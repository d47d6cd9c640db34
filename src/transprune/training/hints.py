"""Hints: a student learns what its teacher computes inside, beside what the teacher answers.

A batch of answers says little of a network; its last feature maps say hundreds of times as much, and a student whose
widths were cut still has maps of the same positions. A linear map takes the student's channels to the teacher's.

Source: Romero et al., 2015, arXiv:1412.6550 (FitNets), there with a convolution as the map, and as a first stage of the
training; here the map begins as the least-squares fit, and both are learned with the answers all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from transprune.runtime import processes
from transprune.runtime.structures import called, tensors_in
from transprune.training.evaluation import evaluation_mode

RIDGE = 1e-4
"""Regularisation of the first fit, as a share of the mean square of the student's channels."""


@dataclass(frozen=True)
class HintPlace:
    """A module that student and teacher both have, with features of the same positions."""

    module: str
    axis: int
    """The axis of the channels."""
    student: int
    """The student's channels."""
    teacher: int


def hint_place(student: nn.Module, teacher: Callable[..., Any], example: Any) -> HintPlace | None:
    """The last module of one name in both networks whose features have the same shape, but for one axis.

    Features of several positions (maps, tokens) come before those of one; what a network returns is no feature.

    Args:
        student: The smaller network; untouched.
        teacher: The network to imitate; functions and TorchScript have no modules to look into.
        example: An input batch.

    Returns:
        The place; None if there is none, as where a student is made of operators and not of its teacher's modules.
    """
    if not isinstance(teacher, nn.Module) or isinstance(teacher, torch.jit.ScriptModule):
        return None
    features, wanted = _features(student, example), _features(teacher, example)
    found = [
        place
        for name, feature in features.items()
        if name in wanted and (place := _place(name, feature, wanted[name])) is not None
    ]
    several = [each for each in found if _positions(features[each.module], each) > 1]
    return next(reversed(several or found), None)


def _features(network: nn.Module, example: Any) -> dict[str, Tensor]:
    """What each module returned, in the order in which they end, without what the network returns."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, outputs: Any) -> None:
            found.pop(name, None)
            if isinstance(outputs, Tensor):
                found[name] = outputs

        return record

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        with evaluation_mode(network), torch.no_grad():
            returned = [each.data_ptr() for each in tensors_in(called(network, example))]
    finally:
        for handle in handles:
            handle.remove()
    return {name: each for name, each in found.items() if each.data_ptr() not in returned}


def _place(name: str, student: Tensor, teacher: Tensor) -> HintPlace | None:
    if student.dim() != teacher.dim() or student.dim() < 2 or not student.is_floating_point():
        return None
    differ = [axis for axis in range(student.dim()) if student.shape[axis] != teacher.shape[axis]]
    if len(differ) > 1 or 0 in differ:
        return None
    [axis] = differ or [1 if student.dim() != 3 else 2]
    return HintPlace(name, axis, student.shape[axis], teacher.shape[axis])


def _positions(feature: Tensor, place: HintPlace) -> int:
    return feature[0].numel() // place.student


class Hints(nn.Module):
    """How far a student's features are from its teacher's; a network of its own, which learns with the student.

    Args:
        student: The smaller network; it is watched until `stop`.
        teacher: The network to imitate; watched too.
        place: Where both are compared.
        weight: What the difference is multiplied by in the loss.
    """

    centre: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module, place: HintPlace, weight: float = 1.0) -> None:
        super().__init__()
        self._axis, self._weight = place.axis, weight
        self.map = nn.Linear(place.student, place.teacher)
        self.register_buffer("centre", torch.zeros(place.student))
        self.is_fitted = False
        self._seen: dict[str, Tensor] = {}
        self._handles = [
            self._watch("student", student.get_submodule(place.module)),
            self._watch("teacher", teacher.get_submodule(place.module)),
        ]

    def _watch(self, whose: str, module: nn.Module) -> RemovableHandle:
        def record(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
            self._seen[whose] = outputs

        return module.register_forward_hook(record)

    def forward(self) -> Tensor:
        """The mean square that is left of the teacher's features in the last batch, as a share of their variance.

        It is multiplied by the weight. Above 1, where a constant would be nearer, it grows with its logarithm only: a
        step that was too long is not followed by a longer one.
        """
        feature, wanted = (self._seen.pop(whose, None) for whose in ("student", "teacher"))
        if feature is None or wanted is None:  # left out at random, as layers are in the training of some networks
            return self.map.weight.new_zeros(())
        feature, wanted = feature.movedim(self._axis, -1), wanted.movedim(self._axis, -1).float()
        if not self.is_fitted:
            self._fit(feature.detach().flatten(0, -2), wanted.flatten(0, -2))
        left: Tensor = self.map(feature - self.centre).float() - wanted
        share = left.square().mean() / wanted.var().clamp_min(torch.finfo(torch.float32).tiny)
        return self._weight * torch.where(share > 1, 1 + share.clamp_min(1).log(), share)

    @torch.no_grad()
    def _fit(self, feature: Tensor, wanted: Tensor) -> None:
        """Begins with the map that leaves least of the first batch."""
        known, answer = feature.double(), wanted.double()
        centre, target = known.mean(0), answer.mean(0)
        known = known - centre
        self.centre.copy_(centre)
        squares = known.T @ known
        squares.diagonal().add_(RIDGE * squares.diagonal().mean().clamp_min(1e-12))
        self.map.weight.copy_(torch.linalg.solve(squares, known.T @ (answer - target)).T)
        self.map.bias.copy_(target)
        self.is_fitted = True
        processes.align([*self.map.parameters(), self.centre])

    def get_extra_state(self) -> Tensor:
        """Whether the map was fitted; not a buffer, which a step on a GPU would have to wait for."""
        return torch.tensor(self.is_fitted)

    def set_extra_state(self, state: Tensor) -> None:
        self.is_fitted = bool(state)

    def stop(self) -> None:
        """Watches no longer."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()
