# Two commands set everything up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

CALIBRATION := worlds

.PHONY: demo test audit science faults cluster calibration docs check environment schema pretrain clean

demo: environment
	snakemake --cores all
	resurface show
	@echo "The report: $(CURDIR)/results/report.html"

# Two at a time: those that run the workflow in one process, the others in the second.
test: environment
	pytest --numprocesses 2 --no-loadscope-reorder

audit: environment
	pytest -m audit

science: environment
	pytest -m science

faults: environment
	pytest -m faults

cluster: environment
	pytest -m cluster

# Hours; it goes on where it was stopped.
calibration: environment
	python -m calibration $(CALIBRATION) --worlds 20
	python -m calibration.count $(CALIBRATION) docs

# The documentation as a site of its own, in site/.
docs: environment
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

check: environment
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy

environment: $(VENV)/.installed

# torch first and by itself: what depends on it must not choose another build.
$(VENV)/.installed: envs/requirements.lock envs/no-dependencies.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "resurface needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' envs/requirements.lock)"
	$(BIN)/python -m pip install --quiet --requirement envs/requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --requirement envs/no-dependencies.lock --editable .
	touch $@

schema: environment
	python -m resurface.config

pretrain: environment
	snakemake --cores all pretrain_testbed

clean:
	find results -mindepth 1 -not -name .gitkeep -delete
	rm -rf .snakemake
