# `make demo` and `make test` are all a fresh machine needs; both make .venv here and install into it.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
# tiny networks lose to thread overhead; a training may ask for more
export PYTHONUNBUFFERED := 1
# tests in processes of their own: one that crashes is named, and the others go on
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

.PRECIOUS: .venv-%/.installed
.PHONY: help install demo test test-all lint format sync tables docs bench experiments clean

help:
	@echo "demo        main job on phantoms: teacher, student alone, distilled student, report (about 10 minutes)"
	@echo "test        the test suite          test-all  also real servers and heavy packages"
	@echo "lint        ruff and mypy           format    apply ruff's formatting"
	@echo "sync        repair the blocks that bundles share, and generated files"
	@echo "tables      regenerate README and model-card tables from docs/results"
	@echo "experiments train and score the released models (hours on 2 cores; resumable)"
	@echo "bench       speed benchmarks        docs      build docs/_build/html and run its examples"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(PY) benchmarks/demo.py --output_dir demo_output

test: install
	$(PY) -m pytest -m "not integration and not gpu" --durations 15 $(SIDE_BY_SIDE)

# consumers in environments of their own, with the exact versions that ran together
CONSUMERS := label deploy nvflare mlflow nnunet
venv-%: .venv-%/.installed ;
.venv-%/.installed: docs/constraints/%.txt setup.cfg
	python3 -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-deps --requirement $<
	$(if $(filter deploy,$*),,.venv-$*/bin/python -m pip install --quiet --no-deps --editable .)
	@touch $@

test-all: install $(CONSUMERS:%=.venv-%/.installed)
	$(PY) -m pytest --durations 25
	.venv-nnunet/bin/python -m pytest tests/teachers/test_nnunet.py tests/teachers/test_any_teacher_page.py

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

sync: install
	$(PY) -m monai_kd sync

tables: install
	$(PY) -m monai_kd tables

experiments: install
	$(PY) benchmarks/experiments.py

bench: install
	$(PY) benchmarks/speed.py
	$(PY) benchmarks/losses.py
	$(if $(MONAI_KD_DATA),$(PY) benchmarks/steps.py,@echo "benchmarks/steps.py needs real data: set MONAI_KD_DATA")
	$(if $(MONAI_KD_DATA),$(PY) benchmarks/pulls.py,@echo "benchmarks/pulls.py needs real data: set MONAI_KD_DATA")
	OMP_WAIT_POLICY=PASSIVE $(PY) benchmarks/depth_shift.py
	$(PY) benchmarks/depth_memory.py
	$(PY) benchmarks/mtcm_step.py
	$(PY) benchmarks/gkd_step.py
	$(PY) benchmarks/mtms_step.py
	$(PY) benchmarks/shared_prelu.py

docs: install
	$(PY) -m sphinx -W --keep-going -E -b html -d docs/_build/doctrees docs docs/_build/html
	$(PY) -m sphinx -W --keep-going -b doctest -d docs/_build/doctrees docs docs/_build/doctest

clean:
	rm -rf demo_output docs/_build .pytest_cache .ruff_cache .mypy_cache
