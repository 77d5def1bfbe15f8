# Every target sets up what it needs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test test-slow test-ui lint test-gpu test-kill test-ptx test-sim test-device matrix matrix-table wheel docs pictures bench bench-gpu gpu-day gpu-wheels test-soak

help:
	@echo "make demo       train a small network and track it with Aim"
	@echo "make test       the whole test suite, without a GPU"
	@echo "make test-slow  what takes minutes: kills of runs in W&B and MLflow, the largest graphs, more variants"
	@echo "make test-ui    look at the pages of Aim, TensorBoard and MLflow in Chromium"
	@echo "make lint       ruff and pyright"
	@echo "make test-gpu   what only a GPU can show"
	@echo "make test-kill  the crash harness with KILLS=200 kills"
	@echo "make test-ptx   the compiled kernels executed on the CPU, CASES=5000 random cases and every variant"
	@echo "make test-sim   trainings on a GPU made of software, in SCHEDULES=100 orders of its streams"
	@echo "make test-device  the tests of devices without kernels of ours, on DEVICE=mps"
	@echo "make test-soak  SEEDS=20 jobs whose ranks leave, stall, raise, are killed and resumed at random"
	@echo "make matrix-table  each way of logging at each moment: what holds, as a table"
	@echo "make matrix     the compile, accumulator and kernel tests on several versions of torch, which takes gigabytes"
	@echo "make wheel      the wheel, tested in an empty environment"
	@echo "make docs       the site, into site/"
	@echo "make pictures   docs/plot.png and docs/step.png, drawn anew"
	@echo "make bench      the benchmarks of the CPU"
	@echo "make bench-gpu  the benchmarks of a GPU"
	@echo "make gpu-day    all that a GPU has to show, part by part, resumable; PYTHON has torch, triton, numpy, pytest"
	@echo "make gpu-wheels what the tracker needs there beside them, into .gpu-day, for GPU_PYTHON=3.12"

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/demo
	$(RUN) -m d9d_tracker demo

test: export PYTHONDONTWRITEBYTECODE = # a hundred processes import the same files
test: $(VENV)/dev
	@# The tests of a file stay together.
	$(RUN) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder \
		-m "not gpu and not slow" --ignore tests/resume --ignore tests/ui
	@# Apart from the others: Aim leaves file watchers behind, of which a system has few.
	$(RUN) -m pytest -q -n auto --dist worksteal tests/resume

test-slow: $(VENV)/dev
	$(RUN) -m pytest -q -m slow

SEEDS ?= 20
test-soak: $(VENV)/dev
	SEEDS=$(SEEDS) $(RUN) -m pytest -q -s -m slow tests/ranks/test_soak.py

test-ui: $(VENV)/dev
	$(RUN) -m pytest -q tests/ui

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

test-gpu: $(VENV)/dev
	$(RUN) -m pytest -q tests/gpu

KILLS ?= 200
test-kill: $(VENV)/dev
	KILLS=$(KILLS) $(RUN) -m pytest tests/resume/test_kill.py -k no_trace -s

matrix-table: $(VENV)/dev
	$(RUN) -c "from tests.test_matrix import main; main()"

matrix:
	.ci/matrix

wheel:
	.ci/wheel

$(VENV)/docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs
	$(VENV)/bin/zensical build --strict --config-file mkdocs.yml

pictures: $(VENV)/dev
	rm -rf .pictures
	$(RUN) -m d9d_tracker demo --provider jsonl --steps 2000 --out .pictures
	$(RUN) -m d9d_tracker plot .pictures --series loss --series 'gradient *' --series '*.0.weight' --out docs/plot.png
	$(RUN) examples/slow_step.py .pictures/step
	$(RUN) -m d9d_tracker plot .pictures/step --series time/data --series time/step --series samples/s --out docs/step.png
	rm -rf .pictures

CASES ?= 5000
test-ptx: $(VENV)/dev
	CASES=$(CASES) $(RUN) -m pytest -q tests/ptx

$(VENV)/bench: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

bench: $(VENV)/bench
	$(RUN) -m bench

SECONDS ?= inf
OUT ?= bench/results/gpu-day
gpu-day: # needs torch, triton, numpy and pytest; with PYTHON of an environment that has them
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu_day --out $(OUT) --seconds $(SECONDS)

GPU_PYTHON ?= 3.12
gpu-wheels: # what the tracker needs beside torch, for a machine that reaches no index: carry .gpu-day there
	rm -rf .gpu-day
	$(PYTHON) -m pip install --quiet --no-compile --target .gpu-day --only-binary :all: --python-version $(GPU_PYTHON) \
		--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 pydantic rich typing_extensions

DEVICE ?= privateuseone
test-device: $(VENV)/dev
	DEVICE=$(DEVICE) PYTHONPATH=.:kernels:tests $(RUN) -m pytest -q -p devices.plugin \
		tests/devices/on_device tests/accumulator tests/bank tests/calls tests/pipeline tests/watch tests/windows

SCHEDULES ?= 100
test-sim: $(VENV)/dev
	SCHEDULES=$(SCHEDULES) $(RUN) -m pytest -q tests/sim

bench-gpu: $(VENV)/bench
	$(RUN) -m bench --gpu
	$(RUN) -m bench.histogram_gpu
