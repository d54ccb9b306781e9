# Two commands for a newcomer, on a machine with only Python 3.10 or later:
#   make demo   converts a small Phi-4 and lets real llama.cpp tell a joke from it
#   make test   runs the tests
# For those who work on it: test-slow, lint, and
#   make bench  times codecs, and conversion too with BENCH="--model DIR ..."; see benchmarks/run.py

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

BENCH ?=

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/demo-ready
	@$(BIN)/python demo/story.py

test: $(VENV)/test-ready
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/test-ready
	$(BIN)/python -m pytest -n auto -m slow

lint: $(VENV)/test-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test-ready
	$(BIN)/python -m benchmarks.run $(BENCH)

clean:
	rm -rf $(VENV) demo-output

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-ready: $(BIN)/python pyproject.toml requirements-dev.txt
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements-dev.txt --editable '.[llama-cpp]'
	@touch $@

$(VENV)/test-ready: $(VENV)/demo-ready
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
