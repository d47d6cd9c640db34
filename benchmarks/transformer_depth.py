"""Depth in the networks of Hugging Face's `transformers`: small instances of current configurations, random weights.

    pip install transformers
    python benchmarks/transformer_depth.py [PATTERN ...]    # JSON lines

Of each it says which stages are found, whether the predicted cost is the counted one, whether the full architecture
computes what the network does, whether forward and backward run at other batch sizes, whether one step of search runs
on 16 samples, and whether a student without blocks keeps its own class; then each width, which tables are cut with it
and what is amiss where it alone is halved. `make coverage` examines them all, with all widths at once.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import transprune
from transprune.reading.inspection import inspect
from transprune.reading.trace import in_parts
from transprune.shrinking.shrink import shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.space import WidthGroup
from transprune.tas.sampling import ArchitectureParameters, Selection
from transprune.tas.supernet import Supernet

TOKENS, LENGTH, SIDE = 61, 12, 32


class Library:
    """A library that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.name), name)


hf = Library("transformers")
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
TEXT: dict[str, Any] = {**SMALL, "vocab_size": TOKENS, "max_position_embeddings": 64}
DECODER: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False}
IMAGE: dict[str, Any] = {**SMALL, "image_size": SIDE, "patch_size": 8}


class First(nn.Module):
    """What a network of `transformers` gives first: logits, or what its last layer hands on."""

    def __init__(self, network: nn.Module, *names: str, fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network, self.names, self.fixed = network, names, fixed or {}

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.network(**dict(zip(self.names, inputs, strict=True)), **self.fixed)
        return found if isinstance(found, Tensor) else found[0]


@dataclass(frozen=True)
class Case:
    """A network and the inputs that it is traced with."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[..., tuple[Tensor, ...]]
    """Inputs of so many samples; also with `more` tokens, where the number of these may differ."""


def tokens(count: int, length: int = LENGTH) -> Tensor:
    return torch.randint(1, TOKENS, (count, length), generator=torch.Generator().manual_seed(3))


def with_mask(count: int, more: int = 0) -> tuple[Tensor, ...]:
    mask = torch.ones(count, LENGTH + more, dtype=torch.long)
    mask[:, 9:] = 0
    return tokens(count, LENGTH + more), mask


def alone(count: int, more: int = 0) -> tuple[Tensor, ...]:
    return (tokens(count, LENGTH + more),)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def images(count: int, more: int = 0) -> tuple[Tensor, ...]:
    return (drawn(count, 3, SIDE, SIDE),)


def text(name: str, build: Callable[[], nn.Module], *, masked: bool = True) -> list[Case]:
    cases = [Case(name, lambda: First(build(), "input_ids"), alone)]
    if masked:
        cases.append(Case(f"{name}+mask", lambda: First(build(), "input_ids", "attention_mask"), with_mask))
    return cases


def image(name: str, build: Callable[[], nn.Module]) -> list[Case]:
    return [Case(name, lambda: First(build(), "pixel_values"), images)]


CLIP_TEXT: dict[str, Any] = {**TEXT, "projection_dim": 16, "eos_token_id": 2}
T5: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 4,
    "num_heads": 4,
    "use_cache": False,
}
WHISPER: dict[str, Any] = {
    "vocab_size": TOKENS,
    "num_mel_bins": 16,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "encoder_ffn_dim": 40,
    "d_model": 32,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
ENDS: dict[str, Any] = {"use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OPT: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **ENDS,
}
BLOOM: dict[str, Any] = {"vocab_size": TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4, **ENDS}
FALCON: dict[str, Any] = {**SMALL, "vocab_size": TOKENS, **ENDS}
BART: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    **ENDS,
}
WAV2VEC: dict[str, Any] = {
    **SMALL,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,  # numpy decides in training where it writes over tokens
    "vocab_size": TOKENS,
}


def encoder_and_decoder(name: str, build: Callable[[], nn.Module]) -> list[Case]:
    return [
        Case(
            name,
            lambda: First(build(), "input_ids", "decoder_input_ids"),
            lambda count, more=0: (tokens(count, LENGTH + more), tokens(count, 7 + more)),
        )
    ]


class TorchEncoder(nn.Module):
    """Torch's own encoder with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 40, batch_first=True, dropout=0.0)
        self.embedding, self.encoder = nn.Embedding(TOKENS, 32), nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=mask).mean(1))


