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

# Two processes of one thread each: with threads of their own they wait for each other, 2.7 times as long
test: $(INSTALLED) $(VENV)/.browser ## all tests, those with a local Ray included; prints the times of the slowest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not property" -n 2 --dist loadfile

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

# Tests look at pages in Chromium, where there is one or root may install one; else they are skipped
$(VENV)/.browser: $(INSTALLED)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& echo "installing chromium: half a minute" && apt-get update -qq >/dev/null \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null 2>&1; } \
		|| echo "no Chromium here: the tests of pages are skipped"
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV): 1 to 4 minutes, mostly PyTorch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m pip install -qq -c constraints.txt --no-deps torch-fidelity # else it brings torchvision
	@rm -rf $(VENV)/lib/python3*/site-packages/tests # torch-fidelity's: it would hide ours from child processes
	@touch $@
