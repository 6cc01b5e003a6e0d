# Each target sets up what it needs: an environment in .venv, and this package in it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: serve test

serve: $(VENV)/installed
	$(BIN)/panel serve apps/main.py --plugins explorer.views.team --address 127.0.0.1 --show

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[test]'
	touch $@ $(VENV)/installed
