# `make` lists what there is. Everything runs in .venv, and the classic stack's tests in .venv-classic;
# tools/dev/setup_env.py makes both.

# The Python that makes .venv: PYTHON=/path/to/python, or the first of these that can.
PYTHON ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
# A process for each core, up to four. Whole files, as their tests share trainings.
# One process that shows all output: PYTEST_ARGS='-n 0 -s'.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist loadfile
BIN := .venv/bin
CLASSIC := .venv-classic/bin
# What most of the versions matter to, and a real distillation of a segmentor and of a detector.
CLASSIC_QUICK := tests/test_compat.py tests/test_functional.py tests/test_losses.py \
	tests/test_losses_fgd.py tests/test_connectors.py tests/test_distillers tests/test_algorithms \
	tests/test_tools/test_train_tool.py tests/test_tools/test_detector.py

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
.PHONY: help demo demo-det test test-all test-classic test-classic-quick test-mmrazor lint format \
	env-demo env-test env-classic clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 20

demo: env-demo  ## train a teacher, a student alone, with LAD and with CAD; print the table (DEMO_ARGS=...)
	$(BIN)/python tools/demo.py $(DEMO_ARGS)

demo-det: env-test  ## the same with detectors; compiles the ops of mmcv once
	$(BIN)/python tools/demo.py --task det $(DEMO_ARGS)

test: env-test  ## run the tests (PYTEST_ARGS=...)
	$(BIN)/python $(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: env-test  ## run the tests, the long ones too
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

test-classic: env-classic  ## run the tests with OpenMMLab's own last releases (PYTEST_ARGS=...)
	$(CLASSIC)/python $(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-classic-quick: env-classic  ## of these the unit tests and two real distillations
	$(CLASSIC)/python $(PYTEST) -m 'not slow' $(CLASSIC_QUICK) $(PYTEST_ARGS)

test-mmrazor: env-test env-classic  ## run MMRazor's own tests of distillation on both stacks
	$(BIN)/python tools/dev/run_mmrazor_tests.py
	$(CLASSIC)/python tools/dev/run_mmrazor_tests.py

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

env-classic:  ## only set up .venv-classic; compiles the ops of its mmcv once
	$(call setup,test-classic)

clean:  ## remove .venv, .venv-classic and what runs and builds left, except data/ and work_dirs/
	rm -rf .venv .venv-classic build dist *.egg-info rawkd_mm/.mim .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
