"""Small search spaces made at random, and costs that no rule gives, for a derivation beside brute force."""

from __future__ import annotations

import random

from transprune.costs import Channels, Cost, Layer
from transprune.space import DepthStage, SearchSpace, WidthGroup


def random_space(seed: int) -> SearchSpace:
    """A stem, a stage of up to two blocks, concatenations and a classifier: at most 486 architectures."""
    draw = random.Random(seed)
    blocks = draw.choice([0, 0, 1, 2])
    names = ["stem", *(f"stage.{block}" for block in range(blocks)), *("ab"[: draw.randint(0, 2)])]
    groups = tuple(random_group(draw, name) for name in names)
    ends = {group.name: Channels(group.width, group.name, draw.choice([1, 1, 4])) for group in groups}
    layers = [random_layer(draw, "stem", Channels(3), ends["stem"])]
    before = ends["stem"]
    for block in range(blocks):
        layers.append(random_layer(draw, f"stage.{block}", before, ends[f"stage.{block}"]))
        before = ends[f"stage.{block}"]
    stages = random_stage(draw, ends, blocks)
    seen = [Channels(before.full, "stage") if stages else before]
    for name in names[1 + blocks :]:
        layers.append(random_layer(draw, name, concatenated(draw, seen), ends[name]))
        seen.append(ends[name])
    layers.append(random_layer(draw, "classifier", concatenated(draw, seen), Channels(5)))
    return SearchSpace(groups=groups, stages=stages, layers=tuple(layers))


def random_group(draw: random.Random, name: str) -> WidthGroup:
    width = draw.randint(2, 12)
    candidates = tuple(sorted({width, *draw.sample(range(1, width + 1), min(2, width))}))
    return WidthGroup(name=name, width=width, candidates=candidates, layers=(name,))


def random_stage(draw: random.Random, ends: dict[str, Channels], blocks: int) -> tuple[DepthStage, ...]:
    if not blocks:
        return ()
    depths = tuple(sorted({blocks, *draw.sample(range(1, blocks + 1), draw.randint(1, blocks))}))
    paths = tuple(f"stage.{block}" for block in range(blocks))
    outputs = tuple(ends[path] for path in paths)
    return (DepthStage(name="stage", depth=blocks, candidates=depths, blocks=paths, outputs=outputs),)


def random_layer(draw: random.Random, name: str, inputs: Channels, outputs: Channels) -> Layer:
    return Layer(
        name=name,
        operator="conv",
        inputs=inputs,
        outputs=outputs,
        kernel=draw.choice([1, 9]),
        positions=draw.choice([1, 7, 64]),
        has_bias=draw.random() < 0.5,
    )


def concatenated(draw: random.Random, seen: list[Channels]) -> Channels:
    """The last of the channels, or several of them side by side."""
    first, *others = draw.sample(seen, draw.randint(1, len(seen))) if draw.random() < 0.7 else seen[-1:]
    return Channels(first.full, first.source, first.repeat, tuple(others))


class Steps(Cost):
    """Costs with steps and dips, as if measured: no product, not even rising everywhere."""

    kind, name = "steps", "steps"
    is_monotone = False

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        draw = random.Random(f"{layer.name} {part} {inputs} {outputs}")
        return 50 + draw.randint(0, 40) + 5 * (inputs // 2) * -(-outputs // 4)


class Drawn(Cost):
    """Costs that say nothing of a size."""

    kind, name = "drawn", "drawn"
    is_monotone = False

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        return random.Random(f"{layer.name} {part} {inputs} {outputs}").randint(1, 100)
