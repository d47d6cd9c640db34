"""Half of a small trained language model: ours, and what else makes it as small, distilled alike.

    python benchmarks/stories.py FOLDER --out benchmarks/stories [--seeds 0 1 2] [--arms NAME ...] [--texts FILE]

FOLDER holds `stories260K.bin`, `tok512.bin` (karpathy/llama2.c) and `tinystories.txt`. There is little text, so the
networks learn from what the teacher writes itself, and are measured on all of the text, which none of them has seen.
Every network of half the parameters is trained on as many tokens, by the same loss: cross-entropy of the tokens and
divergence from the teacher. Networks with new weights learn at the higher of two rates. Needs transformers; the arm
`magnitude` also torch-pruning. Each network leaves a JSON file, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import struct
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.models.llama import modeling_llama

import transprune
from chosen_blocks import BEGIN, read_stories
from transprune.budget import parse_budgets
from transprune.costs import COSTS
from transprune.data.texts import packed
from transprune.models.configured import configured
from transprune.runtime.environment import environment
from transprune.shrinking.shrink import shrink
from transprune.tas.baselines import uniform_architecture

LENGTH = 256
"""Tokens of a sequence."""
SHOWN = 128
"""Tokens of each of the sequences that scores look at."""
BUDGET = "params=0.5"
TOKENS = 200_000
"""Tokens that the teacher writes."""
EPOCHS = 4
RATES = {"scratch": 5e-3, "scratch_tied": 5e-3}
"""Learning rates of networks with new weights."""
RATE = 2e-3
"""Learning rate of the others."""


# --- the teacher, from llama2.c


def read_teacher(path: Path) -> nn.Module:
    """The network as a Llama of transformers, which takes the rotary pairs as halves and not as neighbours."""
    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", content[:28])
    numbers = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy())
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return numbers[place - count : place].view(*shape)

    size = dim // heads
    read = {
        "embed": take(vocabulary, dim),
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * size, dim),
        "self_attn.v_proj": take(layers, kv_heads * size, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
        "norm": take(dim),
    }

    def halved(weight: Tensor, count: int) -> Tensor:
        return weight.view(count, size // 2, 2, dim).transpose(1, 2).reshape(count * size, dim)

    state = {"model.embed_tokens.weight": read.pop("embed"), "model.norm.weight": read.pop("norm")}
    for name, stacked in read.items():
        for layer in range(layers):
            weight = stacked[layer]
            if name.endswith(("q_proj", "k_proj")):
                weight = halved(weight, len(weight) // size)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


# --- data


@torch.no_grad()
def written(teacher: Any, count: int, seed: int) -> Tensor:
    """So many tokens that the teacher writes itself, story after story, at temperature 1."""
    torch.manual_seed(seed)
    parts: list[Tensor] = []
    while sum(map(len, parts)) < count:
        begun = torch.full((128, 1), BEGIN)
        stories = teacher.generate(
            begun,
            attention_mask=torch.ones_like(begun),
            do_sample=True,
            top_k=0,
            max_new_tokens=LENGTH,
            pad_token_id=0,
            eos_token_id=[BEGIN, 2],
        )
        for story in stories:
            ends = ((story[1:] == BEGIN) | (story[1:] == 2)).nonzero()
            parts.append(story[: int(ends[0]) + 1] if len(ends) else story)
    return torch.cat(parts)[:count]


# --- the arms

TASK = transprune.causal_lm()
Made = tuple[nn.Module, dict[str, Any]]
"""A network, and what is to be said of it."""


@dataclass(frozen=True)
class Halved:
    """What makes a network of half the parameters; each method that is an arm is named as one."""

    teacher: nn.Module
    inputs: Tensor
    """Sequences to look at, without labels."""
    seed: int

    @property
    def example(self) -> dict[str, Tensor]:
        """A small batch of inputs."""
        return {"input_ids": self.inputs[:2]}

    def scored(self, **chosen: Any) -> transprune.Compression:
        """What `compress` finds where this can be chosen."""
        space = transprune.inspect(self.teacher, self.example, **chosen)
        samples, count = [{"input_ids": self.inputs}], len(self.inputs)
        return transprune.compress(self.teacher, samples, BUDGET, space=space, samples=count, task=TASK, seed=self.seed)

    def untied(self) -> Made:
        """Widths layer by layer, attention and expansions that may go one by one."""
        found = self.scored(removable="branches")
        return found.student, found.architecture.to_json()

    def tied(self) -> Made:
        """What the configuration of the stock class can say."""
        found = self.scored(tie="config")
        stock = configured(found.student, self.teacher, found.space, found.architecture)
        return stock, found.architecture.to_json()

    def scratch(self) -> Made:
        """The shape of `untied` with new weights."""
        found = self.scored(removable="branches")
        torch.manual_seed(self.seed)
        new = type(self.teacher)(self.teacher.config)
        shape = {"weights": "scratch", "reading": found.space.reading}
        return shrink(new, found.architecture, self.example, **shape), found.architecture.to_json()

    def scratch_tied(self) -> Made:
        """The shape of `tied` with new weights."""
        stock, said = self.tied()
        torch.manual_seed(self.seed)
        return type(stock)(stock.config), said

    def uniform(self) -> Made:
        """All widths at one share, the channels of the largest weights, repaired as ours."""
        space = transprune.inspect(self.teacher, self.example, dimensions="width")
        limits = [each.limit(space, COSTS) for each in parse_budgets(BUDGET)]
        architecture = uniform_architecture(space, limits)
        origin = transprune.sort_channels(self.teacher, self.example, reading=space.reading)
        student = shrink(origin, architecture, self.example, reading=space.reading)
        repaired = transprune.repair(student, origin, architecture, {"input_ids": self.inputs}, reading=space.reading)
        return repaired, architecture.to_json()

    def depth(self) -> Made:
        """The two whole blocks of five that tell the next token best together, repaired as ours."""
        space = transprune.inspect(self.teacher, self.example, dimensions="depth")
        (stage,) = space.stages
        given = {"input_ids": self.inputs}
        tried = []
        for pair in combinations(stage.blocks, 2):
            architecture = transprune.Architecture(
                widths={group.name: group.width for group in space.groups},
                depths={stage.name: 2},
                blocks={stage.name: pair},
            )
            student = shrink(self.teacher, architecture, self.example, reading=space.reading).eval()
            student = transprune.repair(student, self.teacher, architecture, given, reading=space.reading)
            with torch.no_grad():
                tried.append((float(TASK.loss(student(**given), self.inputs)), pair, student, architecture))
        _, _, student, architecture = min(tried, key=lambda each: each[0])
        return student, architecture.to_json()

    def magnitude(self) -> Made:
        """Torch-Pruning as its example for language models has it: hidden size, expansions and heads by one ratio."""
        most = sum(each.numel() for each in self.teacher.parameters()) // 2
        low, high = 0.0, 0.9
        for _ in range(12):
            ratio = (low + high) / 2
            pruned = by_torch_pruning(self.teacher, self.example["input_ids"], ratio)
            is_fine = sum(each.numel() for each in pruned.parameters()) <= most
            low, high = (low, ratio) if is_fine else (ratio, high)
        return by_torch_pruning(self.teacher, self.example["input_ids"], high), {"ratio": high}


def by_torch_pruning(teacher: nn.Module, inputs: Tensor, ratio: float) -> nn.Module:
    """A copy of a Llama with everything cut by one ratio."""
    import torch_pruning

    model: Any = copy.deepcopy(teacher)
    model.config.use_cache = False
    attentions = [each for name, each in model.named_modules() if name.endswith("self_attn")]
    heads = {}
    for each in attentions:
        heads[each.q_proj] = model.config.num_attention_heads
        heads[each.k_proj] = heads[each.v_proj] = model.config.num_key_value_heads
    # Its graph never ends where halves of queries change places; whole heads are cut, so nothing depends on it.
    with patch.object(modeling_llama, "apply_rotary_pos_emb", lambda queries, keys, *_: (queries, keys)):
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            pruning_ratio=ratio,
            ignored_layers=[model.lm_head],
            output_transform=lambda outputs: outputs.logits,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
        pruner.step()
    model.lm_head.weight = model.model.embed_tokens.weight
    for each in attentions:
        each.num_key_value_groups = each.q_proj.out_features // each.k_proj.out_features
    model(inputs)
    return model


# --- measuring


def measured(network: nn.Module, data: transprune.LoaderData) -> float:
    """Loss in nats a token."""
    return transprune.evaluate(network, data, task=TASK).metrics["token_loss"]


def run(name: str, asked: argparse.Namespace, teacher: nn.Module, texts: Tensor, tokens: Tensor, *, seed: int) -> dict:
    """One network: made, distilled, measured."""
    torch.manual_seed(seed)
    sequences, batch = packed(texts, LENGTH), {"batch_size": 16}
    rows = sequences.columns["input_ids"]
    train = DataLoader(sequences, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed), **batch)
    test = DataLoader(packed(tokens, LENGTH), batch_size=64)
    data = transprune.LoaderData(train=train, test=test, example={"input_ids": rows[:1]})
    started = time.process_time()
    looked_at = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:64]][:, :SHOWN]
    student, said = getattr(Halved(teacher, looked_at, seed), name)()
    made, before = time.process_time() - started, measured(student, data)
    options = transprune.DistillationOptions(
        epochs=asked.epochs,
        warm_up_epochs=0.2,
        optimizer="adamw",
        learning_rate=asked.rate or RATES.get(name, RATE),
        weight_decay=0.01,
        weight=0.9,
        distillation_temperature=1.0,
        evaluate_every=asked.epochs,
    )
    started = time.process_time()
    setup = transprune.Setup(seed=seed, progress=False)
    student = transprune.distill(student, teacher, data, options, task=TASK, setup=setup)
    trained = time.process_time() - started
    return {
        "arm": name,
        "seed": seed,
        "parameters": sum(each.numel() for each in student.parameters()),
        "token_loss_untrained": before,
        "token_loss": measured(student, data),
        "tokens": asked.epochs * len(train) * 16 * (LENGTH - 1),
        "learning_rate": options.learning_rate,
        "seconds": {"making": round(made, 1), "distilling": round(trained, 1)},
        "made": said,
    }


ARMS = ("untied", "tied", "scratch", "scratch_tied", "uniform", "depth", "magnitude")


def main() -> None:
    """Makes what is missing, and prints a table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens that the teacher writes")
    parser.add_argument("--texts", type=Path, help="file that keeps what the teacher writes")
    parser.add_argument("--rate", type=float, help="another learning rate, for all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    teacher, tokens = read_teacher(asked.folder / "stories260K.bin"), torch.tensor(read_stories(asked.folder))
    kept = asked.texts or asked.out / "texts.npy"
    if not kept.exists():
        started = time.process_time()
        np.save(kept, written(teacher, asked.tokens, seed=0).numpy().astype(np.int16))
        print(f"{asked.tokens} tokens written in {time.process_time() - started:.0f} s", flush=True)
    texts = torch.from_numpy(np.load(kept).astype(np.int64))
    about = asked.out / "teacher.json"
    if not about.exists():
        test = DataLoader(packed(tokens, LENGTH), batch_size=64)
        data = transprune.LoaderData(train=test, test=test, example={"input_ids": tokens[None, :LENGTH]})
        said = {
            "token_loss": measured(teacher, data),
            "parameters": sum(each.numel() for each in teacher.parameters()),
            "environment": environment(),
        }
        about.write_text(json.dumps(said, indent=2, default=str) + "\n")
    for seed in asked.seeds:
        for name in asked.arms:
            file = asked.out / f"{name}-{seed}.json"
            if not file.exists():
                found = run(name, asked, teacher, texts, tokens, seed=seed)
                file.write_text(json.dumps(found, indent=2) + "\n")
                print({key: value for key, value in found.items() if key != "made"}, flush=True)
    for name in ARMS:
        files = sorted(asked.out.glob(f"{name}-[0-9]*.json"))
        losses = [json.loads(file.read_text())["token_loss"] for file in files]
        if losses:
            print(f"{name}: {statistics.mean(losses):.4f} nats a token, seeds {[round(each, 4) for each in losses]}")


if __name__ == "__main__":
    main()
