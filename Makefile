# `make` lists the verbs. Everything is installed into .venv here; nothing else on the machine is touched.
#   PYTHON=…       the interpreter to build .venv from (3.11 or 3.12)
#   DEEPSPEED=1    DeepSpeed as well, with install-gpu
#   TORCH_INDEX=…  the package index with the CPU build of torch, instead of PyTorch's own
PYTHON ?= python3
TORCH_INDEX ?=
DEEPSPEED ?=
# Processes of `make test`: more than there are cores here, because many tests wait for sockets; each takes a gigabyte.
TESTERS ?= 4
BIN := .venv/bin
# The lists are complete and carry hashes; without build isolation nothing else comes in where a package is built.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation

# .venv holds one of two sets: cpu, or gpu once `make install-gpu` has made it that. `make clean` goes back.
GPU := $(wildcard .venv/gpu.stamp)
CHAT := $(if $(GPU),.venv/gpu.stamp,.venv/chat.stamp)
ALL := $(if $(GPU),.venv/gpu.stamp,.venv/training.stamp)

.PHONY: help demo install install-gpu install-ray test test-ray soak check lock format pictures sbom clean

help:
	@echo 'make demo      set up, then chat with the bot in a browser: no token, no GPU'
	@echo 'make test      set up, then run the tests'
	@echo 'make soak      the long tests: more seeds, more kills'
	@echo 'make check     formatting, lint, types, import contracts, the list of modules'
	@echo 'make install   set up only: chat and trainer, for thumbtune run'
	@echo 'make install-gpu   the same with lmdeploy and CUDA, for an NVIDIA GPU (8 GB on disk)'
	@echo 'make install-ray   Ray beside it, in .venv/ray, for more than one machine'
	@echo 'make test-ray  set Ray up, then run its tests'
	@echo 'make lock      make the lists in requirements/ again from their sources (LOCK=--upgrade: newer versions)'
	@echo 'make pictures  make the pictures of the README again (needs Chromium)'
	@echo 'make sbom      write what is installed in .venv as CycloneDX JSON: dist/thumbtune.cdx.json'
	@echo 'make clean     remove .venv'

# Chatting starts as soon as its own part is there; the trainer's part installs behind it.
demo: $(CHAT)
	@nice -n 19 $(MAKE) --no-print-directory $(ALL) >.venv/training.log 2>&1 &
	@$(BIN)/thumbtune demo

install: $(ALL)

install-gpu: .venv/gpu.stamp $(if $(DEEPSPEED),.venv/deepspeed.stamp)

install install-gpu:
	@echo 'Everything is installed. Next: $(BIN)/thumbtune init'

install-ray: .venv/ray.stamp

test: $(ALL) .venv/dev.stamp
	$(BIN)/python -m pytest -m 'not soak' --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

test-ray: .venv/ray.stamp .venv/dev.stamp
	.venv/ray/bin/python -m pytest tests/ray

soak: $(ALL) .venv/dev.stamp
	$(BIN)/python -m pytest -m soak

check: $(ALL) .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.file_map --check
	$(BIN)/python requirements/lock.py --check

# Metadata only: no wheel is downloaded, CUDA's least of all.
lock: .venv/dev.stamp
	$(BIN)/python requirements/lock.py $(LOCK)

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pictures: $(ALL) .venv/dev.stamp
	$(PIP) -r requirements/browser.txt
	$(BIN)/python -m docs.pictures

# The tool stays out of the environment that it describes.
sbom: $(ALL) .venv/sbom.stamp
	mkdir -p dist
	$(BIN)/python -c 'import runpy, sys; sys.path.insert(0, ".venv/sbom"); \
		runpy.run_module("cyclonedx_py", run_name="__main__", alter_sys=True)' \
		environment --pyproject pyproject.toml --output-reproducible --output-file dist/thumbtune.cdx.json $(BIN)/python

clean:
	rm -rf .venv

# A bare Debian's python3 has no venv module; virtualenv does the same. --target: Debian's pip installs nowhere else.
.venv/bin/python:
	$(PYTHON) -m venv .venv || { \
		$(PYTHON) -m pip install --quiet --no-deps --target .virtualenv -r requirements/virtualenv.txt \
		&& PYTHONPATH=.virtualenv $(PYTHON) -m virtualenv --quiet .venv && rm -rf .virtualenv; }

.venv/build.stamp: requirements/build.txt | .venv/bin/python
	$(PIP) -r requirements/build.txt
	@touch $@

.venv/chat.stamp: .venv/build.stamp requirements/torch.txt requirements/cpu-chat.txt requirements/torchvision-cpu.pth pyproject.toml
	@echo 'Installing what chatting needs …'
	$(PIP) -r requirements/cpu-chat.txt
	$(BIN)/python requirements/install_torch.py $(TORCH_INDEX)
	cp requirements/torchvision-cpu.pth $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/
	$(PIP) --editable .
	@touch $@

# XTuner comes last: once its metadata is there, everything it needs is.
.venv/training.stamp: .venv/chat.stamp requirements/cpu-training.txt
	@echo 'Installing the trainer …'
	sed '/^xtuner==/,/[^\\]$$/d' requirements/cpu-training.txt >.venv/training-first.txt
	$(PIP) -r .venv/training-first.txt
	$(PIP) -r requirements/cpu-training.txt
	@touch $@

.venv/gpu.stamp: .venv/build.stamp requirements/gpu.txt pyproject.toml
	@echo 'Installing bot, lmdeploy, trainer and CUDA libraries (4 GB to download) …'
	rm -f .venv/chat.stamp .venv/training.stamp .venv/lib/python3*/site-packages/torchvision-cpu.pth
	sed '/^xtuner==/,/[^\\]$$/d' requirements/gpu.txt >.venv/gpu-first.txt
	$(PIP) -r .venv/gpu-first.txt
	$(PIP) --editable .
	$(PIP) -r requirements/gpu.txt
	@touch $@

# It has no wheel; what it compiles for a card is compiled when it is first used.
.venv/deepspeed.stamp: .venv/gpu.stamp requirements/deepspeed.txt
	DS_BUILD_OPS=0 $(PIP) -r requirements/deepspeed.txt
	@touch $@

# Laid over .venv, because Ray Serve needs newer versions of some packages than lmdeploy was measured with.
.venv/ray.stamp: $(ALL) requirements/ray.txt
	rm -rf .venv/ray
	$(BIN)/python -m venv --without-pip .venv/ray
	$(BIN)/python -m pip --python .venv/ray/bin/python install --quiet --disable-pip-version-check --no-deps \
		-r requirements/ray.txt
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		>$$(.venv/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/thumbtune.pth
	@touch $@

.venv/dev.stamp: $(CHAT) requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	@touch $@

.venv/sbom.stamp: .venv/build.stamp requirements/sbom.txt
	rm -rf .venv/sbom
	$(PIP) --target .venv/sbom -r requirements/sbom.txt
	@touch $@
