#!/usr/bin/env bash
# Train the winner's ensemble, five B7 with his five seeds, one after the other on all
# GPUs, then select the epochs.
#   ./train.sh DATA NUM_GPUS [options of training.train]
# DATA is the folder of preprocess_data.sh. After an interruption, run it again to resume.
# Environment variables:
#   SEEDS="111 555"                    seeds; one network each
#   CONFIG=configs/b5.yaml             configuration; default configs/b7.yaml
#   WEIGHTS_DIR=weights LOGDIR=logs    output folders
#   COUNT=7 AFTER_EPOCH=16             for training.select; COUNT=0 skips it
# On several nodes that share DATA and both output folders, with NUM_GPUS each: the same
# command on each node, with its own NODE_RANK, from 0 (Slurm: training/train.slurm)
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node [MASTER_PORT=29500] \
#       ./train.sh DATA NUM_GPUS
set -euo pipefail
usage() { sed -n '2,15s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
data=$(realpath -- "$1")
gpus=$2
if [[ ! $gpus =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "error: NUM_GPUS is '$gpus'; give the number of GPUs, at least 1 (without a GPU 1)" >&2
    exit 2
fi
nodes=${NNODES:-1}
rank=${NODE_RANK:-${SLURM_NODEID:-0}}
shift 2
cd -- "$(dirname -- "$0")"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
folders=(--output-dir "${WEIGHTS_DIR:-weights}" --logdir "${LOGDIR:-logs}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + gpus - 1) / gpus))}
port=${MASTER_PORT:-29500}
for seed in ${SEEDS:-111 555 777 888 999}; do
    launch=(python)
    if ((nodes > 1)); then
        : "${MASTER_ADDR:?NNODES is $nodes: set MASTER_ADDR to the node whose NODE_RANK is 0}"
        launch=(torchrun --nnodes="$nodes" --nproc_per_node="$gpus" --rdzv_backend=c10d --rdzv_id="seed_$seed"
            --rdzv_endpoint="$MASTER_ADDR:$((port++))" --rdzv_conf="is_host=$((rank == 0))")
    elif ((gpus > 1)); then
        # the machine's own name may not resolve
        launch=(torchrun --standalone --local_addr=localhost --nproc_per_node="$gpus")
    fi
    "${launch[@]}" -m training.train \
        --config "${CONFIG:-configs/b7.yaml}" --data-dir "$data" --seed "$seed" --fold 0 "${folders[@]}" "$@"
done
if [[ $rank == 0 && ${COUNT:-7} != 0 ]]; then
    python -m training.select "${folders[@]/--output-dir/--weights-dir}" --count "${COUNT:-7}" \
        --after-epoch "${AFTER_EPOCH:-16}"
fi
