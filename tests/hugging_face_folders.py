"""Small folders as transformers writes them, and what the Hub's client raises."""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TEXT = "Once there was a cat. The cat saw a dog, and the dog saw the cat.\n" * 60
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Of all these networks."""


def write_language_model(folder: Path) -> Path:
    """A small random Llama with a tokenizer of bytes, as `save_pretrained` writes them."""
    torch.manual_seed(0)
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = byte_level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    config = transformers.LlamaConfig(
        vocab_size=280,
        **SIZES,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_token_classifier(folder: Path) -> Path:
    """A small random BERT that labels tokens, with the tokenizer of the language model."""
    torch.manual_seed(0)
    write_language_model(folder)
    config = transformers.BertConfig(**SIZES, vocab_size=280, max_position_embeddings=64, num_labels=3)
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    return folder


def write_image_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        **SIZES,
        num_labels=10,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.25], "image_std": [0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n")
    return folder


def changed(folder: Path, *, without: str = "", config: dict[str, Any] | None = None, **files: str) -> str:
    """A copy of a folder with something changed."""
    copy = folder.parent / f"{folder.name}-changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    if without:
        (copy / without).unlink()
    if config is not None:
        (copy / "config.json").write_text(json.dumps({**json.loads((copy / "config.json").read_text()), **config}))
    for name, content in files.items():
        (copy / name.replace("__", ".")).write_text(content)
    return f"hf:{copy}"


class GatedRepoError(OSError):
    """As the Hub's client has it, by name."""


class RepositoryNotFoundError(OSError):
    """Likewise."""
