#!/usr/bin/env bash
# usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [ARGS of train.py...]
#
# Trains as a Slurm job. From the environment: GPUS (8) in all, GPUS_PER_NODE (8, or GPUS if that is
# less), CPUS_PER_TASK (5), SRUN_ARGS (more arguments of srun), PORT (a random one), PYTHON (the
# active environment's, else .venv's).

set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

(($# >= 3)) || usage
partition=$1 job_name=$2 config=$3
shift 3
if (($#)) && [[ $1 != -* ]]; then
    set -- --work-dir "$@"
fi
run_slurm "$partition" "$job_name" train.py "$config" "$@"
