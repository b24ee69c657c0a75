# agentd: `make demo` shows it at work, `make test` runs the checks and every test.
# Needs Python 3.11 or later with venv, a C and C++ compiler, CMake and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-toolchains faults check format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## create .venv and install agentd into it

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
	$(BIN)/pytest -m faults tests/faults tests/orchestrator/bus/test_bus_model.py

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
