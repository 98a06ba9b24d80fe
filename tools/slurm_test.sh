#!/usr/bin/env bash
# usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CKPT [ARGS of test.py...]
#
# Evaluates a checkpoint as a Slurm job. From the environment: GPUS (8) in all, GPUS_PER_NODE (8, or
# GPUS if that is less), CPUS_PER_TASK (5), SRUN_ARGS (more arguments of srun), PORT (a random one),
# PYTHON (the active environment's, else .venv's).

set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

(($# >= 4)) || usage
run_slurm "$1" "$2" test.py "${@:3}"
