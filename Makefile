# make demo            sets up .venv, runs the pipeline on simulated people, serves the result until Ctrl-C
# make demo SERVE=0    ends after the pipeline
# make demo ACCEL=gpu  the same with the CUDA builds of torch and vLLM
# make test            sets up, checks and tests everything
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

ACCEL ?= cpu
SERVE ?= 1
PORT ?= 8000
CONFIG ?= jobs/configs/run_pipeline/demo.yaml
WORKSPACE ?= workspace
PYTHON ?= python3
WORKERS ?= 2
# Where pip finds the CPU build of torch, where the default index has only the CUDA one: an --index-url of your choice.
TORCH_OPTIONS ?=

BIN := .venv/bin
STAMP := .venv/installed-$(ACCEL)
export RAY_AUTH_MODE ?= token
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH := platform
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Images often set it. Nothing is compiled at set-up, so every process would compile torch and Ray anew and take twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test setup check system clean

demo: setup
	@start=$$SECONDS; $(BIN)/python jobs/run_pipeline.py --config $(CONFIG) --workspace $(WORKSPACE); \
	echo "demo: pipeline ran in $$((SECONDS - start)) s"
	@if [ "$(SERVE)" != 0 ]; then exec $(BIN)/python -m serve.local --workspace $(WORKSPACE) --port $(PORT); fi

# Two files at a time: most tests keep one core busy. A file stays with one process, so that what its tests share is made once; files are
# taken in order, in which the longest come early.
test: setup system check
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)

# torch goes first and alone: every later requirement of torch is then met by the build that was chosen here.
# The lock is complete, so pip resolves nothing; torchvision, torchaudio and torchcodec are left out on purpose.
# Nothing is compiled ahead: most of what is installed is never imported, and what is compiles itself.
$(STAMP): locks/$(ACCEL).txt pyproject.toml
	@start=$$SECONDS; \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	$(BIN)/python -m pip install -qq --no-compile $(TORCH_OPTIONS) torch==2.13.0; \
	$(BIN)/python -m pip install -qq --no-compile --no-deps -r locks/$(ACCEL).txt; \
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .; \
	touch $@; echo "setup: installed in $$((SECONDS - start)) s"

# What tests need of the operating system: a browser, a load generator, and Redis.
system:
	@for program in chromium wrk redis-server; do \
	  command -v $$program > /dev/null && continue; \
	  if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$program > /dev/null; \
	  else echo "tests need $$program: install it with your package manager" >&2; exit 1; fi; \
	done

clean:
	rm -rf .venv $(WORKSPACE) build
