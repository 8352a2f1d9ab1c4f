#!/usr/bin/env bash
# Run the whole pipeline on synthetic data: data set, preprocessing, training of two
# networks, prediction, score.
#   make demo
# All output goes to demo/out. Existing output is kept; delete the folder to start over.
set -euo pipefail
if [[ $# != 0 ]]; then
    sed -n '2,5s/^# *//p' "$0"
    [[ $1 == -h || $1 == --help ]] && exit 0 || exit 2
fi
cd -- "$(dirname -- "$0")/.."
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
out=demo/out

python -m demo.make_dataset --output-dir "$out/data"
./preprocess_data.sh "$out/data"
SEEDS="111 555" CONFIG=configs/demo.yaml COUNT=2 AFTER_EPOCH=0 \
    WEIGHTS_DIR="$out/weights" LOGDIR="$out/logs" ./train.sh "$out/data" 1

weights=("$out"/weights/final_*)
videos=$out/data/test_videos
submission=$out/submission.csv
if [[ -f $submission && -f $out/report/index.html &&
    -z $(find "${weights[@]}" "$videos"/*.mp4 -newer "$submission") ]]; then
    echo "$submission is up to date"
else
    WEIGHTS_DIR="$out/weights" ./predict_submission.sh "$videos" "$submission" \
        --models "${weights[@]##*/}" --report "$PWD/$out/report" --grad-cam 2
fi
echo
echo "$PWD/$submission"
head -n 6 "$submission"
python -m evaluation.score --submission "$submission" --labels "$videos/labels.csv" \
    --plot "$out/scores.png"
echo "open in a browser: $PWD/$out/report/index.html"
