# `make` lists the verbs. Everything is installed into .venv here; nothing else on the machine is touched.
#   PYTHON=…       the interpreter to build .venv from (3.11 or 3.12)
#   TORCH_INDEX=…  a package index that has the CPU build of torch, where pip's default one is a CUDA build
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo install test soak check format pictures clean

help:
	@echo 'make demo      set up, then chat with the bot in a browser: no token, no GPU'
	@echo 'make test      set up, then run the tests'
	@echo 'make soak      the long tests: more seeds, more kills'
	@echo 'make check     formatting, lint, types, import contracts'
	@echo 'make install   set up only: chat and trainer, for thumbtune run'
	@echo 'make pictures  make the pictures of the README again (needs Chromium)'
	@echo 'make clean     remove .venv'

# Chatting starts as soon as its own part is there; the trainer's part installs behind it.
demo: .venv/chat.stamp
	@nice -n 19 $(MAKE) --no-print-directory .venv/training.stamp >.venv/training.log 2>&1 &
	@$(BIN)/thumbtune demo

install: .venv/training.stamp

test: .venv/training.stamp .venv/dev.stamp
	$(BIN)/python -m pytest -m 'not soak'

soak: .venv/training.stamp .venv/dev.stamp
	$(BIN)/python -m pytest -m soak

check: .venv/training.stamp .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pictures: .venv/training.stamp .venv/dev.stamp
	$(PIP) -r requirements/pictures.txt
	$(BIN)/python -m docs.pictures

clean:
	rm -rf .venv

# A bare Debian's python3 has no venv module; virtualenv does the same.
.venv/bin/python:
	$(PYTHON) -m venv .venv || { $(PYTHON) -m pip install --quiet --user virtualenv && $(PYTHON) -m virtualenv --quiet .venv; }

.venv/chat.stamp: requirements/torch.txt requirements/cpu-chat.txt requirements/torchvision-cpu.pth pyproject.toml | .venv/bin/python
	@echo 'Installing what chatting needs …'
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	$(PIP) --no-deps -r requirements/cpu-chat.txt torchvision==0.28.0
	cp requirements/torchvision-cpu.pth $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/
	$(PIP) --no-deps --editable .
	@touch $@

# XTuner comes last: once its metadata is there, everything it needs is.
.venv/training.stamp: .venv/chat.stamp requirements/cpu-training.txt
	@echo 'Installing the trainer …'
	grep -v '^xtuner' requirements/cpu-training.txt >.venv/training-first.txt
	$(PIP) --no-deps -r .venv/training-first.txt
	$(PIP) --no-deps -r requirements/cpu-training.txt
	@touch $@

.venv/dev.stamp: .venv/chat.stamp requirements/dev.txt
	$(PIP) --no-deps -r requirements/dev.txt
	@touch $@
