#!/usr/bin/env bash
# usage: tools/dist_train.sh CONFIG GPUS [ARGS of train.py...]
#
# Trains with GPUS processes on this machine: one for each GPU, or on the CPU where there is none.
# From the environment: PORT (one node: a free one; several: 29500), PYTHON (the active environment's,
# else .venv's), OMP_NUM_THREADS (without GPUs: the cores divided by GPUS). With several nodes, run it
# on each with NNODES (1), NODE_RANK (0 on the first) and MASTER_ADDR (the first node's address).

set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

(($# >= 2)) || usage
require_count GPUS "$2"
run_distributed train.py "$2" "$1" "${@:3}"
