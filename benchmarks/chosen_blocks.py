"""Which blocks of a trained network stay: those that scores choose, against the first ones and the best there are.

    python benchmarks/chosen_blocks.py FOLDER [--samples 64] [--length 128] > benchmarks/chosen_blocks/stories260k.json

FOLDER holds a trained Llama as karpathy/llama2.c writes it: `stories260K.bin` (7 int32, then float32 weights),
`tok512.bin` (its tokens) and a text of stories, `*.txt`. Nothing is trained. The order of the blocks is found on the
first pieces of the text, and losses (nats a token) are those of other pieces. For each number of blocks it prints the
loss with the blocks that stay by their order, with the first ones, and with the best of all choices. With `--branches`
attention and expansion go by themselves: for each budget the branches that are chosen, those that an exhaustive search
finds on the same pieces (the least loss of all sets within the budget), and those that turn out best on the others.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import time
from collections.abc import Sequence
from itertools import combinations, pairwise
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


def encoded(text: str, tokens: dict[bytes, tuple[int, float]]) -> list[int]:
    """A story as numbers: its bytes, of which the neighbours with the best score are joined again and again."""
    parts = [each.encode() for each in f" {text}"]
    parts = [part for each in parts for part in ([each] if each in tokens else [b"<0x%02X>" % byte for byte in each])]
    while True:
        joined = [(tokens[a + b][1], -place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in tokens]
        if not joined:
            return [1, *(tokens[part][0] for part in parts)]
        place = -max(joined)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def pieces(text: str, tokens: dict[bytes, tuple[int, float]], count: int, length: int) -> Tensor:
    """The beginnings of stories [count, length]."""
    stories = re.split(r"\n+(?=Once upon a time|One day)", text)
    found = []
    for story in stories:
        ids = encoded(story[: 6 * length], tokens)
        if len(ids) >= length:
            found.append(ids[:length])
        if len(found) == count:
            break
    return torch.tensor(found)


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
    tables, found = network.tables(ids[:, :-1]), dict[tuple[int, ...], float]()

    def go_on(kept: tuple[int, ...], place: int, tokens: Tensor) -> None:
        if place == 2 * len(network.layers):
            logits = network.head(network.norm(tokens))
            found[kept] = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            return
        layer = network.layers[place // 2]
        go_on((*kept, place), place + 1, layer.expanded(tokens) if place % 2 else layer.attended(tokens, tables))
        go_on(kept, place + 1, tokens)

    go_on((), 0, network.embedding(ids[:, :-1]))
    return found


def branches_within(network: Llama, seen: Tensor, unseen: Tensor, budgets: Sequence[float]) -> list[dict[str, object]]:
    """For each budget the branches that are chosen, and the best of all sets within it."""
    space = inspect(network, seen[:2, :-1], dimensions="depth", removable="branches")
    [stage] = space.stages
    looked_at, losses, rows = every_loss(network, seen), every_loss(network, unseen), []

    def architecture(kept: Sequence[int]) -> transprune.Architecture:
        return transprune.Architecture(blocks={stage.name: tuple(stage.blocks[place] for place in kept)})

    for share in budgets:
        started, limit = time.process_time(), parse_budgets(f"macs={share}")[0].limit(space, COSTS)
        found = compress_by_scores(network, space, [limit], seen[:, :-1], task=next_tokens(), repair=False)
        seconds, kept = time.process_time() - started, stage.kept_in(found.architecture)
        assert abs(loss(found.student, unseen) - losses[kept]) < 1e-4
        within = [each for each in losses if each and space.macs(architecture(each)) <= limit.most]
        searched, best = (min(within, key=each.__getitem__) for each in (looked_at, losses))
        first = max((each for each in within if each == tuple(range(len(each)))), key=len, default=None)
        rows.append(
            {
                "macs": share,
                "sets": len(within),
                "chosen": [stage.blocks[place] for place in kept],
                "chosen_loss": losses[kept],
                "chosen_loss_looked_at": looked_at[kept],
                "searched": [stage.blocks[place] for place in searched],
                "searched_loss": losses[searched],
                "searched_loss_looked_at": looked_at[searched],
                "best": [stage.blocks[place] for place in best],
                "best_loss": losses[best],
                "first_loss": None if first is None else losses[first],
                "seconds": seconds,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--branches", action="store_true", help="leave out branches, not blocks")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.75, 0.6, 0.45, 0.3], help="shares of MACs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = read_llama(options.folder / "stories260K.bin")
    tokens = read_tokens(options.folder / "tok512.bin")
    text = "".join(file.read_text() for file in sorted(options.folder.glob("*.txt")))
    ids = pieces(text, tokens, 2 * options.samples, options.length)
    seen, unseen = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    if options.branches:
        rows = branches_within(network, seen, unseen, options.budgets)
        print(json.dumps({"pieces": len(seen), "tested": len(unseen), "rows": rows}))
        return
    space = inspect(network, seen[:2, :-1], dimensions="depth", depths=lambda depth: range(1, depth + 1))
    started = time.perf_counter()
    limit = parse_budgets("params=0.9")[0].limit(space, COSTS)
    ordered = compress_by_scores(network, space, [limit], seen[:, :-1], task=next_tokens(), repair=False).space
    seconds = time.perf_counter() - started
    [stage] = ordered.stages
    rows = []
    for depth in range(1, stage.depth + 1):
        by_choice = {}
        for kept in combinations(range(stage.depth), depth):
            blocks = {stage.name: tuple(stage.blocks[place] for place in kept)}
            student = transprune.shrink(
                network, transprune.Architecture(blocks=blocks), seen[:2, :-1], reading=space.reading
            )
            by_choice[kept] = loss(student, unseen)
        best = min(by_choice, key=by_choice.__getitem__)
        rows.append(
            {
                "blocks": depth,
                "chosen": stage.kept(depth),
                "chosen_loss": by_choice[stage.kept(depth)],
                "best": best,
                "best_loss": by_choice[best],
                "first_loss": by_choice[tuple(range(depth))],
            }
        )
    print(
        json.dumps({"order": stage.order, "seconds": seconds, "pieces": len(seen), "tested": len(unseen), "rows": rows})
    )


if __name__ == "__main__":
    main()
