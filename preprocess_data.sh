#!/usr/bin/env bash
# Raw DFDC videos to crops, landmarks, diffs and folds: the preprocessing steps, one after the other.
#   ./preprocess_data.sh DATA [--workers N] [--device cpu] [--executor ray] [--format wds] …   (python -m preprocessing --help)
# DATA holds dfdc_train_part_0, dfdc_train_part_1, … Run it again after an interruption: what is there is skipped.
set -euo pipefail
usage() { sed -n '2,4s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 1 ]] || { usage >&2; exit 2; }
data=$(realpath -- "$1")
shift
cd -- "$(dirname -- "$0")"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
exec python -m preprocessing --root-dir "$data" "$@"
