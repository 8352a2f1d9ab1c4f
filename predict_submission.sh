#!/usr/bin/env bash
# Predict a folder of videos with the winner's seven published networks.
#   ./predict_submission.sh TEST_DIR submission.csv [options of inference.predict]
# An option is, for instance, --models A B. Get the networks first: weights/download.sh.
# WEIGHTS_DIR=FOLDER takes them from another folder.
set -euo pipefail
usage() { sed -n '2,5s/^# *//p' "$0"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage && exit 0
[[ $# -ge 2 && $1 != -* && $2 != -* ]] || { usage >&2; exit 2; }
videos=$(realpath -- "$1")
output=$(realpath -m -- "$2")
shift 2
here=$(dirname -- "$0")
source "$here/runtime/user_paths.sh"
use_user_paths "--list --faces-csv --report --ensemble" "$@"
[[ -n ${WEIGHTS_DIR:-} ]] && WEIGHTS_DIR=$(realpath -m -- "$WEIGHTS_DIR")
cd -- "$here"
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
exec python -m inference.predict --test-dir "$videos" --output "$output" --weights-dir "${WEIGHTS_DIR:-weights}" "${options[@]}"
