# Everything below makes its own virtual environment in .venv first; nothing else has to be installed by hand but
# Python 3.11+ with venv and make (Debian: apt-get install python3-venv make).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ONLY ?=

.PHONY: help demo test test-fast test-chaos test-nightly check format bench sim docs reference clean dev

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: python3 -m venv failed; on Debian run: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing nanopod and its development tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch $(STAMP)

dev: $(STAMP)  ## make the virtual environment only

demo: $(STAMP)  ## the whole story in three minutes: a cloud, an app, a model, a killed worker, the bill
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(STAMP)  ## every test but the long chaos and nightly rounds, some at a time; ARGS selects, as for pytest
	@$(BIN)/python $(if $(ARGS),-m pytest,tests/lanes.py) -m "not chaos and not nightly" $(ARGS)

test-fast: $(STAMP)  ## unit and property tests only
	@$(BIN)/python -m pytest -m "not integration and not e2e and not chaos and not nightly and not slow" $(ARGS)

test-chaos: $(STAMP)  ## a hundred rounds of killing random processes under load
	@$(BIN)/python -m pytest -m chaos --timeout=1800 $(ARGS)

test-nightly: $(STAMP)  ## more seeds and more kills than a commit needs
	@$(BIN)/python -m pytest -m nightly --timeout=3600 $(ARGS)

check: $(STAMP)  ## style, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/unit/house

format: $(STAMP)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[bench]" && touch $@ || echo "bench: cells that need other packages are left out" >&2

bench: $(VENV)/.bench  ## ratios to a yardstick of the same run; ONLY=name runs one
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

sim: $(STAMP)  ## `auto` against Knative's rule on four loads: GPU-minutes and waits
	@$(BIN)/nanopod sim compare $(ARGS)

docs: $(STAMP)  ## check the documents: links, commands, the reference, the tutorial, the guides, the examples
	@$(BIN)/python -m pytest tests/unit/house tests/e2e/test_tutorial.py tests/e2e/test_guides.py tests/e2e/test_examples.py $(ARGS)

reference: $(STAMP)  ## write docs/REFERENCE.md from the docstrings and the command line
	@$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
