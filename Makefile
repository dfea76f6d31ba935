# Every command of Firn. `make` alone lists them in the order of the flow.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/sh

# PYTHON=... uses an environment of your own (torch 2.9 or newer); without it a .venv is made from pyproject.toml.
# RUN is the interpreter here, and in `make reproduce RUN=artifacts/heads/...` the run to make again.
ifeq ($(origin RUN),command line)
RECORDED := $(RUN)
endif
ifdef PYTHON
override RUN := $(PYTHON)
else
override RUN := .venv/bin/python
SET_UP := .venv/.ready
SET_UP_CHECKS := .venv/.ready-to-check
endif
BASE_PYTHON ?= python3

# Variables become flags of the same name: DATASET=colon is --dataset 'colon'. Defaults live in the command itself.
flag = $(if $($(1)),--$(2) '$($(1))')
COMMON = $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(call flag,SEED,seed)
FROZEN = $(call flag,PREPROCESS,preprocess) $(call flag,PRECISION,precision) $(call flag,DEVICE,device)
FEATURES = $(FROZEN) $(call flag,WEIGHTS,weights)
EXTRACT = $(COMMON) $(FEATURES) $(call flag,MAPS,maps) $(call flag,BATCH_SIZE,batch-size) $(call flag,WORKERS,workers) $(if $(STRICT),--strict) \
  $(call flag,ENGINE,engine)
TRAIN = $(COMMON) $(FEATURES) $(call flag,HEADS,heads) $(call flag,BLOCKS,blocks) $(call flag,POOL,pool) $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol) $(call flag,BUDGET,budget) $(call flag,ENGINE,engine)
THAWED = $(call flag,BLOCKS,blocks) $(call flag,RECIPE,recipe) $(call flag,EPOCHS,epochs) $(call flag,RATE,rate) $(call flag,BATCH_SIZE,batch-size) \
  $(call flag,VIEWS,views) $(call flag,FLIP,flip) $(call flag,NORM,norm) $(call flag,MIXUP,mixup) $(call flag,DROPOUT,dropout) \
  $(call flag,CLASS_WEIGHTS,class-weights) $(call flag,AVERAGE,average)
EXPLAIN = $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(call flag,HEADS,heads) $(call flag,LABELS,labels) \
  $(call flag,PROTOCOL,protocol) $(call flag,PER_ROW,per-row) $(call flag,WEIGHTS,weights)
SOUGHT = $(call flag,MODEL,model) $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(call flag,HEADS,heads) \
  $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol) $(call flag,WEIGHTS,weights) $(call flag,OUT,out)
COMPARE = $(COMMON) $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol)

.PHONY: help setup demo doctor extract audit train-heads finetune transfer compare report explain bundle predict export reproduce learning-curve cache-ls cache-verify cache-repair cache-why cache-gc cache-pack bench test check format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

setup: $(SET_UP) ## make .venv from pyproject.toml (the other targets do it themselves)

demo: $(SET_UP) ## the whole road on synthetic images, no data and no weights needed
	$(RUN) -m pipeline extract --dataset phantom --backbone squeezenet1_1 --maps 1
	$(RUN) -m pipeline train-heads --dataset phantom --backbone squeezenet1_1
	$(RUN) -m pipeline compare --dataset phantom

doctor: $(SET_UP) ## before hours are spent: what is there, what the network sees, time, disk   DATASET BACKBONE MAPS
	$(RUN) -m pipeline doctor $(COMMON) $(FEATURES) $(call flag,MAPS,maps)

extract: $(SET_UP) ## images -> cached features      DATASET BACKBONE MAPS PREPROCESS PRECISION DEVICE ENGINE
	$(RUN) -m pipeline extract $(EXTRACT)

audit: $(SET_UP) ## duplicates, leaks, doubtful labels, odd images   DATASET BACKBONE LABELS
	$(RUN) -m pipeline audit $(COMMON) $(FEATURES) $(call flag,LABELS,labels)

train-heads: $(SET_UP) ## cached features -> heads         DATASET BACKBONE HEADS BLOCKS POOL PROTOCOL BUDGET ENGINE
	$(RUN) -m pipeline train-heads $(TRAIN)

finetune: $(SET_UP) ## thaw the last blocks, from cached maps  DATASET BACKBONE BLOCKS RECIPE VIEWS EPOCHS RATE NORM PROTOCOL
	$(RUN) -m pipeline finetune $(COMMON) $(FEATURES) $(THAWED) $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol)

