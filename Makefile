# Every target sets up what it needs: a .venv with torch, then this package, under the lock. All it asks for is Python
# with pip, and make. The set-up leaves a stamp as its last step, so a second run starts at once and an interrupted one
# is taken up again.

PYTHON ?= python3
# More options for pip, such as the index of torch's CPU builds: see CONTRIBUTING.md.
PIP_ARGS ?=
# Where to publish, as owner/name, and where the source lies, an https address; with DRY_RUN=1 nothing is sent.
REPO ?=
SOURCE ?=
DRY_RUN ?=
# More arguments for the command of the target, such as ARGS="-k images".
ARGS ?=
# How many times the cases of `make test` are tried by `make fuzz`.
FUZZ ?= 10
# A process a core with a thread each: the models of the tests are too small for more threads.
WORKERS ?= auto

BIN := .venv/bin
STAMP := .venv/.setup-stamp
# The environments, and the constraints that pip gets in each: the newest has none, and of the lock torch alone.
CURRENT := requirements/current.txt
OLDEST := requirements/oldest.txt
STAMPS := .venv/.setup-stamp .venv-oldest/.setup-stamp .venv-newest/.setup-stamp
.venv_LOCK := -c $(CURRENT)
.venv-oldest_LOCK := -c $(OLDEST)
# In a recipe of which $* is the environment.
INSTALL = $*/bin/python -m pip install --disable-pip-version-check $($*_LOCK) $(PIP_ARGS)
# $(call suite,environment)
suite = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

.PHONY: help setup demo test test-oldest test-newest test-app fuzz check lock bundle evidence bench dist try-wheel publish clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    paint the contact sheet of the toy world and print its path"
	@echo "make test    run the tests                    (ARGS=\"-k images\" for some of them)"
	@echo "make test-oldest  run them with the oldest versions of all that the package needs, in .venv-oldest"
	@echo "make test-newest  run them with the newest, unlocked, in .venv-newest; says how it went, never fails"
	@echo "make test-app     run those of the page, with gradio and, where there is one, Chromium"
	@echo "make fuzz    try hostile input and faults for minutes, other ones each time   (FUZZ=100 for longer)"
	@echo "make check   ruff, pyright, the layering of the package, the files for the Hub"
	@echo "make lock    write requirements/*.txt anew    (ARGS=--upgrade for newer versions)"
	@echo "make bundle  write the files for the Hub, pipeline and block, to pipelines/"
	@echo "make evidence  measure every knob on the toy world   (ARGS=\"--only alpha\" for some)"
	@echo "make bench   measure speed, write docs/performance.md   (ARGS=\"--only a f\" for some parts)"
	@echo "make dist    build the wheel and the sdist into dist/"
	@echo "make try-wheel   install that wheel into an empty environment and run the demo there"
	@echo "make publish REPO=owner/name SOURCE=https://...   publish to the Hub; DRY_RUN=1 shows what would go"
	@echo "make setup   create or refresh .venv and nothing else"
	@echo "make clean   remove build leftovers and caches, no environment and no pictures"
	@echo
	@echo "PYTHON=python3.11 chooses the interpreter that .venv is made from, ARGS=... goes to the command,"
	@echo "PIP_ARGS=... goes to pip, WORKERS=1 runs the tests in fewer processes."

setup: $(STAMP)

.venv/.setup-stamp: $(CURRENT)
.venv-oldest/.setup-stamp: $(OLDEST)
# Without isolation, so that the setuptools that builds is the lock's too.
$(STAMPS): %/.setup-stamp: setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "zimage-vl needs Python 3.10 or newer, but $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.11" % sys.version_info[:2])'
	@rm -f $@
	@$*/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $*
	$(INSTALL) $(shell grep ^torch== $(CURRENT)) setuptools
	$(INSTALL) --no-build-isolation -e ".[dev]"
	@touch $@

# What quantises lies apart, on the path of its own tests alone (tests/test_quantised_environment.py): diffusers imports
# it wherever it is installed, which takes seconds and says much.
%/quantised: %/.setup-stamp
	@rm -rf $@ $@-new
	$(INSTALL) --quiet --no-deps --target $@-new torchao bitsandbytes
	@mv $@-new $@ && touch $@

# The page's gradio is no part of the set-up: it brings 200 MB, and all other tests do without.
%/app: %/.setup-stamp
	$(INSTALL) --quiet --no-build-isolation -e ".[app]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/zimage-vl demo $(ARGS)

test: .venv/quantised
	@$(call suite,.venv)

test-oldest: .venv-oldest/quantised
	@$(call suite,.venv-oldest)

test-app: .venv/app
	@$(call suite,.venv) tests/cli/test_page.py tests/test_space.py

test-newest:
	@rm -rf .venv-newest
	@$(MAKE) --no-print-directory .venv-newest/quantised && $(call suite,.venv-newest) \
		&& echo "With the newest versions: passed." || echo "With the newest versions: FAILED, which blocks nothing."

fuzz: $(STAMP)
	@FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/reliability $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layering.py
	$(BIN)/python tools/build_pipeline.py --check

# Not after a set-up: what is to be locked may be what the present lock does not allow.
lock: | $(BIN)/uv
	@$(BIN)/python tools/lock.py $(ARGS)

$(BIN)/uv:
	@$(MAKE) --no-print-directory setup

bundle: $(STAMP)
	@$(BIN)/python tools/build_pipeline.py

evidence: $(STAMP)
	@$(BIN)/python -m benchmarks.evidence $(ARGS)

# benchmarks/ holds more: gpu.py wants a GPU, the others print the tables that the README shows.
bench: $(STAMP)
	@$(BIN)/python benchmarks/bench.py $(ARGS)

# The egg-info of an earlier build goes first, since setuptools would add to the sdist whatever that one listed.
dist: $(STAMP)
	@rm -rf dist src/*.egg-info
	@$(BIN)/python -m build --no-isolation --outdir dist .

# An environment with nothing in it but what pip brings for the wheel; it and the picture stay, in a new folder of TMPDIR.
try-wheel: dist
	@folder=$$(mktemp -d) && echo "Trying the wheel in $$folder" && \
	$(PYTHON) -m venv $$folder/venv && \
	pip="$$folder/venv/bin/python -m pip install --disable-pip-version-check --quiet -c $(CURDIR)/$(CURRENT) $(PIP_ARGS)" && \
	$$pip torch && $$pip dist/*.whl && cd $$folder && \
	$$folder/venv/bin/zimage-vl env && $$folder/venv/bin/zimage-vl demo --output $$folder/demo.png

publish: $(STAMP)
	@$(BIN)/python tools/publish.py "$(REPO)" --source "$(SOURCE)" $(if $(filter 1 yes true,$(DRY_RUN)),,--upload) $(ARGS)

clean:
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache
	find src tests tools benchmarks examples pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
