"""Texts as tokens: files of plain text, and data sets of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transprune.data.own_loaders import LoaderData
from transprune.errors import DataError, OptionError, first_line
from transprune.runtime.files import expanded
from transprune.runtime.seeds import generator_of

TEXT, HF_DATASET = "text:", "hf-dataset:"
"""What data of texts begin with: `text:FILE_OR_FOLDER` and `hf-dataset:FOLDER_OR_NAME`."""
LEAST_SEQUENCES = 8
"""Fewer sequences cannot be divided for a search and a test."""
TEST_SHARE = 0.1
"""Share of the sequences that is tested on where the data have no test part."""
IGNORED = -100
"""The label of tokens that do not count, such as padding, as in torch and transformers."""
TEST_PARTS = ("test", "validation", "val")


def is_texts(spec: str) -> bool:
    """Whether data are named as texts."""
    return spec.startswith((TEXT, HF_DATASET))


@dataclass(frozen=True)
class Sequences(Dataset[Mapping[str, Tensor]]):
    """Sequences of tokens, all of one length, by the names that a network and its task have for them."""

    columns: Mapping[str, Tensor]
    """[sequences, ...] each, `labels` among them."""

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, place: int) -> Mapping[str, Tensor]:
        return {name: column[place] for name, column in self.columns.items()}

    def part(self, places: Tensor) -> Sequences:
        """Some of them."""
        return Sequences({name: column[places] for name, column in self.columns.items()})


def load_texts(
    spec: str, tokenizer: Any, *, task: str | None, length: int, batch_size: int, seed: int = 0
) -> LoaderData:
    """Loads texts for a language model.

    Args:
        spec: `text:FILE_OR_FOLDER`, UTF-8 files that end in .txt; or `hf-dataset:FOLDER_OR_NAME`, a data set that
            `datasets` reads.
        tokenizer: The network's, as transformers has it.
        task: `causal-lm`: texts one after another, in sequences that are full, each token once; `text-classification`:
            columns of texts and of labels; `token-classification`: columns of lists of words and of their labels.
        length: Tokens of a sequence; what is longer than that is cut off where texts are told apart.
        batch_size: Sequences in a batch.
        seed: Decides which sequences are tested on, where no part is named `test` or `validation`.

    Raises:
        DataError: There is no text, too little of it, or no such column.
        OptionError: The task is another one.
    """
    if task not in ("causal-lm", "text-classification", "token-classification"):
        raise OptionError(
            f"cannot use the texts of {spec!r} for the task {task or 'of telling images apart'}: expected --task "
            "causal-lm, text-classification or token-classification"
        )
    if length < 2:
        raise OptionError(f"cannot make sequences of {length} tokens: expected at least 2 (--length)")
    parts = _files(spec) if spec.startswith(TEXT) else _data_set(spec)
    made = {name: _made(spec, part, tokenizer, task=task, length=length) for name, part in parts.items()}
    train = made.pop("train" if "train" in made else next(iter(made)))
    test = next((made[name] for name in TEST_PARTS if name in made), None)
    _check_enough(spec, train, length)
    if test is None:
        order = torch.randperm(len(train), generator=generator_of(seed))
        count = max(1, round(TEST_SHARE * len(train)))
        train, test = train.part(order[count:].sort().values), train.part(order[:count].sort().values)
    size = min(batch_size, len(train))
    return LoaderData(
        train=DataLoader(train, batch_size=size, shuffle=True, drop_last=True),
        test=DataLoader(test, batch_size=size),
        example={name: column[:1] for name, column in test.columns.items() if name != "labels"},
    )


def _check_enough(spec: str, train: Sequences, length: int) -> None:
    if len(train) < LEAST_SEQUENCES:
        raise DataError(
            f"cannot learn from {spec!r}: its texts make {len(train)} sequences of {length} tokens; expected at least "
            f"{LEAST_SEQUENCES}, better thousands: more text, or shorter sequences (--length)"
        )


Part = Mapping[str, Sequence[Any]]
"""A part of a data set: columns by name."""


def _files(spec: str) -> dict[str, Part]:
    """The texts of files, by the part that their folders name."""
    place = expanded(spec.removeprefix(TEXT))
    if not place.exists() or place == Path():
        raise DataError(f"cannot load {spec!r}: there is no file or folder {place} (looked from {Path.cwd()})")
    folders = {name: place / name for name in ("train", *TEST_PARTS) if (place / name).is_dir()}
    folders = folders if "train" in folders else {"train": place}
    found: dict[str, Part] = {}
    for name, folder in folders.items():
        files = sorted(folder.rglob("*.txt")) if folder.is_dir() else [folder]
        try:
            texts = [file.read_text(encoding="utf-8") for file in files]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot load {spec!r}: {first_line(error)}; expected files of text in UTF-8 that end in .txt"
            ) from error
        found[name] = {"text": [text for text in texts if text.strip()]}
    if not found["train"]["text"]:
        raise DataError(f"cannot load {spec!r}: there is no text in it; expected files that end in .txt")
    return found


def _data_set(spec: str) -> dict[str, Part]:
    """The parts of a data set of Hugging Face."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"cannot load {spec!r}: datasets is not installed; pip install 'transprune[datasets]'"
        ) from error
    name = spec.removeprefix(HF_DATASET)
    place = str(expanded(name)) if name and os.path.exists(expanded(name)) else name
    is_shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        is_saved = any(Path(place, file).is_file() for file in ("dataset_dict.json", "state.json"))
        found = datasets.load_from_disk(place) if is_saved else datasets.load_dataset(place)
    except Exception as error:  # of files, of the network, and of the Hub
        raise DataError(
            f"cannot load {spec!r}: {first_line(error)}; expected a folder of parquet, JSON or CSV, one that "
            "`save_to_disk` wrote, or the name of a data set of the Hub; where this machine has no network, download "
            "it elsewhere and name the folder"
        ) from error
    finally:
        if is_shown:
            datasets.enable_progress_bars()
    parts = found if isinstance(found, Mapping) else {"train": found}
    return {part: {column: rows[column] for column in rows.column_names} for part, rows in parts.items()}


