#!/usr/bin/env bash
# Download the winner's seven published checkpoints (1.9 GB) into this folder.
#   weights/download.sh
# Needs curl. Run it again after an interruption: it goes on where it was. A file is kept only if it has the size that
# the server announces. The first complete download writes SHA256SUMS; later runs check every file against it.
set -euo pipefail
cd -- "$(dirname -- "$0")"
release=${RELEASE_URL:-https://github.com/selimsef/dfdc_deepfake_challenge/releases/download/0.0.1}

fail() {
    echo "error: $*" >&2
    exit 1
}

command -v curl > /dev/null || fail "curl is not installed"
names=$(tail -n +2 manifest.csv | cut -d, -f1)

for name in $names; do
    if [[ -f $name ]]; then
        echo "$name: is here"
        continue
    fi
    echo "$name: downloading"
    size=$(curl --fail --silent --show-error --location --head "$release/$name" |
        tr -d '\r' | awk 'tolower($1) == "content-length:" { size = $2 } END { print size }') ||
        fail "$release/$name cannot be reached; look at the line above, then run this again"
    [[ $size =~ ^[0-9]+$ && $size -gt 0 ]] || fail "$release/$name: the server does not tell its size"
    have=$(stat --format=%s "$name.part" 2> /dev/null || echo 0)
    if ((have > size)); then
        rm -- "$name.part"
    fi
    if ((have != size)); then
        curl --fail --location --retry 3 --continue-at - --output "$name.part" "$release/$name" ||
            fail "$name: the download broke off; run this again to go on"
    fi
    have=$(stat --format=%s "$name.part")
    ((have == size)) || fail "$name: has $have bytes, the server announced $size; delete $name.part and run this again"
    mv -- "$name.part" "$name"
done

if [[ -f SHA256SUMS ]]; then
    sha256sum --check --quiet SHA256SUMS || fail "a file differs from its first download; delete it and run this again"
    for name in $names; do
        grep --quiet -- " $name\$" SHA256SUMS || fail "SHA256SUMS lacks $name; delete SHA256SUMS and run this again"
    done
    echo "all checkpoints agree with SHA256SUMS"
else
    # shellcheck disable=SC2086
    sha256sum -- $names > SHA256SUMS.part
    mv -- SHA256SUMS.part SHA256SUMS
    echo "all checkpoints are here; their sums are now in SHA256SUMS"
fi
