"""The paper's algorithm for a small ResNet, slow and obvious, in plain torch. Read this file first.

Transformable architecture search is by Dong & Yang (2019, arXiv:1905.09717, section 3). The other modules of
`transprune.tas` do the same for any network and much faster; the tests hold them against this one.

A *choice* is the width of a convolution or the depth of a stage (how many of its blocks are kept), by name. It has
*candidates*, the sizes to choose from, and *logits*, the paper's α and β, which say how probable each of them is.

Example:
    >>> net, candidates = small_resnet()
    >>> logits = {name: torch.zeros(len(sizes), requires_grad=True) for name, sizes in candidates.items()}
    >>> halves = [[(torch.randn(8, 3, 8, 8), torch.randint(10, (8,))) for _ in range(2)] for _ in range(2)]
    >>> found = search(net, candidates, logits, zip(*halves, (10.0, 0.1)), budget=1e5)
    >>> all(found[name] in sizes for name, sizes in candidates.items())
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Candidates = Mapping[str, Sequence[int]]  # the sizes of each choice
Sizes = dict[str, int]  # the one that is chosen
Rows = Mapping[str, Tensor]  # a number for each of them: logits or probabilities
Batch = tuple[Tensor, Tensor]  # images [batch, channels, rows, columns] and labels
Step = tuple[Batch, Batch, float]  # for the weights, for the logits, and the temperature: from 10 to 0.1 in the paper


@dataclass(frozen=True)
class Drawn:
    """The sizes that one step uses of a width or a depth."""

    sizes: Sequence[int]
    indices: Sequence[int]  # of the sizes among the candidates
    weights: Tensor  # mixing weights, one for each size; they sum to one


def draw(logits: Tensor, candidates: Sequence[int], temperature: float, samples: int = 2) -> Drawn:
    """Draws candidates without replacement by Gumbel-softmax, and weighs those that were drawn (Eq. 2 and 3)."""
    gumbel = -torch.log(-torch.log(torch.rand_like(logits)))
    perturbed = (logits.log_softmax(0) + gumbel) / temperature
    probabilities = perturbed.detach().softmax(0) + 1e-7  # so that there is a second one where all others underflow
    indices = torch.multinomial(probabilities, min(samples, len(candidates))).tolist()
    return Drawn([candidates[index] for index in indices], indices, perturbed[indices].softmax(0))


def interpolate(features: Tensor, width: int) -> Tensor:
    """Channel-wise interpolation (CWI, section 3.1): every new channel is the mean of the channels that it covers."""
    channels = features.shape[1]
    covered = [slice(j * channels // width, -((j + 1) * channels // -width)) for j in range(width)]  # end rounded up
    return torch.stack([features[:, each].mean(1) for each in covered], dim=1)


def pad(features: Tensor, width: int) -> Tensor:
    """Appends channels of zeros."""
    return F.pad(features, [0, 0, 0, 0, 0, width - features.shape[1]])


@dataclass(frozen=True)
class SlowSupernet:
    """One ResNet that holds all architectures: a narrower layer is the first channels of the full one.

    All convolutions run at full width, and all blocks run. Then the sizes in use are cut out and mixed.
    """

    weights: Mapping[str, Tensor]  # by name; scales and shifts have a row for each candidate
    blocks: Sequence[int]  # in each stage
    alignment: str = "interpolate"  # the paper's, or "pad"

    def __call__(self, choices: Mapping[str, Drawn], images: Tensor) -> Tensor:
        """The scores of the classes [batch, classes]."""
        features = self.conv_norm("stem", images, choices).relu()
        for stage, blocks in enumerate(self.blocks):
            ends = []
            for block in range(blocks):
                features = self.block(stage, block, features, choices)
                ends.append(features)
            depth = choices[f"stages.{stage}"]  # depths are mixed as widths are, from the blocks at which they end
            features = self.mix([ends[size - 1] for size in depth.sizes], depth.weights)
        classifier = self.weights["classifier.weight"][:, : features.shape[1]]
        return features.mean((2, 3)) @ classifier.T + self.weights["classifier.bias"]

    def block(self, stage: int, block: int, inputs: Tensor, choices: Mapping[str, Drawn]) -> Tensor:
        """Two convolutions and a shortcut. The first block of all stages but the first halves rows and columns."""
        path, halves = f"stages.{stage}.{block}", stage > 0 and block == 0
        features = self.conv_norm(f"{path}.layer1", inputs, choices, stride=2 if halves else 1).relu()
        features = self.conv_norm(f"{path}.layer2", features, choices)
        shortcut = inputs
        if halves:  # a 1×1 convolution without a norm; its widths are those of the convolution that it is added to
            full = self.convolution(f"{path}.sum.shortcut.1", F.avg_pool2d(inputs, 2))
            choice = choices[f"{path}.layer2.conv"]
            shortcut = self.mix([full[:, :size] for size in choice.sizes], choice.weights)
        width = max(features.shape[1], shortcut.shape[1])
        return (pad(features, width) + pad(shortcut, width)).relu()

    def conv_norm(self, path: str, inputs: Tensor, choices: Mapping[str, Drawn], stride: int = 1) -> Tensor:
        """A convolution; the widths in use, cut from the full one and normalised each by itself; then mixed."""
        full, choice = self.convolution(f"{path}.conv", inputs, stride), choices[f"{path}.conv"]
        scale, shift = (self.weights[f"{path}.norm.{name}"] for name in ("weight", "bias"))
        features = [  # the statistics are the batch's: running averages would describe no single architecture
            F.batch_norm(full[:, :width], None, None, scale[row, :width], shift[row, :width], training=True)
            for width, row in zip(choice.sizes, choice.indices, strict=True)
        ]
        return self.mix(features, choice.weights)

    def convolution(self, path: str, inputs: Tensor, stride: int = 1) -> Tensor:
        """A convolution at full width, on an input filled up with zeros."""
        weight = self.weights[f"{path}.weight"]
        return F.conv2d(pad(inputs, weight.shape[1]), weight, stride=stride, padding=weight.shape[2] // 2)

    def mix(self, features: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Feature maps brought to the widest of them, weighted and added (Eq. 3)."""
        width = max(each.shape[1] for each in features)
        align = interpolate if self.alignment == "interpolate" else pad
        return torch.stack([w * align(each, width) for w, each in zip(weights, features, strict=True)]).sum(0)


