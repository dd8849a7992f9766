# bucketsim. Plain `make` prints this list. Every target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
OUT := results/out
.DEFAULT_GOAL := help

help: ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bucketsim needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/.ready ## create .venv and install bucketsim with its development tools (1-2 min)

run: setup ## compare static with continuous batching on 4 GPUs: a table and a picture (< 1 min)
	$(BIN)/bucketsim compare examples/sharegpt.yaml --policies static,continuous --out $(OUT)/run

test: setup ## the fast tests: what CI runs (< 2 min after the installs)
	$(BIN)/python -m pytest

check: setup ## lint, format, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: setup ## the full counts of every bar (< 30 min on 2 cores)
	$(BIN)/python -m pytest -m slow

mutate: setup ## flip some 50 lines; every flip must be caught (< 5 min)
	$(BIN)/python tests/mutate.py

bench: setup ## requests per second and SimPy timeouts per request, 10k to 1M requests (about 5 min)
	$(BIN)/python -m sim.study.bench

evidence: setup ## run the slow proofs and write results/reference/evidence.md (< 40 min)
	$(BIN)/python tests/evidence.py

docs-pictures: setup ## draw the same ten requests under every policy (3 s)
	$(BIN)/python docs/pictures.py

gpu-test: setup ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

clean: ## remove .venv and everything generated
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(OUT)

.PHONY: help setup run test check test-slow mutate bench evidence docs-pictures gpu-test clean
