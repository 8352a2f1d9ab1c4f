"""Selection of checkpoints by their validation losses."""

import csv

import pytest

from runtime.cli import UserError
from training import select


def write_run(tmp_path, name, losses):
    """Write the metrics.csv and the checkpoints of a run.

    Args:
        losses: (fake, real) validation losses of each epoch, from 0.
    """
    folder = tmp_path / "logs" / name
    folder.mkdir(parents=True)
    (tmp_path / "weights").mkdir(exist_ok=True)
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "val_fake_loss", "val_real_loss"])
        writer.writerows([number, *pair] for number, pair in enumerate(losses))
    for number in range(len(losses)):
        (tmp_path / "weights" / f"{name}_{number}").write_text(f"{name} {number}")


def run(tmp_path, *options):
    folders = [f"--logdir={tmp_path / 'logs'}", f"--weights-dir={tmp_path / 'weights'}"]
    return select.main([*folders, *options])


def test_the_rule_by_hand(tmp_path, capsys):
    """(1.4 fake + real) / 2 after epoch 1: a has 0.36, 0.34, 0.60; b has 0.48, 0.50.

    The 0.12 of epoch 0 is too early.
    """
    first = [(0.1, 0.1), (0.9, 0.9)]
    write_run(tmp_path, "a", [*first, (0.3, 0.3), (0.2, 0.4), (0.5, 0.5)])
    write_run(tmp_path, "b", [*first, (0.4, 0.4), (0.5, 0.3), (float("nan"), 0.0)])
    assert run(tmp_path, "--count", "3", "--after-epoch", "1") == 0
    # the best of each run first (a 3, b 2), then the next best of all (a 2)
    chosen = {
        path.name: path.read_text() for path in (tmp_path / "weights").glob("final_*")
    }
    assert chosen == {"final_a_3": "a 3", "final_b_2": "b 2", "final_a_2": "a 2"}
    assert capsys.readouterr().out.splitlines()[:3] == [
        "final_a_3  loss 0.3400",
        "final_a_2  loss 0.3600",
        "final_b_2  loss 0.4800",
    ]
    assert (tmp_path / "logs" / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_two_networks_are_the_best_of_each_run():
    epochs = [
        select.Epoch("a", 20, 0.1),
        select.Epoch("a", 21, 0.2),
        select.Epoch("b", 20, 0.9),
        select.Epoch("c", 16, 0.0),
    ]
    selected = select.select_epochs(epochs, 2, 16)
    assert [epoch.checkpoint for epoch in selected] == ["a_20", "b_20"]
    assert select.weighted_loss(1.0, 2.0) == pytest.approx(1.7)


def test_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no RUN/metrics.csv"):
        run(tmp_path)
    write_run(tmp_path, "a", [(0.1, 0.1)])
    with pytest.raises(UserError, match="no run has an epoch after 16.*--after-epoch"):
        run(tmp_path)
    (tmp_path / "weights" / "a_0").unlink()
    with pytest.raises(UserError, match="a_0: the chosen checkpoint is not there"):
        run(tmp_path, "--after-epoch", "-1")
    (tmp_path / "logs" / "a" / "metrics.csv").write_text("epoch\n0\n")
    with pytest.raises(UserError, match="metrics.csv: cannot be read"):
        run(tmp_path)
