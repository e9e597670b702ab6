# The two commands are `make book` and `make test`; each does its own set-up.
# Everything is written to this folder: .venv (packages), results (your runs), _build (the site).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help steps book site pdf test test-gpu-image studies record redraw lab lint lock clean
.NOTPARALLEL:
# Paths are relative to this file, so `make -C path/to/here book` works from anywhere.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
SCALE ?= laptop
STUDY ?= gender_bias
# The suite first: the others use its models.
STUDIES := suite $(filter-out suite,$(basename $(notdir $(wildcard notebooks/*.ipynb))))
# Extra parameters of `make record`: more seeds or sizes than the defaults, which suit a first look.
RECORD_ablations := -p sizes=25k,85k -p seeds=5
RECORD_deduplication := -p seeds=6
RECORD_errata := -p seeds=5
RECORD_gender_bias := -p sizes=25k,85k,310k,600k -p seeds=8 -p crossed_seeds=4 -p flat_seeds=8
RECORD_memorization := -p seeds=8
RECORD_phases := -p layers=4 -p seeds=5
RECORD_repetition := -p seeds=3
RECORD_seeds := -p seeds=10 -p apart_seeds=10 -p largest_seeds=3
RECORD_suite := -p flat_seeds=10
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

help: ## list the targets
	@echo "make TARGET [SCALE=smoke|laptop] [PYTHON=python3.11] [TORCH_INDEX=URL of a wheel index for torch]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	  while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

# named in the message of a stopped command (pythia_core.util.stopping)
export PYTHIA_COMMAND = $(strip make $(MAKECMDGOALS) $(MAKEOVERRIDES))
# $(call stoppable,COMMAND) runs a command that would print a traceback on Ctrl-C or ignore SIGTERM
# in its own process group, which Ctrl-C does not reach, and ends it from here
define stoppable
set -m; $(1) < /dev/null & job=$$!; set +m; \
stop() { kill -- -$$job 2> /dev/null || true; wait $$job 2> /dev/null || true; \
echo "stopped; what is finished is kept: run \`$$PYTHIA_COMMAND\` again to continue" >&2; exit $$1; }; \
trap 'stop 130' INT; trap 'stop 143' TERM; wait $$job
endef

steps:
	@echo "== To do: set up $(VENV), fetch the text, train and measure ($(STUDY), scale $(SCALE)), build the site;"
	@echo "   finished work is not repeated; Ctrl-C stops it, and the next call resumes"

book: steps $(READY) ## set up, run the study from raw text at SCALE, build the site
	@exec $(BIN)/python -m pythia_core study $(STUDY) --scale $(SCALE) < /dev/null
	@echo "== Building the site"
	@$(call stoppable,$(BIN)/jupyter-book build book/ --quiet)
	@echo "== Done. Open in a browser:"
	@echo "$(CURDIR)/_build/html/index.html"

site: $(READY) ## set up, build the site from the runs here; a warning is an error
	@$(call stoppable,$(BIN)/jupyter-book build book/ -W --keep-going -n --quiet)

pdf: site ## the site, and all of it as one PDF (needs Chromium or Chrome)
	@exec $(BIN)/python -m pythia_core pdf < /dev/null

test: $(READY) ## set up, run every test, the notebooks included (at scale smoke)
	@echo "== Running the tests"
	@OMP_NUM_THREADS=1 exec env -u PYTHIA_COMMAND $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) < /dev/null

# Older versions of torch and Triton than in .venv. Without a GPU, the kernels are interpreted, and compiled for sm_90.
# The interpreter of Triton 3.6 fails with numpy 2.4.
OLD_TORCH := .venv-gpu
OLD_PACKAGES := torch==2.11.0 triton==3.6.0 transformers==5.17.0 'numpy<2.4' pandas scipy tqdm filelock \
  pytest pytest-timeout pytest-xdist hypothesis

test-gpu-image: $(OLD_TORCH)/.ready ## test kernels, training and benchmarks with torch 2.11 and Triton 3.6 (installs about 6 GB)
	@PYTHONPATH=$(CURDIR):$(CURDIR)/book OMP_NUM_THREADS=1 exec env -u PYTHIA_COMMAND $(OLD_TORCH)/bin/python -m pytest \
	  -n $(WORKERS) --dist loadfile tests/core/kernels tests/core/training tests/book/bench $(PYTEST_ARGS) < /dev/null

$(OLD_TORCH)/.ready:
	@echo "== Setting up $(OLD_TORCH) (about 6 GB, minutes)"
	@$(PYTHON) -m venv --clear $(OLD_TORCH)
	@$(call stoppable,$(OLD_TORCH)/bin/python -m pip install -qq --disable-pip-version-check $(OLD_PACKAGES))
	@touch $@

studies: $(READY) ## train the suite at SCALE and run its studies (finished work is not repeated)
	@exec $(BIN)/python -m pythia_core study --scale $(SCALE) < /dev/null

record: $(STUDIES:%=record-%) ## run every study, with the seeds of the record, and copy the results into book/recorded

record-%: $(READY)
	@$(BIN)/python -m pythia_core study $* --scale $(SCALE) $(RECORD_$*) < /dev/null
	@exec $(BIN)/python -m pythia_core record $* --scale $(SCALE) < /dev/null

redraw: $(READY) ## recompute verdicts, figures and prose from what all runs have measured; no training
	@exec $(BIN)/python -m pythia_core redraw < /dev/null

lab: $(READY) ## open the notebooks in JupyterLab (installs it on first use)
	@$(BIN)/python -c 'import jupyterlab' 2> /dev/null || { \
	  echo "== Installing JupyterLab into $(VENV)"; \
	  $(PIP) -c <($(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ') 'jupyterlab>=4.2'; }
	@$(if $(PYTHIA_RESULTS),PYTHIA_RESULTS="$$(realpath -m -- "$$PYTHIA_RESULTS")") $(BIN)/jupyter-lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

lint: $(READY) ## check style and formatting with ruff, and the library's types with mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: $(READY) ## write requirements.lock from what is installed in .venv
	@echo "== Locking the versions installed in $(VENV)"
	@$(PYTHON) -m venv $(VENV)/lock-tools
	@$(VENV)/lock-tools/bin/python -m pip install -qq --disable-pip-version-check uv
	@# soupsieve alone stays free: its newest release needs Python 3.11.5, this project 3.11.0.
	@{ sed '/^[^#]/,$$d' requirements.lock; \
	  { grep -vE '^(#|torch|-e|$$)' requirements.txt; \
	    printf '%s\n' filelock fsspec jinja2 networkx 'hatchling>=1.27' 'setuptools>=77.0.3' sympy typing-extensions; } | \
	  $(VENV)/lock-tools/bin/uv pip compile - --quiet --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate \
	    -c <($(BIN)/python -m pip freeze --all --exclude-editable | \
	         grep -viE '^(torch|triton|nvidia-|cuda-|pip|soupsieve)| @ '); \
	} > $(VENV)/requirements.lock
	@mv $(VENV)/requirements.lock requirements.lock
	@touch $(READY)

clean: ## remove the built site and caches; keeps your runs and the environments
	rm -rf _build book/studies .pytest_cache .ruff_cache .hypothesis *.egg-info
	find pythia_core tests book -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Kept: results (your runs), $(VENV) and $(OLD_TORCH) (packages). Delete them by hand if you mean to."

$(READY): requirements.lock requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "This project needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -1)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "== Setting up $(VENV) with $$($(PYTHON) --version) (once; about 3 GB, some minutes)"
	@rm -f $(READY)
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@echo "   packages, hash-checked (requirements.lock)"
	@$(call stoppable,$(PIP) --no-deps --require-hashes -r requirements.lock)
	@echo "   torch (requirements.txt)"
	@$(call stoppable,$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep -E '^torch==' requirements.txt)")
	@echo "   this project"
	@$(call stoppable,$(PIP) --no-deps --no-build-isolation -e .)
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $(READY)
