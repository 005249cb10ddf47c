# Each target sets up what it needs in .venv on its first run; later runs reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench

demo: $(INSTALLED)  ## a forecast and a policy with memory, with their pictures in demo/
	@mkdir -p demo
	@echo "==> 1/2 forecasting: a year of airline passengers"
	@$(BIN)/python examples/forecast_air_passengers.py demo/forecast_air_passengers.png
	@echo "==> 2/2 reinforcement learning: balancing a pole without seeing its velocities"
	@$(BIN)/python examples/policy_with_memory.py --output demo/policy_with_memory.png

test: lint  ## lint, type-check and run the tests
	@echo "==> tests"
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

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
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name one with: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
