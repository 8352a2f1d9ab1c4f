#!/usr/bin/env bash
# The whole pipeline on made data: data, preprocessing, training of two networks, prediction, score.
#   make demo
# All it makes is below demo/out; delete that folder to begin anew. What exists is kept.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
[[ -d .venv ]] && export PATH="$PWD/.venv/bin:$PATH"
out=demo/out

python -m demo.make_dataset --output-dir "$out/data"
./preprocess_data.sh "$out/data"
SEEDS="111 555" CONFIG=configs/demo.yaml COUNT=2 AFTER_EPOCH=0 WEIGHTS_DIR="$out/weights" LOGDIR="$out/logs" \
    ./train.sh "$out/data" 1
weights=("$out"/weights/final_*)
if [[ -f $out/submission.csv && -f $out/report/index.html && -z $(find "${weights[@]}" "$out"/data/test_videos/*.mp4 -newer "$out/submission.csv") ]]; then
    echo "$out/submission.csv is there"
else
    WEIGHTS_DIR="$out/weights" ./predict_submission.sh "$out/data/test_videos" "$out/submission.csv" --models "${weights[@]##*/}" \
        --report "$PWD/$out/report" --grad-cam 2
fi
echo
echo "$PWD/$out/submission.csv"
head -n 6 "$out/submission.csv"
python -m evaluation.score --submission "$out/submission.csv" --labels "$out/data/test_videos/labels.csv" --plot "$out/scores.png"
echo "open in a browser: $PWD/$out/report/index.html"
