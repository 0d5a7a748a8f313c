# What people and CI run. Every target sets itself up first: `make demo` and `make test` work on a bare machine with git, make and Python.
#   make setup EXTRAS=cuda|tpu   installs JAX for an accelerator
#   make PYTHON=python3.12 …     chooses the interpreter; by default the first from 3.11 to 3.13 that works

VENV ?= .venv
PEERS := .venv-peers
EXTRAS ?=
PYTEST_ARGS ?=
BENCH ?= --config=configs/clip.py:variant=ViT-B/32 --batch_size=32 --config.objective.model.dtype=float32 --config.objective.model.remat=none
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SCRIPTS := launch/*.sh launch/slurm.sbatch .ci/run .ci/python

.PHONY: help setup test test-long test-peers lint types demo demo-short bench lock clean

help:
	@echo 'make setup       .venv from the pinned requirements'
	@echo 'make test        the test suite, with ruff, mypy and shellcheck in it'
	@echo 'make test-long   whole-loop runs of minutes'
	@echo 'make test-peers  comparisons with PyTorch libraries, in .venv-peers'
	@echo 'make lint types  ruff and shellcheck; mypy'
	@echo 'make demo        CLIP, text-to-image, a captioner and what its captions are good for, with reports in runs/demo (17 minutes on two cores)'
	@echo 'make demo-short  the same path in two minutes'
	@echo 'make bench       speed of the CLIP ViT-B/32 train step on this machine'
	@echo 'make clean       removes the environments and caches, not runs/'

# An environment is ready when its stamp is newer than the pins and names the extras asked for.
define make_env
	@python=$$(PYTHON='$(PYTHON)' sh .ci/python) && { test -x $(1)/bin/pip || "$$python" -m venv --clear $(1); }
	$(1)/bin/python -m pip install --quiet $(foreach file,$(2),-r $(file))
	$(if $(3),$(1)/bin/python -m pip install --quiet --no-deps -r $(3))
	$(1)/bin/python -m pip install --quiet --no-build-isolation $(foreach file,$(2),-c $(file)) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@
endef

$(VENV)/.ready$(if $(EXTRAS),-$(EXTRAS)): requirements.txt pyproject.toml .ci/python
	$(call make_env,$(VENV),requirements.txt)

$(PEERS)/.ready: requirements.txt requirements-peers.txt requirements-peers-bare.txt pyproject.toml .ci/python
	$(call make_env,$(PEERS),requirements.txt requirements-peers.txt,requirements-peers-bare.txt)

setup: $(VENV)/.ready$(if $(EXTRAS),-$(EXTRAS))

test: setup
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-long: setup
	$(VENV)/bin/python -m pytest -m long $(PYTEST_ARGS)

test-peers: $(PEERS)/.ready
	$(PEERS)/bin/python -m pytest -m peers -n 1 $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/shellcheck $(SCRIPTS)

types: setup
	$(VENV)/bin/mypy

demo: setup
	$(VENV)/bin/mmdiff demo --workdir=runs/demo

demo-short: setup
	$(VENV)/bin/mmdiff demo --workdir=runs/demo_short --tiny

bench: setup
	$(VENV)/bin/mmdiff bench $(BENCH)

lock:
	python3 .ci/lock.py python3.11 python3.12

clean:
	rm -rf $(VENV) $(PEERS) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
