# Every command of Firn. `make` alone lists them in the order of the flow.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/sh

# PYTHON=... uses an environment of your own (torch 2.9 or newer); without it a .venv is made from pyproject.toml.
ifdef PYTHON
PY := $(PYTHON)
else
PY := .venv/bin/python
SET_UP := .venv/.ready
SET_UP_CHECKS := .venv/.ready-to-check
endif
BASE_PYTHON ?= python3

# make hands its own command line to the verb: DATASET=colon is --dataset colon, and what no target takes is an error.
export FIRN_GOALS := $(MAKECMDGOALS)
export FIRN_GIVEN := $(strip $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v))))

VERBS = doctor extract audit train-heads finetune transfer compare report figures explain learning-curve bundle predict validate \
  export reproduce cache-ls cache-verify cache-repair cache-why cache-gc cache-pack
.PHONY: help setup demo bench test check format clean $(VERBS)

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

setup: $(SET_UP) ## make .venv from pyproject.toml (the other targets do it themselves)

demo: $(SET_UP) ## the whole road on synthetic images, no data and no weights needed
	$(PY) -m pipeline extract --dataset phantom --backbone squeezenet1_1 --maps 1
	$(PY) -m pipeline train-heads --dataset phantom --backbone squeezenet1_1
	$(PY) -m pipeline compare --dataset phantom

$(VERBS): $(SET_UP)
	@$(PY) -m pipeline $@

doctor: ## what is there, what the network will see, time, disk   DATASET BACKBONE MAPS
extract: ## stage one: images -> cached features       DATASET BACKBONE MAPS PREPROCESS PRECISION DEVICE ENGINE
audit: ## duplicates, leaks, doubtful labels, odd images   DATASET BACKBONE LABELS
train-heads: ## stage two: cached features -> heads        DATASET BACKBONE HEADS BLOCKS POOL PROTOCOL FOLDS SEEDS BUDGET DEVICE
finetune: ## train the last blocks too, or the whole network   DATASET BACKBONE BLOCKS RECIPE AUGMENT NETWORKS SEEDS EPOCHS
transfer: ## does a detour over a source domain help?  SOURCE TARGET SHARED BACKBONE HEADS THAW=1
compare: ## all runs -> ranked table, HTML page       DATASET BACKBONE LABELS PROTOCOL MARGIN, or A and B
report: ## the page with errors, class activation maps and the audit   DATASET BACKBONE LABELS PROTOCOL
figures: ## for a paper: figures, LaTeX tables, methods   DATASET BACKBONE LABELS PROTOCOL
explain: ## hits and misses under class activation maps   DATASET BACKBONE HEADS LABELS PROTOCOL PER_ROW
learning-curve: ## would more patients help?   DATASET BACKBONE HEADS BLOCKS POOL LABELS
bundle: ## a run -> one folder or .zip that predicts   DATASET MODEL HEADS CALIBRATION WITH_WEIGHTS OUT
predict: ## new images -> predictions.csv             IMAGES MODEL (or DATASET) POINT OVERLAYS OUT
validate: ## a bundle on a labelled set from elsewhere    MODEL DATASET TARGET MAP LABELS OUT
export: ## a bundle -> ONNX or torch, with a model card   DATASET MODEL HEADS FORMAT IMAGES OUT
reproduce: ## a recorded run made again, and a verdict   RUN (or DATASET HEADS) DEVICE
cache-ls: ## every cache entry: bytes, state, age
cache-verify: ## read every byte of the cache (or of a pack), list what is damaged
cache-repair: ## compute again just what is damaged   DATASET
cache-why: ## why features are not ready    DATASET BACKBONE and what extract takes
cache-gc: ## list what a data set needs no more   DATASET BACKBONE, YES=1 removes it
cache-pack: ## features -> one HDF5 file for a colleague   DATASET BACKBONE MAPS OUT

bench: $(SET_UP) ## how fast is extraction here, and against what it could be   BENCH="--quick --only loop"
	$(PY) -m benchmarks.extraction $(BENCH)

# One thread in each of JOBS processes, 2 without: several threads in each would wait for one another.
test: $(SET_UP_CHECKS) ## run the tests (set up if need be)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(or $(JOBS),2) --dist worksteal $(TESTS)

check: $(SET_UP_CHECKS) ## format, lint and types, changing nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(SET_UP_CHECKS) ## rewrite the code in the project's format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## remove artifacts/ (never data/)
	rm -rf artifacts

.venv/.ready: pyproject.toml
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Firn needs Python 3.11 or newer, and $(BASE_PYTHON) is older or missing; run: make $(MAKECMDGOALS) BASE_PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up .venv (torch is large: a few minutes, once)" >&2
	$(BASE_PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --editable .
	@touch $@

.venv/.ready-to-check: .venv/.ready
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@
