# make demo   the main job on an embedded default      make test    the tests
# make check  what CI runs: lint, types, docs, tests   make bench   ratios, measured here
# make docs   the documentation, as a site in site/     make dist    what is released, in dist/
# make test-cluster   a Ray cluster of two nodes on this machine, which should be quiet
# make test-formats   reads every export back with its trainer's own library, and gs://, in an environment of their own
# Each sets up .venv first; nothing but Python >= 3.11 is needed.

PYTHON ?= python3
BIN := .venv/bin
# Files of tests side by side, one a core: each keeps its own fixtures. `python -m` lets their child processes import them.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-formats test-cluster check bench docs dist format clean

demo: .venv/installed
	$(BIN)/direct-anneal demo --out runs/demo

test: .venv/developing
	$(PYTEST)

test-formats: .venv-formats/installed
	.venv-formats/bin/python -m pytest -rs tests/export/test_trainers_read_it.py tests/export/test_weights.py tests/data/test_google_storage.py

test-cluster: .venv/developing
	DIRECT_ANNEAL_TEST_CLUSTER=1 $(BIN)/pytest tests/distributed

check: .venv/developing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/zensical build --clean --strict
	$(PYTEST)

bench: .venv/developing
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: .venv/developing
	$(BIN)/zensical build --clean --strict

dist: .venv/developing
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

format: .venv/developing
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .venv-formats runs dist site .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "direct-anneal needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

# torch alone and first, so that nothing else decides which build of it comes.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/developing: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

.venv-formats/installed: pyproject.toml constraints.txt formats-constraints.txt
	$(PYTHON) -m venv .venv-formats
	$(PIP:.venv/%=.venv-formats/%) torch
	$(PIP:.venv/%=.venv-formats/%) --editable . pytest hypothesis datasets
	$(PIP:.venv/%=.venv-formats/%) --no-deps --requirement formats-constraints.txt
	touch $@
