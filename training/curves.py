"""Plots of a training run: logs/{run}/curves.png, redrawn after each epoch.

Reads  the rows of metrics.csv
Writes a PNG: fake and real loss in training and validation, learning rate, images per
       second
"""

from collections.abc import Sequence
from pathlib import Path

from runtime.files import save_figure

LOSSES = {
    "train_fake_loss": ("tab:red", "-", "fakes, training"),
    "train_real_loss": ("tab:green", "-", "reals, training"),
    "val_fake_loss": ("tab:red", "--", "fakes, validation"),
    "val_real_loss": ("tab:green", "--", "reals, validation"),
}


def draw_curves(rows: Sequence[dict], path: Path) -> None:
    """Plot all epochs.

    Args:
        rows: of metrics.csv; values are numbers, or strings as read from the file.
            Missing values are skipped.
        path: of the PNG.
    """
    from matplotlib.ticker import MaxNLocator

    with save_figure(path, 13, 4) as figure:
        losses, rate, speed = figure.subplots(1, 3)
        for key, (colour, style, label) in LOSSES.items():
            losses.plot(
                *_points(rows, key),
                color=colour,
                linestyle=style,
                marker=".",
                label=label,
            )
        losses.legend(fontsize="small")
        rate.plot(*_points(rows, "learning_rate"), marker=".")
        speed.plot(*_points(rows, "images_per_second"), marker=".")
        for axes, title in (
            (losses, "loss, nats"),
            (rate, "learning rate at the end of the epoch"),
            (speed, "images per second"),
        ):
            axes.set(title=title, xlabel="epoch", ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)


def _points(rows: Sequence[dict], key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one column."""
    points = [
        (int(row["epoch"]), float(row[key]))
        for row in rows
        if row.get(key) not in (None, "")
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]
