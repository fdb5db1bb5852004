# Every target sets up what it needs: a .venv with torch, then this package. All it asks for is Python with pip, and make.
# The set-up leaves a stamp as its last step, so a second run starts at once and an interrupted one is taken up again.

PYTHON ?= python3
# More options for pip, such as the index of torch's CPU builds: see CONTRIBUTING.md.
PIP_ARGS ?=
# Where to publish, as owner/name; with DRY_RUN=1 nothing is sent.
REPO ?=
DRY_RUN ?=
# More arguments for the command of demo, test, evidence, bench and publish, such as ARGS="-k images".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
CONSTRAINTS := requirements/constraints.txt
PIP_OPTIONS := --disable-pip-version-check -c $(CONSTRAINTS) $(PIP_ARGS)
PIP_INSTALL := $(BIN)/python -m pip install $(PIP_OPTIONS)

# The extra of that name in setup.cfg.
QUANTISED := "torchao>=0.14" "bitsandbytes>=0.48"

# A process a core with a thread each: the models of the tests are too small for more threads.
WORKERS ?= auto
TESTING := OMP_NUM_THREADS=1

# The oldest pair of diffusers and transformers, in an environment of its own.
LOWEST := requirements/lowest.txt
LOWEST_VENV := .venv-lowest
LOWEST_STAMP := $(LOWEST_VENV)/.setup-stamp
LOWEST_INSTALL := $(LOWEST_VENV)/bin/python -m pip install $(PIP_OPTIONS) -c $(LOWEST)

.PHONY: help setup demo test test-lowest check bundle evidence dist try-wheel publish bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    paint the contact sheet of the toy world and print its path"
	@echo "make test    run the tests                    (ARGS=\"-k images\" for some of them)"
	@echo "make test-lowest  run them with the oldest diffusers and transformers, in .venv-lowest"
	@echo "make check   ruff, pyright, the layering of the package, the single-file pipeline"
	@echo "make bundle  write the single-file pipeline for the Hub to pipelines/"
	@echo "make evidence  measure every knob on the toy world, write docs/evidence.md  (ARGS=\"--only alpha\" for some)"
	@echo "make bench   measure speed, write docs/performance.md   (ARGS=\"--only a f\" for some parts)"
	@echo "make dist    build the wheel and the sdist into dist/"
	@echo "make try-wheel   install that wheel into an empty environment and run the demo there"
	@echo "make publish REPO=owner/name   publish to that repository of the Hub; DRY_RUN=1 shows what would go"
	@echo "make setup   create or refresh .venv and nothing else"
	@echo "make clean   remove build leftovers and caches, no environment and no pictures"
	@echo
	@echo "PYTHON=python3.11 chooses the interpreter that .venv is made from, ARGS=... goes to the command,"
	@echo "PIP_ARGS=... goes to pip, WORKERS=1 runs the tests in fewer processes."

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "zimage-vl needs Python 3.10 or newer, but $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.11" % sys.version_info[:2])'
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/zimage-vl demo $(ARGS)

test: $(STAMP) $(VENV)/quantised
	@$(TESTING) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-lowest: $(LOWEST_STAMP) $(LOWEST_VENV)/quantised
	@$(TESTING) $(LOWEST_VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

$(LOWEST_STAMP): setup.cfg pyproject.toml $(CONSTRAINTS) $(LOWEST)
	@rm -f $@
	@$(LOWEST_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(LOWEST_INSTALL) torch
	$(LOWEST_INSTALL) -e ".[test]"
	@touch $@

# What quantises lies apart, on the path of its own tests alone (tests/test_quantised_environment.py): diffusers imports it
# wherever it is installed, which takes seconds and says much.
$(VENV)/quantised: $(STAMP)
	@rm -rf $@ $@-new
	$(PIP_INSTALL) --quiet --no-deps --target $@-new $(QUANTISED)
	@mv $@-new $@ && touch $@

$(LOWEST_VENV)/quantised: $(LOWEST_STAMP)
	@rm -rf $@ $@-new
	$(LOWEST_INSTALL) --quiet --no-deps --target $@-new $(QUANTISED)
	@mv $@-new $@ && touch $@

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layering.py
	$(BIN)/python tools/build_pipeline.py --check

bundle: $(STAMP)
	@$(BIN)/python tools/build_pipeline.py

evidence: $(STAMP)
	@$(BIN)/zimage-vl evidence $(ARGS)

# Without isolation: the environment has what building needs, and no network is asked for it. The egg-info of an earlier
# build goes first, since setuptools would add to the sdist whatever that one listed.
dist: $(STAMP)
	@rm -rf dist src/*.egg-info
	@$(BIN)/python -m build --no-isolation --outdir dist .

# An environment with nothing in it but what pip brings for the wheel; it and the picture stay, in a new folder of TMPDIR.
try-wheel: dist
	@folder=$$(mktemp -d) && echo "Trying the wheel in $$folder" && \
	$(PYTHON) -m venv $$folder/venv && \
	pip="$$folder/venv/bin/python -m pip install --disable-pip-version-check --quiet -c $(CURDIR)/$(CONSTRAINTS) $(PIP_ARGS)" && \
	$$pip torch && $$pip dist/*.whl && cd $$folder && \
	$$folder/venv/bin/zimage-vl env && $$folder/venv/bin/zimage-vl demo --output $$folder/demo.png

publish: $(STAMP)
	@$(BIN)/python tools/publish.py "$(REPO)" $(if $(filter 1 yes true,$(DRY_RUN)),,--upload) $(ARGS)

# benchmarks/ holds more: gpu.py wants a GPU, the others print the tables that the README shows.
bench: $(STAMP)
	@$(BIN)/python benchmarks/bench.py $(ARGS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache
	find src tests tools benchmarks examples pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
