# `make demo` and `make test` need nothing but Python 3.11 or later: they make .venv on first use.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.installed-bench
RUN := $(VENV)/bin/

.PHONY: demo test test-long promises lint format bench clean help

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+: +##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(STAMP)   ## fine-tune the small model that ships, ask it the same questions before and after
	@$(RUN)tutelage demo

test: $(STAMP)   ## run the test suite
	$(RUN)python -m pytest -n 2 -m "not slow"

test-long: $(STAMP) ## run everything, the slow tests too
	$(RUN)python -m pytest -n 2

promises: $(STAMP) ## try to break it at length, and print the figures of docs/promises.md
	$(RUN)python -m pytest -n 2 tests/faults tests/security tests/properties tests/unit/config

lint: $(STAMP)   ## ruff and mypy
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

format: $(STAMP) ## let ruff rewrite the layout
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

bench: $(BENCH)  ## make the figures that README quotes, into benchmarks/RESULTS.md
	$(RUN)python -m benchmarks.run

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(RUN)pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

$(BENCH): $(STAMP)
	$(RUN)pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,bench]"
	@touch $(BENCH)