def expected_macs(net: SlowSupernet, candidates: Candidates, probabilities: Rows, images: Sequence[int]) -> Tensor:
    """The mean of the MACs over all architectures, for one image [channels, rows, columns] (E_cost, section 3.2).

    A convolution costs the mean over all pairs of a width that it reads and a width of its own, times the probability
    that its block is kept: all choices are independent.
    """

    def likely(name: str) -> list:  # its sizes, each with its probability
        return list(zip(candidates[name], probabilities[name].double(), strict=True))

    def macs(inputs: list, outputs: list, each: int, *, is_projection: bool = False) -> Tensor:
        pairs = ((i * o, p * q) for i, p in inputs for o, q in outputs if not (is_projection and i == o))
        return torch.stack([each * size * probability for size, probability in pairs] or [torch.zeros(())]).sum()

    certain, positions, outputs = torch.ones((), dtype=torch.float64), images[1] * images[2], likely("stem.conv")
    total = macs([(images[0], certain)], outputs, 9 * positions)
    for stage, blocks in enumerate(net.blocks):
        depths, ends = likely(f"stages.{stage}"), []
        for block in range(blocks):
            path, halves, inputs = f"stages.{stage}.{block}", stage > 0 and block == 0, outputs
            positions = positions // 4 if halves else positions
            inner, outputs = likely(f"{path}.layer1.conv"), likely(f"{path}.layer2.conv")
            cost = macs(inputs, inner, 9 * positions) + macs(inner, outputs, 9 * positions)
            # A shortcut is a 1×1 convolution where it halves, else only where the widths that it joins differ.
            cost += macs(inputs, outputs, positions, is_projection=not halves)
            total += cost * sum(q for depth, q in depths if depth > block)
            ends.append(outputs)
        outputs = [(width, p * q) for depth, q in depths for width, p in ends[depth - 1]]  # the last block that is kept
    return total + macs([*outputs, (1, certain)], [(len(net.weights["classifier.bias"]), certain)], 1)  # 1: the bias


