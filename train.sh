#!/usr/bin/env bash
# Train the winner's ensemble: five B7, one for each of his seeds, one after the other on all GPUs, then choose epochs.
#   ./train.sh DATA NUM_GPUS [options of training.train]
# DATA is the folder that preprocess_data.sh worked on. Run it again after an interruption: it goes on where it was.
#   SEEDS="111 555"       fewer networks          CONFIG=configs/b5.yaml   another recipe
#   COUNT=7 AFTER_EPOCH=16   what training.select chooses     WEIGHTS_DIR=weights LOGDIR=logs   where things go
set -euo pipefail
usage() { sed -n '2,6s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 2 ]] || { usage >&2; exit 2; }
data=$(realpath -- "$1")
gpus=$2
shift 2
cd -- "$(dirname -- "$0")"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
folders=(--output-dir "${WEIGHTS_DIR:-weights}" --logdir "${LOGDIR:-logs}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + gpus - 1) / gpus))}
launch=(python)
if ((gpus > 1)); then
    launch=(torchrun --standalone --nproc_per_node="$gpus")
fi
for seed in ${SEEDS:-111 555 777 888 999}; do
    "${launch[@]}" -m training.train \
        --config "${CONFIG:-configs/b7.yaml}" --data-dir "$data" --seed "$seed" --fold 0 "${folders[@]}" "$@"
done
python -m training.select "${folders[@]/--output-dir/--weights-dir}" --count "${COUNT:-7}" --after-epoch "${AFTER_EPOCH:-16}"
