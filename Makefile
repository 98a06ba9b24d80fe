# `make` lists what there is. Everything runs in .venv, and the classic stack's tests in .venv-classic;
# tools/dev/setup_env.py makes both.

# The Python that makes .venv: PYTHON=/path/to/python, or the first of these that can.
PYTHON ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
VERSIONS_ARGS ?=
BENCH_ARGS ?=
ZOO_ARGS ?=
# A process for each core, up to four. Whole files, as their tests share trainings.
# One process that shows all output: PYTEST_ARGS='-n 0 -s'.
PYTEST := -n logical --maxprocesses 4 --dist loadfile
BIN := .venv/bin
CLASSIC := .venv-classic/bin
# What most of the versions matter to, and a real distillation of a segmentor and of a detector.
CLASSIC_QUICK := tests/test_compat.py tests/test_functional.py tests/test_losses.py \
	tests/test_losses_fgd.py tests/test_connectors.py tests/test_distillers tests/test_features \
	tests/test_teachers tests/test_algorithms \
	tests/situations tests/test_tools/test_train_tool.py tests/test_tools/test_detector.py

# Asks each candidate to run: a pyenv shim, say, is there for versions that are not.
define setup
@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.10); do \
	if $$python -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		2>/dev/null; then exec $$python tools/dev/setup_env.py $(1); fi; \
done; \
echo 'No Python 3.10 to 3.13 with venv and ensurepip found (tried: $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.10)).' >&2; \
echo 'Install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or: make $@ PYTHON=/path/to/python3.11' >&2; \
exit 1
endef

.DEFAULT_GOAL := help
.PHONY: help demo demo-det test test-seg test-all test-classic test-classic-quick test-versions \
	test-mmrazor bench-gpu check-zoo lint format env-demo env-seg env-test env-classic wheel-classic clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 20

demo: env-demo  ## train a teacher, a student alone, with LAD and with CAD; print the table (DEMO_ARGS=...)
	$(BIN)/python tools/demo.py $(DEMO_ARGS)

demo-det: env-test  ## the same with detectors; compiles the ops of mmcv once
	$(BIN)/python tools/demo.py --task det $(DEMO_ARGS)

test: env-seg  ## run the tests (PYTEST_ARGS=...); compiles the ops of mmcv meanwhile, once
	$(BIN)/python tools/dev/run_tests.py $(PYTEST) $(PYTEST_ARGS)

test-seg: env-seg  ## run the tests that need no compiled ops (all but detection)
	$(BIN)/python -m pytest $(PYTEST) -m 'not slow and not det' $(PYTEST_ARGS)

test-all: env-test  ## run the tests, the long ones too
	$(BIN)/python -m pytest $(PYTEST) $(PYTEST_ARGS)

test-classic: env-classic  ## run the tests with OpenMMLab's own last releases (PYTEST_ARGS=...)
	$(CLASSIC)/python -m pytest $(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-classic-quick: env-classic  ## of these the unit tests and two real distillations
	$(CLASSIC)/python -m pytest $(PYTEST) -m 'not slow' $(CLASSIC_QUICK) $(PYTEST_ARGS)

test-versions: env-test  ## run the quick tests with Python 3.10 to 3.13 and three PyTorches: hours
	$(BIN)/python tools/dev/test_versions.py $(VERSIONS_ARGS)

test-mmrazor: env-test env-classic  ## run MMRazor's own tests of distillation on both stacks
	$(BIN)/python tools/dev/run_mmrazor_tests.py
	$(CLASSIC)/python tools/dev/run_mmrazor_tests.py

# With PYTHON, in an environment that is there already: nothing is installed.
bench-gpu: $(if $(PYTHON),,env-test)  ## measure all that needs a GPU, in 25 minutes (PYTHON=..., BENCH_ARGS=...)
	PYTHON=$(or $(PYTHON),$(BIN)/python) tools/dev/bench_gpu.sh $(BENCH_ARGS)

check-zoo: env-test  ## evaluate the models whose weights come along, compare with their page (ZOO_ARGS=...)
	$(BIN)/python tools/dev/check_zoo.py $(ZOO_ARGS)

lint:  ## check style and formatting
	$(call setup,lint)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format:  ## fix what `make lint` reports, as far as ruff can
	$(call setup,lint)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env-demo:  ## only set up .venv for the demo
	$(call setup,demo)

env-seg:  ## only set up .venv for the tests that need no compiled ops
	$(call setup,test-seg)

env-test:  ## only set up .venv for the tests; compiles the ops of mmcv once
	$(call setup,test)

env-classic:  ## only set up .venv-classic; compiles the ops of its mmcv once
	$(call setup,test-classic)

wheel-classic:  ## only compile the ops of the classic stack's mmcv, if no wheel of them is kept
	$(call setup,wheel-classic)

clean:  ## remove .venv, .venv-* and all outputs of runs and builds, except data/ and work_dirs/
	rm -rf .venv .venv-* build dist *.egg-info rawkd_mm/.mim .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