def penalty(expected: Tensor, actual: float, budget: float, tolerance: float = 0.05) -> Tensor:
    """Moves the expected cost towards the budget, unless the most probable architecture is near it (Eq. 7)."""
    direction = (actual > (1 + tolerance) * budget) - (actual < (1 - tolerance) * budget)
    return direction * torch.log(expected / budget)


def most_probable(logits: Rows, candidates: Candidates) -> Sizes:
    """The architecture: the most probable size of every choice (section 3.2)."""
    return {name: candidates[name][int(row.argmax())] for name, row in logits.items()}


def search(net: SlowSupernet, candidates: Candidates, logits: Rows, steps: Iterable[Step], budget: float) -> Sizes:
    """Weights and logits learn in turn, each on its half of the data; then the sizes are derived (Algorithm 1)."""
    weights_optimizer = torch.optim.SGD(list(net.weights.values()), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    logits_optimizer = torch.optim.Adam(list(logits.values()), 1e-3, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss_of(images: Tensor, labels: Tensor, temperature: float) -> Tensor:
        choices = {name: draw(row, candidates[name], temperature) for name, row in logits.items()}
        return F.cross_entropy(net(choices, images), labels)

    for weights_batch, logits_batch, temperature in steps:
        weights_optimizer.zero_grad()
        loss_of(*weights_batch, temperature).backward()
        weights_optimizer.step()
        logits_optimizer.zero_grad()
        probabilities = {name: row.softmax(0) for name, row in logits.items()}
        one_hot = {name: F.one_hot(row.argmax(), len(row)) for name, row in logits.items()}
        macs = [expected_macs(net, candidates, rows, logits_batch[0].shape[1:]) for rows in (probabilities, one_hot)]
        (loss_of(*logits_batch, temperature) + 2 * penalty(macs[0], float(macs[1]), budget)).backward()
        logits_optimizer.step()
    return most_probable(logits, candidates)


def small_resnet(width: int = 8, blocks: Sequence[int] = (2, 2), classes: int = 10) -> tuple[SlowSupernet, Candidates]:
    """A new supernet for images of three channels, and its candidates: half or all of each width, and every depth."""
    layers = [(f"{s}.{b}.layer{n}", width * 2**s) for s, kept in enumerate(blocks) for b in range(kept) for n in (1, 2)]
    candidates: dict[str, Sequence[int]] = {f"stages.{s}": range(1, kept + 1) for s, kept in enumerate(blocks)}
    weights = {"classifier.weight": torch.zeros(classes, layers[-1][1]), "classifier.bias": torch.zeros(classes)}
    for (_, inputs), (path, outputs) in pairwise([("", 3), ("stem", width), *((f"stages.{n}", w) for n, w in layers)]):
        candidates[f"{path}.conv"] = (outputs // 2, outputs)
        weights[f"{path}.conv.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        weights[f"{path}.norm.weight"], weights[f"{path}.norm.bias"] = torch.ones(2, outputs), torch.zeros(2, outputs)
        if outputs == 2 * inputs:  # the shortcut beside it changes the width too
            weights[f"{path[:-7]}.sum.shortcut.1.weight"] = torch.randn(outputs, inputs, 1, 1) / inputs**0.5
    return SlowSupernet({name: each.requires_grad_() for name, each in weights.items()}, blocks), candidates
