#!/usr/bin/env bash
# Raw videos to crops, landmarks, diffs and folds: the preprocessing steps in order.
#   ./preprocess_data.sh DATA [options of python -m preprocessing]
# Options are, for instance, --output-dir OUT, --workers N, --device cpu, --format wds.
# DATA holds dfdc_train_part_0, dfdc_train_part_1, …, or another data set (docs/data.md).
# After an interruption, run it again: existing output is skipped.
set -euo pipefail
usage() { sed -n '2,6s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 1 && $1 != -* ]] || { usage >&2; exit 2; }
data=$(realpath -- "$1")
shift
here=$(dirname -- "$0")
source "$here/runtime/user_paths.sh"
use_user_paths "--output-dir" "$@"
cd -- "$here"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
exec python -m preprocessing --root-dir "$data" "${options[@]}"
