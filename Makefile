# Two commands for a fresh machine: `make demo` and `make test`. README.md gives the plain commands behind them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test

demo: .venv/demo-ready
	$(BIN)/python recipes/demo.py

test: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist loadfile

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/demo-ready: requirements.txt requirements-demo.txt | .venv/bin/python
	$(BIN)/python -m pip install -r requirements-demo.txt
	touch $@

.venv/test-ready: $(wildcard requirements*.txt) build-constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -r requirements-dev.txt
	PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt \
		$(BIN)/python -m pip install -r requirements-visdom.txt
	$(BIN)/python -m pip install kenlm==0.3.0 || echo "kenlm, which needs a compiler: not installed; tests against it are skipped"
	touch $@
