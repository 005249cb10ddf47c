# Each target sets up what it needs in .venv on its first run; later runs reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench

demo: $(INSTALLED)  ## forecast airline passengers, balance a pole from positions alone; pictures in demo/
	@$(BIN)/python examples/demo.py

test: lint  ## lint, type-check and run the tests
	@echo "==> tests"
	@$(BIN)/python -m pytest

lint: $(INSTALLED)  ## formatting, lint and types
	@echo "==> format, lint, types"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(INSTALLED)  ## format the sources and fix what lint can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## the backbone's speed beside torch.nn.LSTM
	@$(BIN)/python kernels/benchmarks/cpu.py

$(INSTALLED): pyproject.toml constraints.txt
	@echo "==> installing the tested set into $(VENV) (first run only, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; name one with: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
