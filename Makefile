# Everything runs in .venv, which `make` creates with pip alone. Override: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONFIG := pipeline/configs/digits.yaml

.PHONY: help demo test check bench clean

help: ## show this
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(INSTALLED) ## real digits to pictures that follow the text: the whole line, picture at the end
	$(BIN)/python -m pipeline run $(CONFIG)

test: $(INSTALLED) ## all tests, those with a local Ray included; prints the times of the slowest
	$(BIN)/python -m pytest -m "not gpu and not property"

check: $(INSTALLED) ## format, lint, types, import directions: what a review expects to be clean
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(INSTALLED) ## what one optimizer step and one sample cost on this machine
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean: ## remove the virtual environment, the demo's results and caches
	rm -rf $(VENV) runs/digits dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV): 1 to 4 minutes, mostly PyTorch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@touch $@
