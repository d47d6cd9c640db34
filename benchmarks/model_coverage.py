"""Reads, shrinks and checks every network of the list: `make coverage`.

    python benchmarks/model_coverage.py [--models PATTERN ...] [--jobs N] [--limit SECONDS] [--missing]

Raw results: `benchmarks/coverage/transprune.json`; the table of them: `docs/coverage.md`.
"""

from __future__ import annotations

from coverage_page import write_page
from examination import CHECKS, LEARNING, OF_TRANSFORMERS, examine
from isolated import RESULTS, Record, read_call, run_benchmark
from model_list import MODELS
from other_networks import OTHERS

LISTED = (*MODELS, *OTHERS)


def measure(name: str) -> Record:
    return examine(next(each for each in LISTED if each.name == name))


if __name__ == "__main__":
    run_benchmark(read_call(__doc__), measure, RESULTS / "transprune.json", [each.name for each in LISTED])
    write_page(CHECKS | LEARNING | OF_TRANSFORMERS)
