# make demo    virtual environment, install, prune a trained model on real data, accuracy before and after
# make test    virtual environment, install for development, linter, types, doctests, tests
# make bench   the tables of benchmarks/ (needs PyTorch)
# make models  train and export models/ again (needs PyTorch)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS   ?= 2

# A development install serves the demo as well; a plain one is made only where there is none.
DEV       := $(VENV)/.installed-dev
PLAIN     := $(VENV)/.installed
INSTALLED := $(if $(wildcard $(DEV)),$(DEV),$(PLAIN))
SOURCES   := $(shell find onnxprune -name '*.py')

DEMO   := models/digits_vit.onnx
PRUNED := build/digits_vit.pruned.onnx

.PHONY: demo test lint types doctest pytest bench models clean

demo: $(INSTALLED)
	@mkdir -p build
	$(BIN)/onnxprune prune $(DEMO) --macs 0.5 --data models/digits_calib.npz -o $(PRUNED) --force
	$(BIN)/onnxprune validate $(PRUNED) --data models/digits_test.npz --against $(DEMO) --metric top1

test: lint types doctest pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

doctest: $(DEV)
	$(BIN)/python -m pytest -q --doctest-modules onnxprune

pytest: $(DEV)
	$(BIN)/python -m pytest -q -n $(JOBS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

models: $(VENV)/.installed-torch
	$(BIN)/python models/train.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnxprune needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(PLAIN): pyproject.toml $(SOURCES) | $(BIN)/python
	$(PIP) install .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[dev]'
	@rm -f $(PLAIN)
	@touch $@

$(VENV)/.installed-%: $(DEV)
	$(PIP) install -e '.[$*]'
	@touch $@
