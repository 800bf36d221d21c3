# Everything a person types; each target does all of its own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo cluster cluster-stop test chaos check format bench bench-full bench-gpu clean $(VENV)

# A test run starts Python some hundred times; none of them is to compile everything again.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## fetch a model and reviews, start an S3 server, embed S3 to S3, show the result
	@$(BIN)/python -m jobs demo

cluster: $(STAMP) ## the demo on a Ray cluster of this machine, submitted from outside; goes on until Ctrl-C
	@$(BIN)/python -m jobs.demo.cluster $(ARGS)

cluster-stop: ## end that cluster, from another terminal
	@$(BIN)/python -m jobs.demo.cluster stop

test: $(STAMP) ## run the tests, two files at a time; choose with ARGS='-k journal'
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

chaos: $(STAMP) ## kill, freeze and deceive everything, 200 kills, and all long tests (an hour and more); repeat a round with ARGS='--seed 7 --kills 20'
	@$(BIN)/python -m pytest -m 'chaos or long' --kills 200 $(ARGS)

check: $(STAMP) ## ruff, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict pipeline jobs tests

format: $(STAMP) ## sort imports and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## compare with other ways and measure this machine, 20 minutes; choose with ARGS='--only encoders'
	@$(BIN)/python -m tests.benchmarks $(ARGS)

bench-full: $(STAMP) ## every benchmark, the comparisons with 100,000 rows (hours)
	@$(BIN)/python -m tests.benchmarks --full $(ARGS)

# The python on the path is taken where it has torch of its own, which on a machine with a GPU is the build with CUDA.
bench-gpu: ## our encoder beside SentenceTransformer.encode on a GPU; without one ARGS='--device cpu --layers 2'
	@if $(PYTHON) -c 'from importlib.util import find_spec as f; exit(not (f("torch") and f("sentence_transformers") and f("pyarrow")))'; \
	then $(PYTHON) -m tests.benchmarks.gpu $(ARGS); \
	else $(MAKE) --no-print-directory venv && $(BIN)/python -m tests.benchmarks.gpu $(ARGS); fi

clean: ## remove .venv and everything made here
	@rm -rf $(VENV) .demo .bench .train .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv $(VENV): $(STAMP)

# Rebuilt only when the dependencies change. pip follows its own configuration: a mirror, a proxy or a CPU index of torch
# is set there (PIP_EXTRA_INDEX_URL), never here.
$(STAMP): pyproject.toml docker/constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' was not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), needed is 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV): minutes the first time, seconds after"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c docker/constraints.txt -e '.[test]'
	@touch $@
