# Every target sets up what it needs; a second call is quick.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.channelwise-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The first interpreter that is new enough, unless PYTHON names one.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python3.10,\
	$(if $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo yes),$(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-random lint format docs bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP)  ## train and prune a small network on handwritten digits in all three ways (a minute or two once installed)
	$(BIN)/python examples/digits_demo.py --output demo-output

test: $(STAMP)  ## the tests, without those marked slow
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## every test
	$(PYTEST)

test-random: $(STAMP)  ## the oracle on 10,000 random networks, others every time (part of test-all)
	$(PYTEST) -m slow tests/random_networks/test_random_networks.py

lint: $(STAMP)  ## ruff, mypy, and imports that point downwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

bench: $(STAMP)-bench  ## time the engine against a plain forward pass and torch-pruning
	$(BIN)/python benchmarks/engine.py

clean:  ## remove the environment, caches and outputs
	rm -rf $(VENV) site build demo-output .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "channelwise needs Python 3.10 or newer; none was found. Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 10) else "channelwise needs Python 3.10 or newer; $(PYTHON) is " + v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not create $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch and torchvision are named together, so that pip picks two builds that fit each other.
$(STAMP): pyproject.toml | $(BIN)/python
	@echo "installing channelwise into $(VENV) (the first time this downloads torch) ..."
	@$(PIP) torch torchvision -e '.[dev]'
	@touch $@

$(STAMP)-docs: $(STAMP)
	@$(PIP) -e '.[docs]'
	@touch $@

$(STAMP)-bench: $(STAMP)
	@$(PIP) -e '.[bench]'
	@touch $@
