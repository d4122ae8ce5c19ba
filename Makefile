# Needs make and python3.11; run from the repository's root.
PYTHON ?= python3.11
REQUIREMENTS ?= requirements/dev.txt
BIN := .venv/bin
STAMP := .venv/.installed
STUB := requirements/stubs/fbgemm-gpu/pyproject.toml

# One thread per worker: two pytest workers share the cores.
WORKERS ?= 2

.DELETE_ON_ERROR:
.PHONY: help install demo bundlerec complete_journey icecat test test-slow lint format clean ablation bench-step bench-scale bench-peers bench-plan bench-balance bench-topk

help: ## list the targets
	@sed -nE 's/^([a-z_ -]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

$(STAMP): $(wildcard requirements/*.txt) $(STUB) pyproject.toml
	@echo "installing $(REQUIREMENTS) into .venv (about 1 GB, once)"
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)': install Python 3.11, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: '$(PYTHON)' is not Python 3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r $(REQUIREMENTS)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@

install: $(STAMP) ## make .venv with the pinned CPU set, the tools and this package
	@echo "installed: $(BIN)/torchrec-mt"

demo: $(STAMP) ## prepare, train and evaluate on the synthetic shop; leaves runs/demo
	@echo "demo: prepare, train, evaluate (launch/demo.toml)"
	@$(BIN)/torchrec-mt prepare launch/demo.toml
	@$(BIN)/torchrec-mt train launch/demo.toml --output runs/demo --overwrite
	@$(BIN)/torchrec-mt evaluate runs/demo

bundlerec complete_journey icecat: $(STAMP) ## prepare, train and evaluate on real data (launch/NAME.toml); leaves runs/NAME
	@$(BIN)/torchrec-mt prepare launch/$@.toml
	@$(BIN)/torchrec-mt train launch/$@.toml --output runs/$@ --overwrite
	@$(BIN)/torchrec-mt evaluate runs/$@

lint: $(STAMP) ## ruff, mypy, import-linter
	@echo "ruff check"
	@$(BIN)/ruff check --quiet --output-format concise .
	@echo "ruff format"
	@$(BIN)/ruff format --quiet --diff .
	@echo "mypy"
	@$(BIN)/mypy
	@echo "import-linter"
	@$(BIN)/lint-imports --no-logo

test: lint ## the gate: lint, then pytest
	@echo "pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n $(WORKERS)

test-slow: $(STAMP) ## the longer checks, which `make test` leaves out
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -m "slow and not gpu"

bench-step: $(STAMP) ## one training step beside plain PyTorch (minutes; wants an idle machine)
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_step

bench-scale: $(STAMP) ## two ranks, rows to 10^8, checkpoints beside dd (minutes; wants an idle machine and 16 GiB)
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_scale

bench-plan: $(STAMP) ## our planner beside TorchRec's, 10 to 1,000 tables (two minutes; wants an idle machine)
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_plan

bench-balance: $(STAMP) ## what each method of balancing adds to a step (a minute)
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_balance

bench-topk: $(STAMP) ## exact top-k beside FAISS's flat index (minutes; wants an idle machine and 8 GiB)
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_topk

CONFIG ?= launch/demo.toml
ablation: $(STAMP) ## what each part of the learning signal is worth, 3 seeds (an hour; CONFIG=launch/bundlerec.toml for another)
	@$(BIN)/python -W ignore -m tests.benchmarks.ablation $(CONFIG)

PEERS ?= .venv-peers
$(PEERS)/.installed: requirements/peers.txt
	@echo "installing TensorFlow Recommenders into $(PEERS)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check -r requirements/peers.txt
	@touch $@

bench-peers: $(STAMP) $(PEERS)/.installed ## one training step beside TensorFlow Recommenders, in an environment of its own
	@$(BIN)/python -W ignore -m tests.benchmarks.bench_peers $(PEERS)/bin/python

format: $(STAMP) ## let ruff mend and format the code
	@echo "ruff check --fix, ruff format"
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

clean: ## remove caches and build output (not .venv, not runs)
	@echo "removing caches and build output"
	@rm -rf build dist *.egg-info requirements/stubs/*/build requirements/stubs/*/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find torchrec_mt tests -name __pycache__ -type d -prune -exec rm -rf {} +
