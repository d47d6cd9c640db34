"""Which blocks of a trained network stay: those that scores choose, against the first ones and the best there are.

    python benchmarks/chosen_blocks.py FOLDER [--branches] > benchmarks/chosen_blocks/stories260k[-branches].jsonl

FOLDER holds a trained Llama as karpathy/llama2.c writes it: `stories260K.bin` (7 int32, then float32 weights),
`tok512.bin` (its tokens) and stories, `tinystories.txt`. Nothing is trained. What stays is chosen on pieces of one
half of the stories, and losses (nats a token) are those of the other half; both ways. For each number of blocks it
prints the loss with the blocks that stay by their order, with the first ones, and with the best of all choices. With
`--branches` attention and expansion go by themselves: for each budget the branches that are chosen, those that an
exhaustive search finds on the same pieces (the least loss of all sets within the budget), and those that turn out best
on the others.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transprune
from transprune.budget import parse_budgets
from transprune.costs import COSTS
from transprune.reading.inspection import inspect
from transprune.scores.rounds import compress_by_scores

BEGIN = 1
"""The token that a story begins with."""
FIRST = ("Once", "One day, a", "There was")
"""What a story begins with, which the text does not mark."""


class Attention(nn.Module):
    """Causal attention with rotary positions; several queries share a key and a value."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, outputs, bias=False) for outputs in (width, shared * self.size, shared * self.size, width)
        )

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        samples, length, _ = tokens.shape
        query = turned(self.query(tokens).view(samples, length, self.heads, self.size), tables).transpose(1, 2)
        key = turned(self.key(tokens).view(samples, length, self.shared, self.size), tables).transpose(1, 2)
        value = self.value(tokens).view(samples, length, self.shared, self.size).transpose(1, 2)
        times = self.heads // self.shared
        key, value = (each.repeat_interleave(times, dim=1) for each in (key, value))
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(found.transpose(1, 2).reshape(samples, length, -1))


