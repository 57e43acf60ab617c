# `make demo` and `make test` set up what they need: a virtual environment in .venv, or the active one.
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.spectrostream-demo
	$(BIN)/spectrostream ablate study=demo out=runs/demo

test: $(VENV)/.spectrostream-test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.spectrostream-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.spectrostream-test
	$(BIN)/python -m benchmarks.codec

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; type: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.spectrostream-demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[baselines]'
	touch $@

$(VENV)/.spectrostream-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[dev,baselines,codecs]'
	touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
