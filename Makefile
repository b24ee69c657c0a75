# agentd: `make demo` shows it at work, `make test` runs the checks and every test.
# Needs Python 3.11 or later with venv, a C and C++ compiler, CMake and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Others give an environment variable of this name a folder: that is no choice.
CUDA_CHOICE := $(if $(findstring command,$(origin CUDA)),$(CUDA),$(filter 0 1 force,$(CUDA)))

.DEFAULT_GOAL := help
.PHONY: help install install-anew demo test test-toolchains faults bench-peers check format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(if $(CUDA_CHOICE),install-anew,$(INSTALLED))  ## create .venv with agentd in it; CUDA=1 builds for the NVIDIA card that is here

install-anew:
	@$(PYTHON) deploy/install.py $(VENV) $(CUDA_CHOICE)
	@touch $(INSTALLED)

$(INSTALLED): pyproject.toml deploy/install.py
	@$(PYTHON) deploy/install.py $(VENV)
	@touch $@

demo: $(INSTALLED)  ## seven agents at work on a real model: three requests, and an alert
	@$(BIN)/python deploy/demo/demo.py

test: check  ## the checks, then every test; pure modules are covered to the last branch
	@mkdir -p build
	$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=
	$(BIN)/coverage json -q -o build/coverage.json
	$(BIN)/python tests/pure_coverage.py build/coverage.json docs/architecture.md

test-toolchains: $(INSTALLED)  ## new projects in every language build and pass their own tests
	$(BIN)/pytest -m toolchains tests/orchestrator/cli/test_cli_component.py

faults: $(INSTALLED)  ## the long runs: thousands of kills, power cuts and failing disks
	$(BIN)/pytest -m faults tests/faults tests/orchestrator/bus/test_bus_model.py \
		tests/integration/test_engine_deaths.py

bench-peers: $(INSTALLED)  ## build llama.cpp's server, which `agentd bench inference` compares with
	@$(BIN)/python benchmarks/inference/build_peers.py $(if $(CUDA_CHOICE),--cuda $(CUDA_CHOICE))

check: $(INSTALLED)  ## formatting, lint, types, import contracts, rules of the source
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_source.py tests/test_architecture.py

format: $(INSTALLED)  ## let ruff format the source
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what can be made again
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