def turned(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates neighbouring pairs of each head by the angles of their positions."""
    cos, sin = (table[None, :, None] for table in tables)
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Block(nn.Module):
    """Attention and a gated expansion, each normed before and added."""

    def __init__(self, width: int, hidden: int, heads: int, shared: int) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, shared)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        return self.expanded(self.attended(tokens, tables))

    def attended(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """The first branch and what it reads."""
        return tokens + self.attention(self.attention_norm(tokens), tables)

    def expanded(self, tokens: Tensor) -> Tensor:
        """The second branch and what it reads."""
        normed = self.norm(tokens)
        return tokens + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    """A Llama whose head is its embedding."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        width, hidden, layers, heads, shared, vocabulary, _ = sizes
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width, hidden, heads, shared) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.pairs = width // heads // 2

    def tables(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle of each pair at each position."""
        rates = 10000.0 ** -(torch.arange(self.pairs, device=ids.device) / self.pairs)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * rates
        return angles.cos(), angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        tables, tokens = self.tables(ids), self.embedding(ids)
        for layer in self.layers:
            tokens = layer(tokens, tables)
        return self.head(self.norm(tokens))


def read_llama(file: Path) -> Llama:
    """The network in a file of llama2.c."""
    content = file.read_bytes()
    network = Llama(struct.unpack("7i", content[:28]))
    weights = torch.from_numpy(np.frombuffer(content[28:], dtype=np.float32).copy())
    order: list[Tensor] = [network.embedding.weight]
    parts = ("attention_norm", "attention.query", "attention.key", "attention.value", "attention.out")
    for part in (*parts, "norm", "gate", "down", "up"):
        order += [layer.get_submodule(part).get_parameter("weight") for layer in network.layers]
    order.append(network.norm.weight)
    start = 0
    with torch.no_grad():
        for parameter in order:
            parameter.copy_(weights[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
    return network.eval()


def read_tokens(file: Path) -> dict[bytes, tuple[int, float]]:
    """Number and score of each token."""
    content, place, found = file.read_bytes(), 4, dict[bytes, tuple[int, float]]()
    while place < len(content):
        score, length = struct.unpack_from("fi", content, place)
        token = content[place + 8 : place + 8 + length]
        found.setdefault(token, (len(found), score))
        place += 8 + length
    return found


def read_stories(folder: Path) -> list[int]:
    """The stories of the text as tokens: byte pairs merged by the best score first, as llama2.c does."""
    tokens = read_tokens(folder / "tok512.bin")
    known: dict[bytes, list[int]] = {}

    def merged(word: str) -> list[int]:
        pieces = [letter.encode() for letter in word]
        while True:
            pairs = [(tokens[a + b][1], -at) for at, (a, b) in enumerate(pairwise(pieces)) if a + b in tokens]
            if not pairs:
                spelt = ([tokens[each][0]] if each in tokens else [byte + 3 for byte in each] for each in pieces)
                return [number for numbers in spelt for number in numbers]
            at = -max(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]

    found: list[int] = []
    for paragraph in (folder / "tinystories.txt").read_text().split("\n\n"):
        is_first = paragraph.startswith(FIRST)
        found += [BEGIN] if is_first else merged("\n")
        # No token but the first of a story begins a line with a space, and none holds a space inside.
        for word in filter(None, (" " * is_first + paragraph.strip()).replace(" ", "\0 ").split("\0")):
            if word not in known:
                known[word] = merged(word)
            found += known[word]
    return found


def halves(stories: list[int], count: int, length: int) -> list[Tensor]:
    """From every second story, and from the others, so many pieces [count, length] from anywhere in them."""
    begins = [place for place, token in enumerate(stories) if token == BEGIN]
    found: list[list[list[int]]] = [[], []]
    for number, (begin, end) in enumerate(pairwise([*begins, len(stories)])):
        for place in range(begin + 1, end - length + 2, length - 1):
            found[number % 2].append([BEGIN, *stories[place : place + length - 1]])
    drawn = torch.Generator().manual_seed(0)
    return [torch.tensor(half)[torch.randperm(len(half), generator=drawn)[:count]] for half in found]


def loss(network: nn.Module, ids: Tensor) -> float:
    """Nats a token."""
    with torch.no_grad():
        logits = network(ids[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def next_tokens() -> transprune.Task:
    """A language model, compared by the divergence of its predictions; its classes lie along the last axis."""

    def divergence(student: Tensor, teacher: Tensor, targets: None) -> Tensor:
        student, teacher = student.flatten(0, 1).log_softmax(-1), teacher.flatten(0, 1).log_softmax(-1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    return transprune.Task(
        loss=lambda logits, ids: F.cross_entropy(logits.flatten(0, 1), ids.flatten()), distillation_loss=divergence
    )


@torch.no_grad()
def every_loss(network: Llama, ids: Tensor) -> dict[tuple[int, ...], float]:
    """The loss with each set of branches; what sets have in common at the beginning is computed once."""
    found: dict[tuple[int, ...], float] = {}

    def go_on(kept: tuple[int, ...], place: int, tokens: Tensor) -> None:
        if place == 2 * len(network.layers):
            logits = network.head(network.norm(tokens))
            lost = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten())
            found[kept] = found.get(kept, 0.0) + float(lost) * len(some) / len(ids)
            return
        layer = network.layers[place // 2]
        go_on((*kept, place), place + 1, layer.expanded(tokens) if place % 2 else layer.attended(tokens, tables))
        go_on(kept, place + 1, tokens)

    for some in ids.split(32):
        tables = network.tables(some[:, :-1])
        go_on((), 0, network.embedding(some[:, :-1]))
    return found


def branches_within(network: Llama, parts: Sequence[Tensor], budgets: Sequence[float]) -> Iterator[dict[str, object]]:
    """For each half and budget the branches that are chosen on it, and the best of all sets within the budget."""
    space = inspect(network, parts[0][:2, :-1], dimensions="depth", removable="branches")
    [stage], every = space.stages, [every_loss(network, half) for half in parts]

    def named(kept: Sequence[int]) -> list[str]:
        return [stage.blocks[place] for place in kept]

    macs = {
        kept: space.macs(transprune.Architecture(blocks={stage.name: tuple(named(kept))})) for kept in every[0] if kept
    }
    for half, share in product((0, 1), budgets):
        started, limit = time.process_time(), parse_budgets(f"macs={share}")[0].limit(space, COSTS)
        seen, (looked_at, losses) = parts[half], (every[half], every[1 - half])
        found = compress_by_scores(
            network, space, [limit], seen[:, :-1], task=next_tokens(), targets=seen[:, 1:], repair=False
        )
        seconds, kept = time.process_time() - started, stage.kept_in(found.architecture)
        assert abs(loss(found.student, parts[1 - half]) - losses[kept]) < 1e-4
        within = [each for each in losses if each and macs[each] <= limit.most]
        searched, best = (min(within, key=each.__getitem__) for each in (looked_at, losses))
        first = max((each for each in within if each == tuple(range(len(each)))), key=len, default=None)
        yield {
            "half": half,
            "macs": share,
            "sets": len(within),
            "chosen": named(kept),
            "chosen_loss": losses[kept],
            "chosen_loss_looked_at": looked_at[kept],
            "searched": named(searched),
            "searched_loss": losses[searched],
            "searched_loss_looked_at": looked_at[searched],
            "best": named(best),
            "best_loss": losses[best],
            "first_loss": None if first is None else losses[first],
            "seconds": seconds,
        }


def blocks_left(network: Llama, parts: Sequence[Tensor]) -> Iterator[dict[str, object]]:
    """For each half and number of blocks those that stay by the order found on it, and the best of all choices."""
    space = inspect(network, parts[0][:2, :-1], dimensions="depth", depths=lambda depth: range(1, depth + 1))
    for half, seen in enumerate(parts):
        started, limit = time.process_time(), parse_budgets("params=0.9")[0].limit(space, COSTS)
        ordered = compress_by_scores(network, space, [limit], seen[:, :-1], task=next_tokens(), repair=False).space
        seconds = time.process_time() - started
        [stage] = ordered.stages
        for depth in range(1, stage.depth + 1):
            by_choice = {}
            for kept in combinations(range(stage.depth), depth):
                blocks = {stage.name: tuple(stage.blocks[place] for place in kept)}
                student = transprune.shrink(
                    network, transprune.Architecture(blocks=blocks), seen[:2, :-1], reading=space.reading
                )
                by_choice[kept] = loss(student, parts[1 - half])
            best = min(by_choice, key=by_choice.__getitem__)
            yield {
                "half": half,
                "blocks": depth,
                "chosen": stage.kept(depth),
                "chosen_loss": by_choice[stage.kept(depth)],
                "best": best,
                "best_loss": by_choice[best],
                "first_loss": by_choice[tuple(range(depth))],
                "seconds": seconds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="pieces of each half")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--branches", action="store_true", help="leave out branches, not blocks")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.75, 0.6, 0.45, 0.3], help="shares of MACs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = read_llama(options.folder / "stories260K.bin")
    parts = halves(read_stories(options.folder), options.samples, options.length)
    found = branches_within(network, parts, options.budgets) if options.branches else blocks_left(network, parts)
    print(json.dumps({"pieces": [len(half) for half in parts]}))
    for row in found:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