transfer: $(SET_UP) ## does a detour over a source domain help?  SOURCE TARGET SHARED BACKBONE HEADS THAW=1
	$(RUN) -m pipeline transfer $(call flag,SOURCE,source) $(call flag,TARGET,target) $(call flag,SHARED,shared) \
	  $(call flag,BACKBONE,backbone) $(call flag,SEED,seed) $(FROZEN) $(THAWED) $(call flag,HEADS,heads) $(if $(THAW),--thaw) \
	  $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol)

compare: $(SET_UP) ## heads -> ranked table, HTML page  DATASET BACKBONE LABELS PROTOCOL
	$(RUN) -m pipeline compare $(COMPARE)

report: $(SET_UP) ## the page with images of errors, class maps, audit   DATASET BACKBONE LABELS PROTOCOL
	$(RUN) -m pipeline report $(COMPARE) $(call flag,WEIGHTS,weights)

explain: $(SET_UP) ## hits and misses under class maps  DATASET BACKBONE HEADS LABELS PROTOCOL PER_ROW
	$(RUN) -m pipeline explain $(EXPLAIN)

bundle: $(SET_UP) ## a run -> one folder or .zip that predicts   DATASET MODEL HEADS CALIBRATION WITH_WEIGHTS OUT
	$(RUN) -m pipeline bundle $(SOUGHT) $(call flag,CALIBRATION,calibration) $(if $(WITH_WEIGHTS),--with-weights)

predict: $(SET_UP) ## new images -> predictions.csv   IMAGES MODEL (or DATASET) POINT OVERLAYS OUT
	$(RUN) -m pipeline predict $(SOUGHT) $(call flag,IMAGES,images) $(call flag,POINT,point) $(if $(OVERLAYS),--overlays) $(call flag,DEVICE,device) $(call flag,WORKERS,workers)

export: $(SET_UP) ## a bundle -> ONNX or torch, with a model card   DATASET MODEL HEADS FORMAT IMAGES OUT
	$(RUN) -m pipeline export $(SOUGHT) $(call flag,FORMAT,format) $(call flag,IMAGES,images)

reproduce: $(SET_UP) ## a recorded run made again, and a verdict   RUN (or DATASET HEADS) DEVICE
	$(RUN) -m pipeline reproduce $(call flag,RECORDED,run) $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(call flag,HEADS,heads) \
	  $(call flag,LABELS,labels) $(call flag,PROTOCOL,protocol) $(call flag,DEVICE,device) $(call flag,WEIGHTS,weights)

learning-curve: $(SET_UP) ## would more patients help?   DATASET BACKBONE HEADS BLOCKS POOL LABELS
	$(RUN) -m pipeline learning-curve $(COMMON) $(FEATURES) $(call flag,HEADS,heads) $(call flag,BLOCKS,blocks) $(call flag,POOL,pool) $(call flag,LABELS,labels)

cache-ls: $(SET_UP) ## every cache entry: bytes, state, age
	$(RUN) -m pipeline cache-ls $(call flag,DATASET,dataset)

cache-verify: $(SET_UP) ## read every byte of the cache (or of a pack), list what is damaged
	$(RUN) -m pipeline cache-verify $(call flag,DATASET,dataset)

cache-repair: $(SET_UP) ## compute again just what is damaged   DATASET
	$(RUN) -m pipeline cache-repair $(call flag,DATASET,dataset) $(call flag,DEVICE,device) $(call flag,WORKERS,workers)

cache-why: $(SET_UP) ## why features are not ready    DATASET BACKBONE and what extract takes
	$(RUN) -m pipeline cache-why $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(FEATURES)

cache-gc: $(SET_UP) ## list what a data set needs no more   DATASET BACKBONE, YES=1 removes it
	$(RUN) -m pipeline cache-gc $(call flag,DATASET,dataset) $(call flag,BACKBONE,backbone) $(FEATURES) $(if $(YES),--yes)

cache-pack: $(SET_UP) ## features -> one HDF5 file for a colleague   DATASET BACKBONE MAPS OUT
	$(RUN) -m pipeline cache-pack $(COMMON) $(FEATURES) $(call flag,MAPS,maps) $(call flag,OUT,out)

bench: $(SET_UP) ## how fast is extraction here, and against what it could be   BENCH="--quick --only loop"
	$(RUN) -m benchmarks.extraction $(BENCH)

# One thread in each of JOBS processes, 2 without: several threads in each would wait for one another.
test: $(SET_UP_CHECKS) ## run the tests (set up if need be)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(or $(JOBS),2) --dist worksteal $(TESTS)

check: $(SET_UP_CHECKS) ## format, lint and types, changing nothing
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(SET_UP_CHECKS) ## rewrite the code in the project's format
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

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
