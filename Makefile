# Each target makes and uses .venv by itself; nothing else has to be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt

.PHONY: demo test check docs clean

demo: $(VENV)/.base ## set up, run the bundled model with and without ViCrop, show the board
	OMP_NUM_THREADS=1 $(BIN)/fovea demo # a model this small is fastest on one core

test: $(VENV)/.dev ## set up and run the tests
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev ## format, lint, types, floors, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fovea needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@

clean: ## forget the environment and built files; runs stay
	rm -rf $(VENV) site build dist *.egg-info
