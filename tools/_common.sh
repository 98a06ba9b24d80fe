# What the launch scripts have in common; to be sourced.

TOOLS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

# The usage of a script is its comment, up to the first other line.
usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

require_count() { # NAME VALUE
    if ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
        echo "$(basename -- "$0"): $1 must be a positive number, got '$2'" >&2
        usage
    fi
}

# PYTHON if set, else the active environment's, else that of `make`.
find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
    elif [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $TOOLS/../.venv/bin/python ]]; then
        echo "$TOOLS/../.venv/bin/python"
    elif command -v python >/dev/null; then
        echo python
    else
        echo python3
    fi
}

gpu_visible() {
    [[ ! ${CUDA_VISIBLE_DEVICES-0} =~ ^(-1)?$ ]] && nvidia-smi -L 2>/dev/null | grep -q GPU
}

# torchrun TOOL PROCESSES ARGS...: PROCESSES of TOOL here, and as many on each of the other nodes.
run_distributed() {
    local tool=$1 processes=$2 nodes=${NNODES:-1} rank=${NODE_RANK:-0}
    shift 2
    require_count NNODES "$nodes"
    local rendezvous=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
    if ((nodes == 1)) && [[ -z ${PORT:-} ]]; then
        # a free port, so that two runs on one machine do not meet
        rendezvous=(--standalone)
    elif ((nodes > 1)) && [[ -z ${MASTER_ADDR:-} ]]; then
        echo "$(basename -- "$0"): with NNODES=$nodes, MASTER_ADDR must be the first node's address" >&2
        exit 2
    fi
    # two nodes of one number would wait for each other until torchrun gives up
    if ((nodes > 1)) && ! [[ ${NODE_RANK:-} =~ ^(0|[1-9][0-9]*)$ && ${NODE_RANK:-} -lt $nodes ]]; then
        echo "$(basename -- "$0"): with NNODES=$nodes, NODE_RANK must be the number of this node," \
            "0 to $((nodes - 1)), got '${NODE_RANK:-}'" >&2
        exit 2
    fi
    # Without GPUs the processes share the cores; torchrun would give one to each, whatever there is.
    if [[ -z ${OMP_NUM_THREADS:-} ]] && ! gpu_visible; then
        local cores
        cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
        command -v nproc >/dev/null && cores=$(nproc)
        export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
    fi
    exec "$(find_python)" -m torch.distributed.run --nnodes "$nodes" --node_rank "$rank" \
        --nproc_per_node "$processes" "${rendezvous[@]}" "$TOOLS/$tool" "$@" --launcher pytorch
}

# srun TOOL ARGS... as GPUS processes, GPUS_PER_NODE on each node.
run_slurm() { # PARTITION JOB_NAME TOOL ARGS...
    local partition=$1 job_name=$2 tool=$3 gpus=${GPUS:-8}
    shift 3
    require_count GPUS "$gpus"
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    require_count GPUS_PER_NODE "$per_node"
    # MMEngine reads it; a fixed one would make two jobs on one node meet
    export MASTER_PORT=${PORT:-${MASTER_PORT:-$((20000 + RANDOM % 20000))}}
    # shellcheck disable=SC2086  # SRUN_ARGS are several words
    exec srun -p "$partition" --job-name="$job_name" --gres=gpu:"$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} "$(find_python)" -u "$TOOLS/$tool" "$@" --launcher slurm
}