CASES: list[Case] = [
    *text("bert", lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT))),
    *text("roberta", lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT))),
    *text(
        "distilbert",
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(
                vocab_size=TOKENS, max_position_embeddings=64, dim=32, hidden_dim=40, n_layers=4, n_heads=4
            )
        ),
    ),
    *text("albert", lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**TEXT, embedding_size=16))),
    *text("electra", lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**TEXT, embedding_size=16))),
    *text(
        "gpt2",
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=TOKENS, n_positions=64, n_embd=32, n_layer=4, n_head=4, use_cache=False)
        ),
    ),
    *text("opt", lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)), masked=False),
    *text("bloom", lambda: hf.BloomForCausalLM(hf.BloomConfig(**BLOOM))),
    *text("falcon", lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)), masked=False),
    *text("gpt-neox", lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT, use_cache=False)), masked=False),
    *text("phi", lambda: hf.PhiForCausalLM(hf.PhiConfig(**TEXT, use_cache=False)), masked=False),
    *text("llama", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER))),
    *text("mistral", lambda: hf.MistralForCausalLM(hf.MistralConfig(**DECODER))),
    *text("qwen2", lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER))),
    *text("qwen3", lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER, head_dim=8))),
    *text("gemma2", lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**DECODER, head_dim=8))),
    *text("gemma3", lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, head_dim=8))),
    *encoder_and_decoder("t5", lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5))),
    *encoder_and_decoder("bart", lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART))),
    Case(
        "whisper",
        lambda: First(
            hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)), "input_features", "decoder_input_ids"
        ),
        lambda count, more=0: (drawn(count, 16, 32), tokens(count, 7 + more)),
    ),
    Case(
        "wav2vec2",
        lambda: First(hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WAV2VEC)), "input_values"),
        lambda count, more=0: (drawn(count, 400 + 40 * more),),
    ),
    *image("vit", lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE))),
    *image("deit", lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGE))),
    *image(
        "swin",
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(image_size=SIDE, patch_size=2, embed_dim=16, depths=[2, 4], num_heads=[2, 4], window_size=4)
        ),
    ),
    *image(
        "convnext",
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[2, 4], num_stages=2, patch_size=4)
        ),
    ),
    *text("clip-text", lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**CLIP_TEXT))),
    *image("clip-vision", lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**IMAGE, projection_dim=16))),
    Case(
        "nn.TransformerEncoder",
        TorchEncoder,
        lambda count, more=0: (tokens(count, LENGTH + more), torch.arange(LENGTH + more).expand(count, -1) >= 9),
    ),
]


def checked(case: Case) -> dict[str, object]:
    """What holds of a network."""
    torch.manual_seed(0)
    network = case.build().eval()
    example = case.inputs(2)
    space = inspect(network, example)
    reading = space.reading
    found: dict[str, object] = {
        "name": case.name,
        "stages": {stage.name: stage.depth for stage in space.stages},
        "groups": len(space.groups),
        "exact": reading.macs == reading.counted,
    }
    if not space.stages:
        found["fixed"] = [(each.name, each.reason) for each in space.fixed]
        return found
    supernet = Supernet(network, space, example).train()
    full = Selection.of(space, space.full_architecture())
    with torch.no_grad():
        for count in (2, 5, 16):
            inputs = case.inputs(count)
            with in_parts():
                wanted = network(*inputs)
            gap = float((supernet.eval()(full, *inputs) - wanted).abs().max() / wanted.abs().max())
            found[f"gap{count}"] = gap if gap > 1e-5 else 0
    parameters = ArchitectureParameters(space)
    supernet.train()
    outputs = supernet(parameters.sample(temperature=1.0), *case.inputs(16))
    outputs.square().mean().backward()
    found["gradients"] = all(each.grad is not None for each in parameters.parameters() if each.numel())
    architecture = transprune.Architecture(depths={stage.name: stage.depth - 1 for stage in space.stages})
    student = shrink(network, architecture, example, reading=reading)
    found["own"] = not isinstance(student, TracedNetwork)
    if isinstance(student, TracedNetwork):
        found["reason"] = student.reason
    student.train()(*case.inputs(16)).square().mean().backward()
    found["macs"] = transprune.count_macs(student.eval(), example) == space.macs(architecture)
    found["params"] = sum(each.numel() for each in student.parameters()) == space.params(architecture)
    found["widths"] = [halved(case, network, space, group) for group in space.groups]
    return found


def halved(case: Case, network: nn.Module, space: transprune.SearchSpace, group: WidthGroup) -> dict[str, object]:
    """A width, the tables that are cut with it, and what is amiss in the student of which it alone is halved."""
    example = case.inputs(2)
    half = max((each for each in group.candidates if each <= group.width / 2), default=group.candidates[0])
    architecture = transprune.Architecture(widths={group.name: half})
    student = shrink(network, architecture, example, reading=space.reading)
    whole, cut = (dict(each.named_parameters(remove_duplicate=False)) for each in (network, student))
    holds = {
        "class": not isinstance(student, TracedNetwork),
        "macs": transprune.count_macs(student.eval(), example) == space.macs(architecture),
        "params": sum(each.numel() for each in student.parameters()) == space.params(architecture),
        "ties": [[one is other for other in whole.values()] for one in whole.values()]
        == [[one is other for other in cut.values()] for one in cut.values()],
    }
    for count, more in ((1, 0), (5, 3)):
        outputs = student.train()(*case.inputs(count, more=more))
        outputs.square().mean().backward()
        holds[f"runs{count}"] = bool(outputs.isfinite().all())
    tables = [
        name
        for name, each in cut.items()
        if ("position" in name or isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Embedding))
        and each.shape != whole[name].shape
    ]
    amiss = [name for name, is_so in holds.items() if not is_so]
    return {"name": group.name, "width": group.width, "unit": group.unit, "tables": tables, "amiss": amiss}


def main(patterns: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for case in CASES:
        if not patterns or any(fnmatchcase(case.name, each) for each in patterns):
            try:
                print(json.dumps(checked(case)), flush=True)
            except Exception as error:  # a library's code may raise anything
                print(json.dumps({"name": case.name, "error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
