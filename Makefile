# transprune: every command sets up its own environment in .venv when it is missing and reuses it when it is there.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test quick gpu torture check lint types floors format docs package coverage clean

help:  ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(READY): pyproject.toml src/transprune/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "transprune needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(READY)  ## the environment alone

demo: $(READY)  ## the main job on handwritten digits, into runs/demo
	$(BIN)/transprune run resnet20 --data digits --budget latency=0.5 --preset demo --out runs/demo --overwrite

test: $(READY)  ## all tests, a file at a time on each of up to four cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

quick: $(READY)  ## the heart of the tests, in less than a minute on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m heart

gpu: $(READY)  ## twelve minutes that prove the library on a GPU, into benchmarks/gpu/results
	$(BIN)/python benchmarks/gpu/check.py $(if $(DATA),--data $(DATA))

torture: $(READY)  ## a hundred runs killed at random moments, into benchmarks/torture (a quarter of an hour or more)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py

lint: $(READY)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## static types
	$(BIN)/mypy

floors: $(READY)  ## no floor imports a higher one
	$(BIN)/lint-imports

check: lint types floors  ## what must be green before a commit: style, types, floors, all tests but the longest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not long'

format: $(READY)  ## rewrite in the project's style
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation site, every link checked, into build/site
	$(BIN)/python docs/site.py

package: $(READY)  ## the wheel and the source distribution, into dist
	$(BIN)/python -m hatchling build

coverage: $(READY)  ## every listed network read, shrunk and checked, into docs/coverage.md (an hour or two)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,benchmarks]'
	$(BIN)/python benchmarks/model_coverage.py --jobs 2

clean:  ## forget the environment, what was built and the demo's run
	rm -rf .venv build dist runs/demo