def _made(spec: str, part: Part, tokenizer: Any, *, task: str, length: int) -> Sequences:
    if task == "causal-lm":
        return _packed(_column(spec, part, ("text", "content", "story"), str), tokenizer, length)
    if task == "text-classification":
        texts = _column(spec, part, ("text", "sentence", "content"), str)
        labels = torch.tensor([int(label) for label in _column(spec, part, ("label", "labels"), int)])
        return Sequences({**_padded(tokenizer, texts, length), "labels": labels})
    words = _column(spec, part, ("tokens", "words"), list)
    tags = _column(spec, part, ("labels", "tags", "ner_tags", "pos_tags"), list)
    return _tagged(tokenizer, words, tags, length)


def _column(spec: str, part: Part, names: Iterable[str], kind: type) -> list[Any]:
    """The column with one of these names."""
    found = next((list(part[name]) for name in names if name in part), None)
    if found is None or not found or not all(isinstance(each, kind) for each in found):
        raise DataError(
            f"cannot use {spec!r}: it has no column of {kind.__name__} named {' or '.join(names)}; it has "
            f"{', '.join(part)}; expected one, or a loader of your own (FILE.py:FUNCTION)"
        )
    return found


def packed(stream: Tensor, length: int) -> Sequences:
    """A stream of tokens in full sequences, of which each begins with the last token of the one before.

    So each token follows another once. There is no sequence if the stream is shorter than one.
    """
    count = max(0, (len(stream) - 1) // (length - 1))
    tokens = stream[: count * (length - 1) + 1]
    rows = tokens.unfold(0, length, length - 1).contiguous() if count else tokens.new_zeros(0, length)
    return Sequences({"input_ids": rows, "labels": rows})


def _packed(texts: Sequence[str], tokenizer: Any, length: int) -> Sequences:
    """All texts as one stream, packed."""
    begin, end = ([each] if each is not None else [] for each in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    stream = [
        token
        for text in texts
        for token in [*begin, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *end]
    ]
    return packed(torch.tensor(stream, dtype=torch.long), length)


def _padded(tokenizer: Any, texts: Any, length: int, **how: Any) -> Any:
    """Texts told apart, each of one length."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **how)


def _tagged(tokenizer: Any, words: list[list[str]], tags: list[list[int]], length: int) -> Sequences:
    """Words told apart, each by its first token."""
    found = _padded(tokenizer, words, length, is_split_into_words=True)
    labels = torch.full(found["input_ids"].shape, IGNORED)
    for row, own in enumerate(tags):
        before = None
        for place, word in enumerate(found.word_ids(row)):
            if word is not None and word != before:
                labels[row, place] = own[word]
            before = word
    return Sequences({**found, "labels": labels})
