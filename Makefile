PYTHON ?= python3
VENV ?= .venv
# Worker processes of pytest; every worker computes on one thread.
TEST_WORKERS ?= 2

PIP = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
PYTEST = $(VENV)/bin/python -m pytest -q -n $(TEST_WORKERS)
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env app test test-all test-peers lint format quickstart clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(STAMP) ## Create the environment in .venv with the tested versions

test: $(STAMP) ## Run the tests
	$(PYTEST)

test-all: $(STAMP) ## Run the tests, the slow ones included
	$(PYTEST) -m ""

test-peers: $(STAMP) ## Run transformers' tests on the models; DIFFUSERS=checkout adds those of diffusers
	@$(PIP) -e '.[medical,dev,peers]'
	$(VENV)/bin/python scripts/run_peer_tests.py --workers $(TEST_WORKERS) $(if $(DIFFUSERS),--diffusers $(DIFFUSERS))

lint: $(STAMP) ## Check style, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(STAMP) ## Format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

app: $(STAMP) ## Serve the page with the quickstart's pipeline
	$(VENV)/bin/python scripts/app.py

quickstart: $(STAMP) ## Data, trainings, generation, evaluation and a picture, in ./quickstart
	$(VENV)/bin/python scripts/quickstart.py --output_dir quickstart

clean: ## Remove the environment, caches and builds (not ./quickstart)
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: '$(PYTHON)' is missing or older than Python 3.10; name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "make: $(PYTHON) cannot create environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch (the largest download, it can take minutes)"
	@$(PIP) torch numpy
	@echo "Installing hf-vq and everything it needs"
	@$(PIP) -e '.[medical,eval,onnx,app,dev]'
	@touch $@
