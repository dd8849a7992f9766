# bucketsim. Plain `make` prints this list. Every target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
OUT := results/out
.DEFAULT_GOAL := help

help: ## print the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bucketsim needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/.ready ## create .venv and install bucketsim with its development tools (1-2 min)

run: setup ## compare static with continuous batching on 4 GPUs: a table and a picture (< 1 min)
	$(BIN)/bucketsim compare examples/sharegpt.yaml --policies static,continuous --out $(OUT)/run

# Compiled once, the tests and the package serve the processes that tests start and the next run.
test: setup ## the fast tests: what CI runs (2 min after the installs)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist worksteal

check: setup ## lint, format, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: setup ## the full counts of every bar (< 30 min on 2 cores)
	$(BIN)/python -m pytest -m "slow and not alone" -n auto --dist worksteal
	$(BIN)/python -m pytest -m alone

mutate: setup ## 118 deliberate bugs, each must be caught (about 2 min)
	$(BIN)/python tests/mutate.py

bench: setup ## requests per second and SimPy timeouts per request, 10k to 1M requests (about 15 min)
	$(BIN)/python -m sim.study.bench
	$(BIN)/python -m sim.study.forms

SITE := build/compiled/site
COMPILED := $(SITE)/sim/.built
compiled: $(COMPILED) ## compile the core and the policies into build/compiled (1-2 min of processor time, wants a C compiler)

$(COMPILED): .venv/.ready $(wildcard build_backend/*.py sim/types/*.py sim/core/*.py sim/costs/*.py policies/*.py policies/parts/*.py)
	rm -rf $(SITE) build/compiled/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -C form=compiled -w build/compiled/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target $(SITE) build/compiled/wheel/*.whl
	@touch $@

compiled-test: compiled ## both forms and both loops give the same records (about 3 min)
	$(BIN)/python -m pytest tests/compiled -m "not gpu"

performance: compiled ## measure all forms and a profile: table and picture of docs/performance.md (8 min on a quiet machine)
	$(BIN)/python docs/performance.py

evidence: setup ## run the slow proofs and write results/reference/evidence.md (< 40 min)
	$(BIN)/python tests/evidence.py

calibrate: setup ## measure, fit and replay a tiny model on the CPU (< 3 min, < 2 GB)
	$(BIN)/bucketsim calibrate measure --model tiny-llama --device cpu --out $(OUT)/calibrate
	$(BIN)/bucketsim calibrate fit $(OUT)/calibrate
	$(BIN)/bucketsim calibrate replay $(OUT)/calibrate --device cpu --out $(OUT)/calibrate/replay

# A GPU machine may have torch but no network: `make wheelhouse` where there is one, copy the tree.
MODEL := llama-2-13b
DEVICE := $(shell nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | sed 's/NVIDIA //' | tr 'A-Z ' 'a-z-')
GPU_OUT = results/reference/$(or $(DEVICE),gpu)/$(MODEL)
GPU_PYTHON = $(if $(wildcard wheelhouse/*.whl),PYTHONPATH=.:wheelhouse/site $(PYTHON),$(BIN)/python)
GPU_SETUP = $(if $(wildcard wheelhouse/*.whl),wheelhouse/site,setup)
calibrate-gpu: $(GPU_SETUP) ## the same for MODEL=llama-2-13b on a CUDA GPU (< 9 min)
	$(GPU_PYTHON) -m sim.cli calibrate measure --model $(MODEL) --device cuda --out $(GPU_OUT)
	$(GPU_PYTHON) -m sim.cli calibrate fit $(GPU_OUT)
	$(GPU_PYTHON) -m sim.cli calibrate replay $(GPU_OUT) --device cuda --out $(GPU_OUT)

wheelhouse/site: $(wildcard wheelhouse/*.whl)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --target $@ wheelhouse/*.whl

WHEEL_PYTHON := 3.12
wheelhouse: setup ## collect the wheels that a GPU machine without network lacks (3 MiB)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(WHEEL_PYTHON) \
		--platform manylinux2014_x86_64 -c constraints.txt -d wheelhouse \
		simpy mypy_extensions joblib cloudpickle pydantic pydantic_core annotated-types typing-inspection typing_extensions

figures: setup ## draw the paper's figures and their twins into results/out/figures (< 10 min on 2 cores; resumes)
	$(BIN)/bucketsim figures --out $(OUT)/figures

fig-%: setup ## draw one figure and its twin: make fig-5d
	$(BIN)/bucketsim figures $* --out $(OUT)/figures

claims: setup ## judge the paper's claims under its set and 547 other settings (35 min on 2 cores; resumes)
	$(BIN)/bucketsim paper claims --out $(OUT)/claims

sensitivity: setup ## how far each assumption moves each claim: picture and page (5 min after make claims)
	$(BIN)/bucketsim paper sensitivity --out $(OUT)/claims

paper: figures claims sensitivity ablation frontier ## all of the reproduction: results/REPRODUCTION.md (< 60 min)
	$(BIN)/bucketsim paper report --out $(OUT) --readme README.md

quick: setup ## redraw 5c and 5d and the claims table with fewer seeds (< 2 min)
	$(BIN)/bucketsim figures 5c 5d --no-twins --seeds 3 --out $(OUT)/quick
	$(BIN)/bucketsim paper claims --quick --out $(OUT)/quick

ablation: setup ## measure what each component is worth, into results/out/ablation (< 8 min on 2 cores; resumes)
	$(BIN)/bucketsim paper ablation --out $(OUT)/ablation

frontier: setup ## find the capacity of every policy over SLO scales, into results/out/frontier (< 10 min; resumes)
	$(BIN)/bucketsim paper frontier --out $(OUT)/frontier

TABLES := ../shared/data/profiles
profiles: setup ## fit the shipped profiles to operator tables in TABLES (4 min)
	for gpu in a100-80gb h100 h200 rtx-4090 rtx-pro-6000; do \
		$(BIN)/bucketsim calibrate fit --operators $(TABLES) --gpu $$gpu --out sim/costs/profiles || exit; done

fidelity: setup ## fit and replay the measured runs of ../shared/data, write docs/fidelity.md (2 min)
	$(BIN)/python docs/fidelity.py ../shared/data

engine-modes: setup ## price the engine modes of attention, write the tables of docs/engine-modes.md (3 min)
	$(BIN)/python docs/engine_modes.py

docs-ascendra: setup ## Ascendra's claim: tables, and docs/img/ascendra-claim.png (6 min on 2 cores)
	$(BIN)/python docs/ascendra.py

docs-pictures: setup ## draw the same ten requests under every policy (3 s)
	$(BIN)/python docs/pictures.py

gpu-test: $(GPU_SETUP) ## tests that need a CUDA device (2-3 min; wants pytest and hypothesis there)
	$(GPU_PYTHON) -m pytest tests/gpu -m "gpu and not slow" -W default

clean: ## remove .venv and everything generated
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache $(OUT)

.PHONY: help setup run test check test-slow mutate bench compiled compiled-test performance evidence figures claims \
	sensitivity ablation frontier paper quick calibrate calibrate-gpu wheelhouse \
	profiles fidelity engine-modes docs-ascendra docs-pictures gpu-test clean
