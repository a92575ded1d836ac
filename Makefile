# Two commands: `make demo` and `make test`. Each sets up what it needs.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo_out
MINUTES ?= 6
TEST_PROCESSES ?= 2
# Prints the path of a Python that fits, or an error that says which ones do.
FIND_PYTHON := for p in "$(PYTHON)" python3.11 python3.12 python3 python; do \
	  [ -n "$$p" ] && "$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	    2>/dev/null && { command -v "$$p"; exit 0; }; done; \
	echo "no Python 3.11 or 3.12 found; install one or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE ?= 1
export RAY_ENABLE_UV_RUN_RUNTIME_ENV ?= 0

.PHONY: help demo test test-slow check format env clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 20

env: $(STAMP) ## Make the environment in .venv (the tested versions of constraints.txt)

$(STAMP): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)) && { [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); }
	@[ -x $(BIN)/uv ] || command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing the environment into $(VENV) (a minute or two with a warm cache, some minutes more without)"
	@uv=$$([ -x $(BIN)/uv ] && echo $(BIN)/uv || command -v uv); \
	  "$$uv" pip install --quiet --compile-bytecode --python $(BIN)/python --constraints constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the whole workflow on a synthetic world (MINUTES=30 trains longer)
	@$(BIN)/python -m jobs.demo --out $(OUT) --minutes $(MINUTES)

test: $(STAMP) ## The default tests (TEST_PROCESSES=0 runs them in one process)
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0

test-slow: $(STAMP) ## The proofs that take minutes
	@$(BIN)/python -m pytest -m slow --numprocesses $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0 -o timeout=600

check: $(STAMP) ## Format, lint, types, directions, length of files
	@$(MAKE) --no-print-directory -j 4 --output-sync=target check-format check-lint check-types check-imports check-length

check-format:
	@$(BIN)/ruff format --check --quiet . && echo "format    ok"

check-lint:
	@$(BIN)/ruff check --quiet . && echo "lint      ok"

check-types:
	@$(BIN)/pyright --warnings > $(VENV)/pyright.log 2>&1 && echo "types     ok" || { cat $(VENV)/pyright.log; exit 1; }

check-imports:
	@$(BIN)/lint-imports > $(VENV)/imports.log 2>&1 && echo "imports   ok" || { cat $(VENV)/imports.log; exit 1; }

check-length:
	@$(BIN)/python -m tests.file_length && echo "length    ok"

format: $(STAMP) ## Format and fix what can be fixed
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## Remove the environment and the demo's output
	rm -rf $(VENV) $(OUT)
