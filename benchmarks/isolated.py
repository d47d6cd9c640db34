"""Runs one network of the list after another, each in a process of its own that may fail, crash or hang alone.

A benchmark is a function from a network's name to a record, plain values with an `outcome`.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from model_list import matching
from transprune.runtime.environment import environment

RESULTS = Path(__file__).parent / "coverage"
"""Where the raw results of the whole list are kept."""
PATIENCE = 10
"""A process that does nothing ends after so many times the limit by the clock."""
MEMORY = 12 * 2**30
"""Bytes of address space of one process, of which the libraries take a third before they do anything."""
Record = dict[str, Any]
Measure = Callable[[str], Record]
SERVER = multiprocessing.get_context("forkserver")
"""Starts the processes from one that has the libraries loaded already."""
SERVER.set_forkserver_preload(["torch", "torch._dynamo", "torchvision", "timm", "torch_pruning", "transprune"])


@dataclass(frozen=True)
class Call:
    """How a benchmark was called."""

    patterns: tuple[str, ...]
    jobs: int
    limit_seconds: int
    """Processor time of one network: it does not depend on what else the machine does."""
    is_for_missing: bool
    """Whether networks that have a record are left out."""


def read_call(description: str) -> Call:
    """Reads the command line that all benchmarks over the list share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], metavar="PATTERN", help="names (*, ?); without: all")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, each on one thread")
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time that one network may take")
    parser.add_argument("--missing", action="store_true", help="only networks that have no record yet")
    found = parser.parse_args()
    return Call(tuple(found.models), found.jobs, found.limit, found.missing)


def run_benchmark(
    call: Call, measure: Measure, results: Path, listed: Sequence[str] | None = None
) -> dict[str, Record]:
    """Measures all networks that the call matches, each in a process of its own.

    Results are written as they come; those of networks that the call does not match stay as they were.

    Args:
        call: The command line.
        measure: Makes the record of a network by name; what it raises is recorded. A function of a module.
        results: The JSON file of all records.
        listed: The names of all networks; None: those of `model_list`.

    Returns:
        The records in the file by name.
    """
    content = {"models": {}} if not results.exists() else json.loads(results.read_text())
    content |= {"command": command(), "limit_seconds": call.limit_seconds, "environment": described_environment()}
    everything = [model.name for model in matching(())] if listed is None else listed
    patterns = call.patterns or ("*",)
    names = [name for name in everything if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if call.is_for_missing:
        names = [name for name in names if name not in content["models"]]
    for name, record in run_each(names, call, measure):
        print(f"{name:<52} {record['outcome']:<10} {record['seconds']:>6.1f} s  {record.get('error', '')}", flush=True)
        content["models"][name] = record
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(content, indent=1) + "\n")
    return {name: content["models"][name] for name in everything if name in content["models"]}


def run_each(names: Sequence[str], call: Call, measure: Measure) -> Iterator[tuple[str, Record]]:
    """The record of each network, in the order of the names."""
    with ThreadPoolExecutor(call.jobs) as pool:
        yield from zip(names, pool.map(lambda name: run_one(measure, name, call.limit_seconds), names), strict=True)


def run_one(measure: Measure, name: str, limit_seconds: int) -> Record:
    """The record of one network; one with the outcome `timeout` or `crashed` if its process does not send any."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=send_record, args=(measure, name, sender, limit_seconds), daemon=True)
    process.start()
    sender.close()  # the child holds the other one: when it dies, the receiver sees the end
    try:
        has_ended = receiver.poll(PATIENCE * limit_seconds)
        return receiver.recv() if has_ended else {"outcome": "timeout", "seconds": limit_seconds}
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"outcome": "timeout", "seconds": limit_seconds}
        return {"outcome": "crashed", "seconds": 0, "error": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def send_record(measure: Measure, name: str, sender: Connection, limit_seconds: int) -> None:
    """The child's whole work."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit_seconds, limit_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        record = measure(name)
    except Exception as error:  # whatever a library raises is the result
        record = {"outcome": "failed", "error": first_line(error)}
    sender.send({**record, "seconds": round(time.process_time(), 1)})


def command() -> str:
    return f"python benchmarks/{Path(sys.argv[0]).name}"


def described_environment() -> Record:
    packages = {
        name.replace("-", "_"): version(name) for name in ("timm", "torch-pruning") if find_spec(name.replace("-", "_"))
    }
    return environment() | packages | {"threads": 1}


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:300]
