# `make demo` and `make test` set up everything they need in .venv; a second call reinstalls nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests start hundreds of processes; without bytecode on disk each would compile all of torch that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pytest lint check-types bench results clean

demo: $(STAMP)
	$(BIN)/crossdet demo

test: $(STAMP)
	# at once: mypy alone would leave a core idle for most of a minute
	$(MAKE) --no-print-directory -j 2 lint pytest

pytest: $(STAMP)
	# one thread per worker: two workers with two threads each would fight for two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# about 40 minutes on 2 CPU cores; the report is bench/bench.md. On a GPU other rows: bench/bench_gpu.md
bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py

# tables, figures and statements of docs/results.md, docs/performance.md and README.md, from the JSONs in docs/data
results: $(STAMP)
	$(BIN)/python docs/make_results.py

# Installed anew only when the pinned versions or the package's own requirements change. uv unpacks torch's 5 GB on all
# cores, pip on one; uv does not read pip's settings, so where those name the index pip does it. Python compiles what it
# imports when it does; all of torch at once takes a minute more.
PACKAGES := --quiet --constraint constraints.txt --editable '.[test,dev,detr,serve]' --editable research
$(STAMP): constraints.txt pyproject.toml research/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python $(PACKAGES) || $(BIN)/python -m pip install --no-compile $(PACKAGES)
	touch $(STAMP)

clean:
	rm -rf $(VENV) build src/*.egg-info
