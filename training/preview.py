"""Look at the images that a configuration trains on.

    python -m training.preview --config configs/unseen.yaml --data-dir DATA \\
        --set self_blended=0.5 --output preview.png

Reads  DATA/folds.csv and its crops, as `training.train`
Writes a PNG: the first images of an epoch, augmented as in training, with their labels.
       A real crop and its self-blend stand beside each other. A clip is a row of its
       frames.
"""

from pathlib import Path

import numpy as np

from preprocessing.crop_table import FORMATS, read_crop_table
from runtime.cli import make_parser, positive_int, run_main
from runtime.files import save_figure
from training.config import add_set_option, load_config
from training.dataset import (
    BalancedSampler,
    TrainingCrops,
    train_val_split,
    treat_unchanged,
)

COLUMNS = 8
SIDE = 1.4  # inches


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="has folds.csv")
    parser.add_argument("--format", choices=FORMATS, default="files")
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    parser.add_argument("--count", type=positive_int, default=32, help="of images")
    parser.add_argument("--fold", type=int, default=0, help="the validation fold")
    parser.add_argument("--seed", type=int, default=111)
    add_set_option(parser)
    options = parser.parse_args(argv)
    config = load_config(options.config, options.set)
    is_clip = bool(config.input.clip_frames)
    crops = read_crop_table(options.data_dir, options.format, config.input.kind)
    training, _ = train_val_split(
        crops, options.fold, config.validation_frame_step, config.self_blended
    )
    training, _ = treat_unchanged(training, config.unchanged)
    sampler = BalancedSampler(
        training["label"],
        options.count,
        options.seed,
        batch_size=options.count,
        shards=training["shard"] if training.in_shards else None,
        self_blended=config.self_blended,
    )
    # a blend has its partner's row and seed, and comes after it
    items = sorted(sampler, key=lambda item: (item[1], item[2:]))
    dataset = TrainingCrops(training, config)
    columns = 1 if is_clip else COLUMNS
    rows = -(-len(items) // columns)
    with save_figure(options.output, COLUMNS * SIDE, rows * (SIDE + 0.3)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, item in zip(grid, items):
            sample = dataset[item]
            kind = "blend " if item[2:] == (True,) else ""
            axes.imshow(np.hstack(sample["image"]) if is_clip else sample["image"])
            axes.set_title(f"{kind}{sample['label']:.2f}", fontsize=8)
    print(f"{options.output}: {len(items)} images; above each its label, 1 = FAKE")
    return 0


if __name__ == "__main__":
    run_main(main)
