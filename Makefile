# `make demo` and `make test` set up what they need: a virtual environment in .venv, or the active one.
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
OFFICIAL := .venv-official

.PHONY: demo test check lint bench bench-official bench-training bench-data interop official-environment fuzz drills clean

demo: $(VENV)/.spectrostream-demo
	$(BIN)/spectrostream ablate study=demo out=runs/demo

test: $(VENV)/.spectrostream-test lint
	$(BIN)/python -m pytest

# For daily work: no test that takes long, starts processes or needs a browser.
check: $(VENV)/.spectrostream-test lint
	$(BIN)/python -m pytest -m "not slow and not processes and not browser"

lint: $(VENV)/.spectrostream-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.spectrostream-test
	$(BIN)/python -m benchmarks.codec_speed

bench-official: $(VENV)/.spectrostream-test official-environment
	$(BIN)/python -m benchmarks.codec_speed --require-official

# Processes share the machine's processors: the second table needs one for each.
bench-training: $(VENV)/.spectrostream-test
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training --configs tiny --devices 1,2 --strategy averaging,find_unused --threads 1 --out runs/benchmarks/training-processes.json

bench-data: $(VENV)/.spectrostream-test
	$(BIN)/python -m benchmarks.reading
	$(BIN)/spectrostream data scan datamodules/demo_corpus --out runs/benchmarks/demo.parquet
	$(BIN)/spectrostream data prepare runs/benchmarks/demo.parquet --out runs/benchmarks/demo-shards --format shards --shard-megabytes 8
	$(BIN)/python -m benchmarks.shard_engines runs/benchmarks/demo-shards
	$(BIN)/python -m benchmarks.scanning
	$(BIN)/python -m benchmarks.large_manifest

interop: $(VENV)/.spectrostream-test official-environment
	$(BIN)/python -m benchmarks.interop

# The fuzzer has wheels for Python 3.11 to 3.13.
fuzz: $(VENV)/.spectrostream-test
	$(BIN)/python -m pip install 'atheris>=3'
	$(BIN)/python -m benchmarks.fuzz_bitstream -runs=1000000

drills: $(VENV)/.spectrostream-test
	$(BIN)/python -m benchmarks.fault_drills

# The official JAX implementation, apart from everything else: it shares no dependency with this project.
official-environment: $(OFFICIAL)/.spectrostream-official

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; type: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.spectrostream-demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[baselines]'
	touch $@

# TinySoundFont asks for PyAudio, which is compiled against PortAudio's headers and only needed to play aloud.
$(VENV)/.spectrostream-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[dev,baselines,codecs]'
	$(BIN)/python -m pip install --no-deps 'tinysoundfont>=0.3.7'
	touch $@

$(OFFICIAL)/.spectrostream-official: benchmarks/requirements-official.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; type: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(OFFICIAL)
	$(OFFICIAL)/bin/python -m pip install --no-deps -r benchmarks/requirements-official.txt
	touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
