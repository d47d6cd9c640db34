"""Texts on the command line: as tokens of a network of transformers, for its three tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hugging_face_folders import TEXT, write_language_model, write_token_classifier
from transprune.data.texts import load_texts
from transprune.errors import DataError, OptionError
from transprune.models.hugging_face import Origin

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> Path:
    folder = write_language_model(tmp_path_factory.mktemp("llama"))
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> Any:
    return Origin(f"hf:{llama}").tokenizer()


def loaded(spec: str, tokenizer: Any, task: str = "causal-lm", length: int = 16, seed: int = 0) -> Any:
    return load_texts(spec, tokenizer, task=task, length=length, batch_size=4, seed=seed)


def test_each_token_is_told_once(llama: Path, tokenizer: Any) -> None:
    data = loaded(f"text:{llama}/text.txt", tokenizer)
    rows = torch.cat([loader.dataset.columns["input_ids"] for loader in (data.train, data.test)])
    stream = [0, *tokenizer(TEXT)["input_ids"], 1]
    assert len(rows) == (len(stream) - 1) // 15
    wanted = [tuple(stream[at : at + 16]) for at in range(0, len(rows) * 15, 15)]
    assert sorted(map(tuple, rows.tolist())) == sorted(wanted)
    assert len(data.test.dataset) == round(0.1 * len(rows))
    again, other = (loaded(f"text:{llama}/text.txt", tokenizer, seed=seed) for seed in (0, 1))
    assert torch.equal(again.test.dataset.columns["labels"], data.test.dataset.columns["labels"])
    assert not torch.equal(other.test.dataset.columns["labels"], data.test.dataset.columns["labels"])


def test_folders_name_what_is_tested_on(llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    for name, text in (("train", TEXT), ("validation", "A cat. " * 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some.txt").write_text(text)
    data = loaded(f"text:{tmp_path}", tokenizer)
    assert tokenizer.decode(data.test.dataset.columns["input_ids"][0][1:8]).startswith("A cat")


def test_a_word_counts_by_its_first_token(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["cat", "xylophone", "dog"], "tags": [0, 1, 2]}] * 9
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "words")
    fast = Origin(f"hf:{write_token_classifier(tmp_path / 'net')}").tokenizer()
    data = loaded(f"hf-dataset:{tmp_path / 'words'}", fast, "token-classification")
    (labels,) = data.train.dataset.columns["labels"][:1].tolist()
    assert [label for label in labels if label != -100] == [0, 1, 2]
    assert sum(data.train.dataset.columns["attention_mask"][0].tolist()) > 3  # a word has several tokens


def test_texts_with_labels_are_padded(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": "The cat" if label else "A dog saw it", "label": label} for label in (0, 1) * 8]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data = loaded(f"hf-dataset:{tmp_path}", tokenizer, "text-classification")
    batch = next(iter(data.train))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 16)
    assert sorted(data.train.dataset.columns["labels"].tolist() + data.test.dataset.columns["labels"].tolist()) == (
        [0] * 8 + [1] * 8
    )
    assert set(data.example) == {"input_ids", "attention_mask"} | (set(batch) - {"labels"})


def test_what_is_no_text_is_refused(llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its texts make 0 sequences of 4000 tokens; .*--length"):
        loaded(f"text:{llama}/text.txt", tokenizer, length=4000)
    with pytest.raises(OptionError, match="expected --task causal-lm, text-classification or"):
        loaded(f"text:{llama}/text.txt", tokenizer, "regression")
    with pytest.raises(DataError, match="it has no column of int named label or labels; it has text"):
        loaded(f"text:{llama}/text.txt", tokenizer, "text-classification")
