#!/usr/bin/env bash
# Download the winner's seven published checkpoints (1.9 GB) into this folder.
#   weights/download.sh
# Needs curl. Run it again after an interruption: it goes on where it was. A file is kept, and one that is here already
# is accepted, only with the size and the SHA-256 sum of manifest.csv.
set -euo pipefail
[[ ${1:-} == -h || ${1:-} == --help ]] && sed -n '2,5s/^# *//p' "$0" && exit 0
[[ $# == 0 ]] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
cd -- "$(dirname -- "$0")"
release=${RELEASE_URL:-https://github.com/selimsef/dfdc_deepfake_challenge/releases/download/0.0.1}

fail() {
    echo "error: $*" >&2
    exit 1
}

size_of() {
    stat --format=%s -- "$1" 2> /dev/null || echo 0
}

has_sum() { # FILE SUM
    sha256sum --check --status <<< "$2  $1"
}

command -v curl > /dev/null || fail "curl is not installed"

while IFS=, read -r name _ _ bytes sum; do
    if [[ -f $name ]]; then
        has_sum "$name" "$sum" || fail "$name: is not the published file (its SHA-256 sum differs); delete it and run this again"
        echo "$name: is here"
        continue
    fi
    if (($(size_of "$name.part") > bytes)); then
        rm -- "$name.part"
    fi
    if (($(size_of "$name.part") != bytes)); then
        echo "$name: downloading"
        curl --fail --location --retry 3 --continue-at - --output "$name.part" "$release/$name" ||
            fail "$release/$name: the download broke off; look at the line above, then run this again to go on"
    fi
    have=$(size_of "$name.part")
    ((have <= bytes)) || fail "$name: has $have bytes for $bytes; delete $name.part and run this again"
    ((have == bytes)) || fail "$name: $have of $bytes bytes came; run this again to go on"
    has_sum "$name.part" "$sum" || fail "$name: its SHA-256 sum is not that of manifest.csv; delete $name.part and run this again"
    mv -- "$name.part" "$name"
done < <(tail -n +2 manifest.csv)
echo "all checkpoints are here, each with its published sum"
