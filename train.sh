#!/usr/bin/env bash
# Train the winner's ensemble: five B7, one for each of his seeds, one after the other on all GPUs, then choose epochs.
#   ./train.sh DATA NUM_GPUS [options of training.train]
# DATA is the folder that preprocess_data.sh worked on. Run it again after an interruption: it goes on where it was.
#   SEEDS="111 555"       fewer networks          CONFIG=configs/b5.yaml   another recipe
#   COUNT=7 AFTER_EPOCH=16   what training.select chooses     WEIGHTS_DIR=weights LOGDIR=logs   where things go
set -euo pipefail
if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    sed -n '2,6s/^# *//p' "$0"
    exit $(($# < 1 ? 2 : 0))
fi
data=$(realpath -- "$1")
gpus=$2
shift 2
cd -- "$(dirname -- "$0")"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
folders=(--output-dir "${WEIGHTS_DIR:-weights}" --logdir "${LOGDIR:-logs}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + gpus - 1) / gpus))}
for seed in ${SEEDS:-111 555 777 888 999}; do
    torchrun --standalone --nproc_per_node="$gpus" -m training.train \
        --config "${CONFIG:-configs/b7.yaml}" --data-dir "$data" --seed "$seed" --fold 0 "${folders[@]}" "$@"
done
python -m training.select "${folders[@]/--output-dir/--weights-dir}" --count "${COUNT:-7}" --after-epoch "${AFTER_EPOCH:-16}"
