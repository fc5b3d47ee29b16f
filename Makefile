# make demo   sets everything up, trains the smallest DiT and draws circles
# make test   sets everything up and passes the tests
# make check  lint, format and types;  make test-slow  the long tests;  make bench  speed beside diffusers

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-dev

.PHONY: demo test test-slow check bench clean

demo: $(READY)
	$(BIN)/ditlab demo

test: $(TESTED)
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-slow: $(TESTED)
	$(BIN)/pytest -m slow

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(TESTED)
	$(BIN)/python benchmarks/train_step.py

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache

# pip, not uv or poetry: it alone takes the CPU build of torch that constraints.txt asks for where one is at hand.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ditlab needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(READY)

$(TESTED): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(TESTED)
