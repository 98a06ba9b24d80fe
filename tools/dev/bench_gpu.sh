#!/usr/bin/env bash
# usage: tools/dev/bench_gpu.sh [--minutes 25] [--small] [ARGS of benchmarks/gpu/run.py...]
#
# Measures all that needs a GPU, unattended; docs/performance.md says what. --help lists the arguments.
# From the environment: PYTHON (the active environment's, else .venv's). Nothing is installed.

set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../_common.sh"

exec "$(find_python)" "$TOOLS/../benchmarks/gpu/run.py" "$@"
