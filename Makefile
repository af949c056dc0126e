# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types audit hostcost info clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

# The pinned set of constraints.txt, and the package itself in place with its CPU kernels. Again only when these change.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make needs Python 3.11 or newer (CAREamics does); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel ninja torch
	LADDER_KERNELS_BUILD_CPU=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[triton,demo,test,bench,dev]'
	@touch $@

demo: $(INSTALLED)  ## train the real CAREamics model with both blocks, show the difference; ARGS="--steps 50"
	$(BIN)/python -m bench.demo $(ARGS)

test: $(INSTALLED)  ## run the test suite; ARGS="-k philox"
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

audit: $(INSTALLED)  ## what the GPU kernels cost, read from their machine code; needs no GPU. ARGS=--check compares
	$(BIN)/python -m bench.audit $(ARGS)

hostcost: $(INSTALLED)  ## microseconds a step costs the host, by layer; needs no GPU
	$(BIN)/python -m bench.host_cost $(ARGS)

info: $(INSTALLED)  ## versions, devices, and which backend is usable or why not
	$(BIN)/python -m ladder_kernels.info

clean:  ## remove the environment and everything built
	rm -rf $(VENV) out build *.egg-info
