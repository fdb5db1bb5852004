# Every target sets up what it needs: a .venv with torch, then this package. All it asks for is Python with pip, and make.
# The set-up leaves a stamp as its last step, so a second run starts at once and an interrupted one is taken up again.

PYTHON ?= python3
# More options for pip, such as the index of torch's CPU builds: see CONTRIBUTING.md.
PIP_ARGS ?=
# More arguments for the command of demo, test, evidence and bench, such as ARGS="-k images".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
CONSTRAINTS := requirements/constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) $(PIP_ARGS)

.PHONY: help setup demo test check bundle evidence bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    paint the contact sheet of the toy world and print its path"
	@echo "make test    run the tests                    (ARGS=\"-k images\" for some of them)"
	@echo "make check   ruff, pyright, the layering of the package, the single-file pipeline"
	@echo "make bundle  write the single-file pipeline for the Hub to pipelines/"
	@echo "make evidence  measure every knob on the toy world, write docs/evidence.md  (ARGS=\"--only alpha\" for some)"
	@echo "make bench   run the benchmarks"
	@echo "make setup   create or refresh .venv and nothing else"
	@echo "make clean   remove build leftovers and caches, not .venv and no pictures"
	@echo
	@echo "PYTHON=python3.11 chooses the interpreter that .venv is made from, ARGS=... goes to the command,"
	@echo "PIP_ARGS=... goes to pip."

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

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layering.py
	@if [ -f tools/build_pipeline.py ]; then \
		$(BIN)/python tools/build_pipeline.py --check; \
	else \
		echo "The single-file pipeline is not built yet: there is no tools/build_pipeline.py to check."; \
	fi

bundle: $(STAMP)
	@if [ -f tools/build_pipeline.py ]; then \
		$(BIN)/python tools/build_pipeline.py; \
	else \
		echo "The single-file pipeline is not built yet: there is no tools/build_pipeline.py." >&2; exit 1; \
	fi

evidence: $(STAMP)
	@$(BIN)/zimage-vl evidence $(ARGS)

bench: $(STAMP)
	@found=0; for file in benchmarks/*.py; do \
		[ -f "$$file" ] || continue; \
		found=1; echo "$$file"; $(BIN)/python "$$file" $(ARGS) || exit 1; \
	done; [ $$found = 1 ] || echo "There are no benchmarks yet: none lies in benchmarks/."

clean:
	rm -rf build dist .pytest_cache .ruff_cache
	find src tests tools benchmarks examples pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
