"""Fuzzing that follows the branches taken, by atheris; `test_fuzzing.py` is the part that runs with the tests.

    pip install atheris
    PYTHONPATH=tests python tests/fuzz_atheris.py -max_total_time=600

The first byte of an input chooses a parser, the others are its text. An error that is not ours ends it, and the input
is kept in a file `crash-…`, which the same command with that file as its argument tries again. Not run by `make test`:
atheris exists for few versions of Python and systems.
"""

import importlib.util
import json
import logging
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["transprune"]):
    import transprune
    from transprune.architecture import Architecture
    from transprune.budget import Budget, parse_budgets, points
    from transprune.data import load_data
    from transprune.errors import TranspruneError
    from transprune.models.by_name import build_model, is_user_model
    from transprune.options import get_preset
    from transprune.records import to_toml
    from transprune.runs import RunOptions
    from transprune.runtime import Checkpoints, RunFolder, choose_device, read_journal
    from transprune.space import SearchSpace

from test_fuzzing import CONFIG
from test_training import small_network

PLACE = Path(tempfile.mkdtemp())


def data(text):
    """Data specifications; the digits are left out, since they are there."""
    if text != "digits":
        load_data(text)


def model(text):
    """Names of models; code that is there would be run, as it should."""
    top = text.partition(":")[0].partition(".")[0]
    with suppress(ValueError):
        if is_user_model(text) and top.isidentifier() and importlib.util.find_spec(top):
            return
    build_model(text, classes=3, image_channels=3)


def budget(text):
    """Budgets, alone, beside another, and of several amounts."""
    for read in (Budget.parse, lambda one: parse_budgets([one, "macs=0.5"]), lambda one: points([one])):
        with suppress(TranspruneError):
            read(text)


def space(text):
    """Search spaces, whose costs are computed as well."""
    found = SearchSpace.from_json(text)
    assert found.macs(found.smallest_architecture()) <= found.macs(found.full_architecture())


def configuration(text):
    """The config.toml of a run folder."""
    (PLACE / "config.toml").write_text(text)
    RunOptions.from_config(RunFolder.open(PLACE).config, PLACE)


def journal(text):
    """Journals."""
    (PLACE / "journal.jsonl").write_text(text)
    read_journal(PLACE / "journal.jsonl")


def checkpoint(text):
    """Checkpoints; a damaged one is removed and said aloud."""
    (PLACE / "checkpoint.safetensors").write_text(text)
    Checkpoints(PLACE).find("search")


def described_space():
    """A search space as `space.json` holds it."""
    return json.dumps(transprune.inspect(small_network(), torch.zeros(1, 1, 4, 4)).to_json())


PARSERS = {
    budget: ["macs=0.5", "params=20.4M", "latency=4ms", "macs=0.3,0.5"],
    data: ["cifar10:data", "imagefolder:photos", "parquet:p"],
    model: ["resnet20", "torchvision:resnet18", "timm:resnet10t", "net.py:build", "package.module:build"],
    get_preset: ["quick", "paper-cifar"],
    choose_device: ["auto", "cpu", "cuda:0"],
    Architecture.from_json: [json.dumps(Architecture(widths={"a": 3}, depths={"s": 2}).to_json())],
    space: [],
    configuration: [to_toml(CONFIG)],
    journal: ['{"event": "start"}\n{"event": "epoch", "epoch": 1}\n'],
    checkpoint: [],
}
"""What reads text from outside, and texts that it understands."""


def one_input(content):
    """Reads one input; any error but ours comes out."""
    parser = list(PARSERS)[content[0] % len(PARSERS)] if content else budget
    with suppress(TranspruneError):
        parser(content[1:].decode("utf-8", "replace"))


def main():
    PARSERS[space].append(described_space())
    seeds = PLACE / "seeds"
    seeds.mkdir()
    for number, texts in enumerate(PARSERS.values()):
        for place, text in enumerate(texts):
            (seeds / f"{number}-{place}").write_bytes(bytes([number]) + text.encode())
    logging.disable()  # a line for each damaged checkpoint
    is_replay = any(not each.startswith("-") for each in sys.argv[1:])
    atheris.Setup([*sys.argv, *([] if is_replay else [str(seeds)])], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
