#!/usr/bin/env bash
# usage: tools/dist_test.sh CONFIG CKPT GPUS [ARGS of test.py...]
#
# Evaluates a checkpoint with GPUS processes on this machine: one for each GPU, or on the CPU where
# there is none. From the environment: PORT (one node: a free one; several: 29500), PYTHON (the active
# environment's, else .venv's), OMP_NUM_THREADS (without GPUs: the cores divided by GPUS). With several
# nodes, run it on each with NNODES (1), NODE_RANK (0 on the first) and MASTER_ADDR (the first's address).

set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

(($# >= 3)) || usage
require_count GPUS "$3"
run_distributed test.py "$3" "$1" "$2" "${@:4}"
