"""Pick the epochs for the ensemble, by the winner's rule, and copy their checkpoints.

    python -m training.select --logdir logs --weights-dir weights --count 7

Reads  logs/*/metrics.csv and weights/{run}_{epoch}
Writes weights/final_{run}_{epoch}; logs/selection.png, the validation curves with the
       selected epochs marked
Method: the lowest (1.4 x fake loss + real loss) / 2 on the validation fold, among
       epochs after 16, when the loss has settled. The best epoch of each run comes
       first, then the next best of all runs until `--count` are selected.
"""

import csv
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import UserError, make_parser, positive_int, run_main
from runtime.files import atomic_file, save_figure

FAKE_WEIGHT = 1.4  # the winner's setting: a missed fake costs more
AFTER_EPOCH = 16
ENSEMBLE_SIZE = 7  # networks in the winner's ensemble


@dataclass(frozen=True)
class Epoch:
    """One epoch of one run, and its weighted validation loss in nats."""

    run: str
    number: int
    loss: float

    @property
    def checkpoint(self) -> str:
        return f"{self.run}_{self.number}"


def weighted_loss(
    fake_loss: float, real_loss: float, fake_weight: float = FAKE_WEIGHT
) -> float:
    """(1.4 x fake loss + real loss) / 2."""
    return (fake_weight * fake_loss + real_loss) / 2


def read_epochs(logdir: Path) -> list[Epoch]:
    """All epochs of all runs in `logdir`.

    Raises:
        UserError: there is no metrics.csv, or one cannot be read.
    """
    paths = sorted(logdir.glob("*/metrics.csv"))
    if not paths:
        raise UserError(
            f"{logdir}: holds no RUN/metrics.csv; train first, or give the --logdir of "
            "the training"
        )
    epochs = []
    for path in paths:
        try:
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    loss = weighted_loss(
                        float(row["val_fake_loss"]), float(row["val_real_loss"])
                    )
                    epochs.append(Epoch(path.parent.name, int(row["epoch"]), loss))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read as training wrote it ({error!r})"
            ) from error
    return epochs


def select_epochs(epochs: list[Epoch], count: int, after_epoch: int) -> list[Epoch]:
    """The best epoch of each run, then the next best of all runs, at most `count`.

    They are returned in order of their loss, the best first.
    """
    ranked = sorted(
        (e for e in epochs if e.number > after_epoch and math.isfinite(e.loss)),
        key=lambda e: e.loss,
    )
    best_of_runs = [
        epoch
        for rank, epoch in enumerate(ranked)
        if epoch.run not in {e.run for e in ranked[:rank]}
    ]
    others = [epoch for epoch in ranked if epoch not in best_of_runs]
    return sorted((best_of_runs + others)[:count], key=lambda epoch: epoch.loss)


def draw_selection(epochs: list[Epoch], selected: list[Epoch], path: Path) -> None:
    """Plot the weighted loss of each run by epoch, with the selected epochs marked."""
    with save_figure(path, 9, 5) as figure:
        axes = figure.subplots()
        for run in sorted({epoch.run for epoch in epochs}):
            curve = sorted((e.number, e.loss) for e in epochs if e.run == run)
            axes.plot(*zip(*curve), label=run)
        axes.scatter(
            [epoch.number for epoch in selected],
            [epoch.loss for epoch in selected],
            color="red",
            zorder=3,
            label="selected",
        )
        for epoch in selected:
            axes.annotate(
                f"{epoch.number}",
                (epoch.number, epoch.loss),
                textcoords="offset points",
                xytext=(4, 6),
            )
        axes.set(
            xlabel="epoch",
            ylabel=f"({FAKE_WEIGHT} x fake loss + real loss) / 2, nats",
            title="Validation",
        )
        axes.legend(fontsize="small")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--logdir", type=Path, default=Path("logs"), help="the --logdir of the training"
    )
    parser.add_argument(
        "--weights-dir",
        type=Path,
        default=Path("weights"),
        help="the --output-dir of the training",
    )
    parser.add_argument(
        "--count",
        type=positive_int,
        default=ENSEMBLE_SIZE,
        help="networks to select",
    )
    parser.add_argument(
        "--after-epoch",
        type=int,
        default=AFTER_EPOCH,
        help="consider only later epochs",
    )
    options = parser.parse_args(argv)
    epochs = read_epochs(options.logdir)
    selected = select_epochs(epochs, options.count, options.after_epoch)
    if not selected:
        raise UserError(
            f"{options.logdir}: no run has an epoch after {options.after_epoch}; see "
            "--after-epoch"
        )
    for epoch in selected:
        source = options.weights_dir / epoch.checkpoint
        if not source.is_file():
            raise UserError(
                f"{source}: the chosen checkpoint is not there; give the --output-dir "
                "of the training as --weights-dir"
            )
        name = f"final_{epoch.checkpoint}"
        with atomic_file(options.weights_dir / name) as temporary:
            # keeps the modification time, so that files made from it stay newer
            shutil.copy2(source, temporary)
        print(f"{name}  loss {epoch.loss:.4f}")
    plot = options.logdir / "selection.png"
    draw_selection(epochs, selected, plot)
    print(f"copied to {options.weights_dir}; curves in {plot}")
    return 0


if __name__ == "__main__":
    run_main(main)
