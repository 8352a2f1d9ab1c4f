#!/usr/bin/env bash
# Raw DFDC videos to crops, landmarks, diffs and folds: the preprocessing steps in order.
#   ./preprocess_data.sh DATA [options of python -m preprocessing]
# Options are, for instance, --workers N, --device cpu, --executor ray, --format wds.
# DATA holds dfdc_train_part_0, dfdc_train_part_1, …
# After an interruption, run it again: existing output is skipped.
set -euo pipefail
usage() { sed -n '2,6s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 1 ]] || { usage >&2; exit 2; }
data=$(realpath -- "$1")
shift
cd -- "$(dirname -- "$0")"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
exec python -m preprocessing --root-dir "$data" "$@"
