"""Shapes of the paper's ResNets (Dong & Yang, 2019, arXiv:1905.09717, section 4) as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transprune.errors import ModelError

Style = Literal["cifar", "imagenet"]
Block = Literal["basic", "bottleneck"]
Halving = Literal["pool", "stride"]
STAGE_WIDTHS: dict[Style, tuple[int, ...]] = {"cifar": (16, 32, 64), "imagenet": (64, 128, 256, 512)}
CONVOLUTIONS: dict[Block, int] = {"basic": 2, "bottleneck": 3}
EXPANSION = 4
IMAGENET_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}


@dataclass(frozen=True)
class ResNetShape:
    """Widths and depths of a ResNet."""

    block: Block
    """`basic`: two 3×3 convolutions; `bottleneck`: 1×1, 3×3 and 1×1."""
    stem: int
    """Width of the first convolution."""
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    """Widths of the convolutions of every block of every stage: `stages[stage][block][convolution]`."""
    style: Style = "cifar"
    """`cifar`: a 3×3 stem, and no batch norm on shortcuts that halve the resolution; `imagenet`: a 7×7 stem of stride 2
    with max pooling, and a batch norm on every shortcut that changes the shape."""
    has_shortcut_norm: bool = True
    """Whether a shortcut that changes the width alone ends in a batch norm. In the paper's counts it does, except in
    derived CIFAR networks of bottlenecks."""
    halved_by: Halving = "pool"
    """What halves the resolution on a shortcut: average pooling (the paper), or the stride of its 1×1 convolution
    (torchvision). Both cost the same."""

    @classmethod
    def unpruned(cls, depth: int, *, halved_by: Halving = "pool") -> ResNetShape:
        """The shape of the unpruned network with that many layers.

        Args:
            depth: 18, 34 or 50 (ImageNet); 164 (CIFAR, bottlenecks); 20, 32, 44, 56, 110 and others of the form 6n + 2
                (CIFAR, basic blocks).
            halved_by: What halves the resolution on a shortcut.

        Raises:
            ModelError: There is none of that depth.
        """
        if depth in IMAGENET_BLOCKS:
            block, blocks = IMAGENET_BLOCKS[depth]
            return cls.uniform("imagenet", block, blocks, halved_by=halved_by)
        if depth == 164:
            return cls.uniform("cifar", "bottleneck", (18, 18, 18), halved_by=halved_by)
        if depth >= 8 and (depth - 2) % 6 == 0:
            return cls.uniform("cifar", "basic", ((depth - 2) // 6,) * 3, halved_by=halved_by)
        raise ModelError(
            f"cannot build a ResNet of {depth} layers; expected 18, 34 or 50 (ImageNet), 6n + 2 such as 20, 32, 44, "
            f"56, 110 (CIFAR, basic blocks) or 164 (CIFAR, bottlenecks)"
        )

    @classmethod
    def uniform(cls, style: Style, block: Block, blocks: Sequence[int], *, halved_by: Halving = "pool") -> ResNetShape:
        """The shape with so many blocks a stage, all at the full widths of the style."""
        widths = STAGE_WIDTHS[style]
        inner = [(width, width) if block == "basic" else (width, width, EXPANSION * width) for width in widths]
        stages = tuple((each,) * count for each, count in zip(inner, blocks, strict=True))
        return cls(block=block, stem=widths[0], stages=stages, style=style, halved_by=halved_by)

    @classmethod
    def from_paper(
        cls,
        block: Block,
        widths: Sequence[int],
        blocks: Sequence[int],
        depths: Sequence[int] | None = None,
        *,
        style: Style = "cifar",
    ) -> ResNetShape:
        """Reads the paper's notation; the widths need not be candidates of a search.

        Args:
            block: Kind of the blocks.
            widths: [image channels, stem, then every main-path convolution in order, those of dropped blocks included].
            blocks: Blocks of every stage before any is dropped.
            depths: Blocks kept of every stage; None: all.
            style: Of which data set.

        Raises:
            ModelError: The numbers do not fit together.
        """
        if block not in CONVOLUTIONS:
            raise ModelError(f"cannot read a ResNet of {block!r} blocks: expected {' or '.join(CONVOLUTIONS)}")
        each = CONVOLUTIONS[block]
        depths = blocks if depths is None else depths
        if len(widths) != 2 + each * sum(blocks) or len(depths) != len(blocks):
            raise ModelError(
                f"cannot read a {block} ResNet from {len(widths)} widths and {len(depths)} depths; expected "
                f"{2 + each * sum(blocks)} widths and {len(blocks)} depths for stages of {list(blocks)} blocks"
            )
        if min(widths) < 1 or not all(1 <= kept <= count for kept, count in zip(depths, blocks, strict=True)):
            raise ModelError(
                f"cannot read a {block} ResNet that keeps {list(depths)} blocks and whose narrowest width is "
                f"{min(widths)}; expected widths of at least 1, and 1 to {list(blocks)} blocks"
            )
        rest = iter(widths[2:])
        stages = [[tuple(next(rest) for _ in range(each)) for _ in range(count)] for count in blocks]
        kept_stages = tuple(tuple(stage[:kept]) for stage, kept in zip(stages, depths, strict=True))
        has_norm = style == "imagenet" or block == "basic"
        return cls(block=block, stem=widths[1], stages=kept_stages, style=style, has_shortcut_norm=has_norm)

    @property
    def last_width(self) -> int:
        """Channels that the classifier reads."""
        return self.stages[-1][-1][-1]
