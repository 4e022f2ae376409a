# From a bare clone: `make train` sets up and trains, `make test` sets up and tests. `make help` lists the rest.
#   PYTHON=python3.12     another interpreter (3.11 or newer)
#   NO_VENV=1             use PYTHON as it is: nothing is installed where all that the target needs can be imported
PYTHON ?= python3
NO_VENV ?=

# The training run of `make train`. TRAIN_FLAGS takes any other flag of `sacref train --help`, such as --overwrite.
BACKEND ?= jax
ENV ?= HalfCheetah-v5
STEPS ?= 35000
SEED ?= 0
RUN_DIR ?= runs/$(ENV)-$(BACKEND)-seed$(SEED)
TRAIN_FLAGS ?=
# Tests run in this many processes.
WORKERS ?= 2
PYTEST_FLAGS ?=
# Peers that `make bench-peers` installs, of bench/peers/requirements; unless given, all of them.
PEERS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-bench setup-docs bench-peers bench-micro train test test-full parity bench docs docs-serve types lint clean

ifeq ($(NO_VENV),1)
PY := $(PYTHON)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := .venv/bin/python
endif

help: ## this list
	@echo "make TARGET [NAME=value ...]"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo "Names: PYTHON NO_VENV BACKEND ENV STEPS SEED RUN_DIR TRAIN_FLAGS WORKERS PYTEST_FLAGS PEERS (see the head of the Makefile)"

ifeq ($(NO_VENV),1)
# What each target imports beyond the backends; a target may train on whichever backend is there.
NEEDS_RUN := array_api_compat gymnasium imageio jaxtyping matplotlib mujoco numpy PIL rich safetensors scipy tensorboard tyro
NEEDS_DEV := array_api_strict beartype hypothesis mpmath msgspec mypy nox pytest ruff sybil xdist
EXTRAS := all,dev
setup test test-full parity types lint bench-micro: NEEDS := $(NEEDS_RUN) $(NEEDS_DEV) torch jax flax optax
bench-micro: NEEDS += pytest_benchmark
types: NEEDS += basedpyright
train bench setup-bench bench-peers: NEEDS := $(NEEDS_RUN)
bench setup-bench: NEEDS += msgspec
train: NEEDS += $(if $(filter jax,$(BACKEND)),jax flax optax,torch)
docs docs-serve setup-docs: NEEDS := $(NEEDS_RUN) latex2mathml material mkdocs mkdocstrings
docs docs-serve setup-docs: EXTRAS := docs

setup setup-bench setup-docs:
	@missing=$$($(PYTHON) -c "from importlib.util import find_spec; print(*[name for name in '$(NEEDS)'.split() if find_spec(name) is None])") && \
	if [ -z "$$missing" ]; then \
	    echo "setup: $(PYTHON) has all that is needed; nothing is installed"; \
	else \
	    echo "setup: $(PYTHON) lacks $$missing; installing what is missing into it"; \
	    $(PYTHON) -m pip install --quiet --quiet --editable '.[$(EXTRAS)]'; \
	fi
else
# Bytecode, on all cores, where pip would take one: many a container tells Python to write none, and each process would compile torch and
# JAX again. Files named for a newer Python (torch's py312_intrinsics.py) are left out; what else does not compile is said and no hindrance.
COMPILE = $(PY) -m compileall -q -j 0 -x '/py3[0-9]+_[^/]*$$' .venv/lib || echo "setup: the files above have no bytecode"

setup: .venv/.setup ## create .venv and install sacref with both backends, the tests and the tools

.venv/.setup: pyproject.toml constraints.txt
	@echo "setup: creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv
	@echo "setup: installing sacref[all,dev] into .venv with the versions of constraints.txt (a few minutes)"
	@$(PY) -m pip install --quiet --quiet --no-compile --editable '.[all,dev]' --constraint constraints.txt
	@$(COMPILE)
	@touch $@
	@echo "setup: done"

setup-bench: .venv/.setup-bench

.venv/.setup-bench: .venv/.setup
	@echo "setup: installing the peers that are measured beside sacref"
	@$(PY) -m pip install --quiet --quiet --no-compile --editable '.[bench]' --constraint constraints.txt
	@$(COMPILE)
	@touch $@

setup-docs: .venv/.setup-docs

.venv/.setup-docs: .venv/.setup
	@echo "setup: installing what makes the site"
	@$(PY) -m pip install --quiet --quiet --no-compile --editable '.[docs]' --constraint constraints.txt
	@touch $@
endif

train: setup ## train and draw the curve (BACKEND, ENV, STEPS, SEED, RUN_DIR, TRAIN_FLAGS)
	$(PY) -m sacref train --backend $(BACKEND) --env $(ENV) --steps $(STEPS) --seed $(SEED) --run-dir $(RUN_DIR) $(TRAIN_FLAGS)

# The tests start many processes, so that bytecode of sacref itself is kept, too. A worker has a stretch of them, and takes from another's when
# it is done: what the tests of a module share is made, and compiled by JAX, once.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

test: setup ## run the tests but for the long ones (WORKERS, PYTEST_FLAGS)
	$(PYTEST) $(PYTEST_FLAGS)

test-full: setup ## run all tests, the long ones too (WORKERS, PYTEST_FLAGS)
	$(PYTEST) -m "" $(PYTEST_FLAGS)

parity: setup-bench ## torch against JAX against the float64 oracle, and one update against Stable-Baselines3
	NO_VENV=1 $(PY) -m nox -s parity

bench-peers: setup-bench ## an environment for each peer of the throughput suite, in .venv-peers (PEERS="sbx skrl" for some of them)
	$(PY) -m bench.peers.environments $(PEERS)

bench-micro: setup ## the agent's calls one by one, with pytest-benchmark
	@mkdir -p runs
	$(PY) -m pytest bench/micro -p benchmark --benchmark-json runs/micro.json

bench: setup-bench ## measure, beside the peers, and write the JSON and tables of results/
	$(PY) -m bench

docs: setup-docs ## the site, in build/site; a broken link or a missing docstring fails
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

docs-serve: setup-docs ## the site on localhost:8000, made again when a page changes
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve

types: setup ## mypy --strict, and how much of the public types of a built wheel is known
	NO_VENV=1 $(PY) -m nox -s types

lint: setup ## ruff
	NO_VENV=1 $(PY) -m nox -s lint

clean: ## remove .venv, .venv-peers and what tools left behind (runs/ and results/ stay)
	rm -rf .venv .venv-peers .nox .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
