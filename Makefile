# `make` lists what there is. Everything runs in .venv, which tools/dev/setup_env.py makes.

# The Python that makes .venv: PYTHON=/path/to/python, or the first of these that can.
PYTHON ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
BIN := .venv/bin

# Asks each candidate to run: a pyenv shim, say, is there for versions that are not.
define setup
@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.10); do \
	if $$python -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
		2>/dev/null; then exec $$python tools/dev/setup_env.py $(1); fi; \
done; \
echo 'No Python 3.10 to 3.12 with venv and ensurepip found (tried: $(or $(PYTHON),python3.11 python3 python3.12 python3.10)).' >&2; \
echo 'Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or: make $@ PYTHON=/path/to/python3.11' >&2; \
exit 1
endef

.DEFAULT_GOAL := help
.PHONY: help demo demo-det test test-all lint format env-demo env-test clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: env-demo  ## train a teacher, a student alone, with LAD and with CAD; print the table (DEMO_ARGS=...)
	$(BIN)/python tools/demo.py $(DEMO_ARGS)

demo-det: env-test  ## the same with detectors; compiles the ops of mmcv once
	$(BIN)/python tools/demo.py --task det $(DEMO_ARGS)

test: env-test  ## run the tests (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-all: env-test  ## run the tests, the long ones too
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint:  ## check style and formatting
	$(call setup,lint)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:  ## mend what `make lint` complains about, where ruff can
	$(call setup,lint)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env-demo:  ## only set up .venv for the demo
	$(call setup,demo)

env-test:  ## only set up .venv for the tests; compiles the ops of mmcv once
	$(call setup,test)

clean:  ## remove .venv and what runs and builds left, except data/ and work_dirs/
	rm -rf .venv build dist *.egg-info rawkd_mm/.mim .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
