"""Study: how well a recipe recognises a technique that it has never seen.

    python -m evaluation.leave_one_out --data-dir DATA --config configs/unseen.yaml \\
        --recipes plain self_blend --seeds 1 2 3 --output-dir OUT

For each technique a network is trained without it, and scored on it and on the others.
A recipe is a named list of settings in --recipe-file. `none` among the --techniques
trains with all of them, as a control. A name such as plain+blend_only is an
ensemble: the mean of the scores of its recipes' networks, without further training.

Reads  DATA/folds.csv with the column technique, and the crops
Writes OUT/results.csv: recipe,left_out,tested_on,seed,auc,low,high: AUC over videos (mean
       of a video's crops) of one technique against all real videos, with its 95 %
       interval over videos; OUT/table.txt and OUT/table.png, means over seeds;
       OUT/runs/{recipe}_{left_out}_{seed}/: logs, faces.csv
       OUT/settings.json
Resumes: what is in results.csv is not trained again, an interrupted run goes on; other
       settings are refused.
Method: training as in `training.train`, the last epoch, no choice by the score; the
       split test where there is one, else val.
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from evaluation.metrics import metrics, score_arrays
from evaluation.tables import frame_scores, read_faces
from preprocessing.crop_table import FOLDER_COLUMN, CropTable, read_crop_table
from preprocessing.dataset import NO_FOLD
from preprocessing.layout import crops_dir, folds_path
from runtime.cli import (
    UserError,
    describe_changes,
    make_parser,
    non_negative_int,
    one_line,
    run_main,
)
from runtime.device import add_device_option, pick_device
from runtime.files import (
    atomic_file,
    open_csv,
    read_csv_rows,
    save_figure,
    write_csv,
)
from runtime.process import die_with_parent
from training.checkpoint import run_name
from training.config import Config, add_set_option, load_config
from training.distributed import World
from training.trainer import Trainer

HEADER = ["recipe", "left_out", "tested_on", "seed", "auc", "low", "high"]
NONE = "none"
PLUS = "+"
# columns of the table that are no techniques
RESERVED = ("recipe", "seeds", "unseen", "seen", NONE)
FOLD = 0  # the crops of the split val, in all data sets (preprocessing.dataset)
RECIPES = Path(__file__).parent / "recipes.yaml"
TIMED_STEPS = 3


class Run(NamedTuple):
    """One training."""

    recipe: str
    left_out: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}_{self.left_out}_{self.seed}"


class Result(NamedTuple):
    """One row of results.csv."""

    recipe: str
    left_out: str
    tested_on: str
    seed: int
    auc: float
    low: float
    high: float

    @property
    def run(self) -> Run:
        return Run(self.recipe, self.left_out, self.seed)


def read_recipes(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The settings KEY=VALUE of each recipe.

    Raises:
        UserError: the file is no table of recipes, or has none of this name.
    """
    try:
        recipes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(recipes, dict) or not all(
        isinstance(name, str) and "/" not in name and isinstance(each, dict)
        for name, each in recipes.items()
    ):
        raise UserError(
            f"{path}: must hold recipes, each `name: {{key: value}}`, the name a word"
        )
    names = list(dict.fromkeys(names))
    members = {member for name in names for member in name.split(PLUS)}
    if missing := sorted(members - recipes.keys()):
        raise UserError(
            f"{path}: has no recipe {missing[0]}; it has {', '.join(recipes)}"
        )
    # an ensemble comes after its members
    singles = [name for name in names if PLUS not in name]
    ensembles = [name for name in names if PLUS in name]
    if missing := sorted(
        {m for name in ensembles for m in name.split(PLUS)} - {*singles}
    ):
        raise UserError(
            f"--recipes: an ensemble has {missing[0]}; give that recipe too"
        )
    return {
        name: [f"{key}={value}" for key, value in recipes.get(name, {}).items()]
        for name in (*singles, *ensembles)
    }


def read_results(path: Path) -> list[Result]:
    """The rows of results.csv; an empty list where there is no file yet."""
    if not path.exists():
        return []
    try:
        return [
            Result(
                row["recipe"],
                row["left_out"],
                row["tested_on"],
                int(row["seed"]),
                float(row["auc"]),
                float(row["low"]),
                float(row["high"]),
            )
            for row in read_csv_rows(path, HEADER)
        ]
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove that row") from error


def check_settings(options: argparse.Namespace, recipes: dict[str, list[str]]) -> None:
    """Save what the results depend on; results of other settings are not mixed in.

    Raises:
        UserError: the folder has results of other settings.
    """
    path = options.output_dir / "settings.json"
    config = load_config(options.config, options.set).model_dump(mode="json")
    study = {
        "data_dir": str(options.data_dir.resolve()),
        "shuffle_labels": options.shuffle_labels,
        "config": config,
        "recipes": recipes,
    }
    saved: dict = {}
    # nothing is lost while no network is trained
    begun = [options.output_dir / name for name in ("results.csv", "runs")]
    if path.exists() and any(each.exists() for each in begun):
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: is damaged; delete it") from error
    if changed := describe_changes(saved, study):
        raise UserError(
            f"{options.output_dir}: was begun with another {', '.join(changed)}; use the "
            "same settings, or give another --output-dir"
        )
    study["recipes"] = {**saved.get("recipes", {}), **recipes}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(study, indent=1) + "\n")


def shuffle_labels(source: Path, target: Path, seed: int = 0) -> None:
    """Write a data folder whose videos have each other's labels and techniques.

    A control: nothing can be learned there. Videos of one split are shuffled among
    themselves; crops and landmarks are those of `source`.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in ("landmarks", "landmarks68", "diffs"):
        if (source / name).exists() and not (target / name).exists():
            (target / name).symlink_to((source / name).resolve())
    with open_csv(folds_path(source)) as file:
        rows = list(csv.DictReader(file))
    by_split: dict[str, list[str]] = defaultdict(list)
    marks = {}
    for row in rows:
        if row["video"] not in marks:
            by_split[row["split"]].append(row["video"])
            marks[row["video"]] = row["label"], row["technique"]
    given: dict[str, tuple[str, str]] = {}
    for split, videos in sorted(by_split.items()):
        shuffled = sorted(videos)
        random.Random(f"{seed} {split}").shuffle(shuffled)
        given |= {video: marks[other] for video, other in zip(sorted(videos), shuffled)}
    for row in rows:
        folder = row.get(FOLDER_COLUMN) or crops_dir(Path(), row["video"])
        row[FOLDER_COLUMN] = str((source / folder).resolve())
        row["label"], row["technique"] = given[row["video"]]
    write_csv(folds_path(target), list(rows[0]), ([*row.values()] for row in rows))


def images_per_second(config: Config, device: str) -> float:
    """How fast training steps are here, without reading and augmenting crops."""
    trainer = Trainer.build(
        config, World(0, 1, torch.device(pick_device(device))), "none"
    )
    size = config.input.size
    images = torch.zeros((config.batch_size, size, size, 3), dtype=torch.uint8)
    labels = torch.arange(config.batch_size) % 2
    batch = {"image": images, "label": labels.float()}
    trainer.model.train()
    trainer.step([batch], 0)
    start = time.perf_counter()
    for number in range(TIMED_STEPS):
        trainer.step([batch], number)
    seconds = (time.perf_counter() - start) / TIMED_STEPS
    return config.batch_size / seconds


def train_and_score(
    run: Run, settings: list[str], data: Path, split: str, options: argparse.Namespace
) -> dict[str, float]:
    """Train one network and score the videos of a split.

    Returns:
        the probability of FAKE by video, the mean over its crops.

    Raises:
        UserError: training or scoring failed; the message is theirs.
    """
    folder = options.output_dir / "runs" / run.name
    if PLUS in run.recipe:
        members = [
            _video_scores(folder.with_name(run._replace(recipe=member).name))
            for member in run.recipe.split(PLUS)
        ]
        return {
            video: float(np.mean([each[video] for each in members]))
            for video in members[0]
        }
    log = folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    every = [*options.set, *settings]
    common = ["--device", options.device, "--workers", str(options.workers)]
    leave_out = [] if run.left_out == NONE else ["--leave-out", run.left_out]
    train = [
        *("training.train", "--config", options.config, "--data-dir", data),
        *("--fold", FOLD, "--seed", run.seed, "--prefix", f"{run.name}_"),
        *("--output-dir", folder / "weights", "--logdir", folder / "logs"),
        *leave_out,
        *common,
        *(["--set", *every] if every else []),
    ]
    _run_module(train, log)
    config = load_config(options.config, every)
    name = run_name(f"{run.name}_", config.encoder, FOLD)
    score = [
        *("evaluation.crops", "--data-dir", data, "--split", split),
        *("--weights-dir", folder / "weights"),
        *("--models", f"{name}_{config.epochs - 1}"),
        *("--output", folder / "submission.csv"),
        *("--faces-csv", folder / "faces.csv", "--rule", "mean"),
        *common,
    ]
    _run_module(score, log)
    # only the last epoch is scored; the others would fill the disk
    for path in (folder / "weights").iterdir():
        if path.name != f"{name}_{config.epochs - 1}":
            path.unlink()
    return _video_scores(folder)


def _video_scores(folder: Path) -> dict[str, float]:
    """The mean over a video's crops, of a run that is finished."""
    try:
        faces = read_faces(folder / "faces.csv")
    except UserError as error:
        raise UserError(
            f"{error}; its row is in results.csv, but an ensemble needs its scores: "
            "remove its rows to train it again"
        ) from error
    return {
        video: float(np.mean([*frame_scores(frames).values()]))
        for video, frames in faces.items()
    }


def _run_module(arguments: Iterable[object], log: Path) -> None:
    """Run a program of this project; its output goes to a log."""
    command = [sys.executable, "-m", *map(str, arguments)]
    with open(log, "a") as file:
        print(" ".join(command), file=file, flush=True)
        status = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=die_with_parent,
        ).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise UserError(f"{log}: {last}")


def technique_results(
    run: Run,
    probabilities: dict[str, float],
    videos: dict[str, tuple[int, str]],
    resamples: int,
) -> list[Result]:
    """AUC of each technique against all real videos.

    Args:
        videos: label and technique of each scored video.
    """
    auc = {"AUC": metrics()["AUC"]}
    results = []
    for technique in sorted({name for label, name in videos.values() if label}):
        chosen = [
            video
            for video, (label, name) in videos.items()
            if not label or name == technique
        ]
        scores = score_arrays(
            np.array([videos[video][0] for video in chosen]),
            np.array([probabilities[video] for video in chosen]),
            auc,
            resamples=resamples,
        )
        low, high = scores.intervals.get("AUC", (float("nan"), float("nan")))
        results.append(
            Result(*run[:2], technique, run.seed, scores.values["AUC"], low, high)
        )
    return results


def summarise(results: Sequence[Result]) -> list[dict]:
    """For each recipe: the mean over seeds of each technique left out, and means.

    Returns:
        dicts with recipe, seeds, a value (mean, lowest, highest over seeds) for each
        technique left out, unseen (the mean over techniques), seen (the mean over all
        others), and `NONE` (the mean over all, where nothing is left out).
    """
    rows = []
    for recipe in dict.fromkeys(result.recipe for result in results):
        own = [result for result in results if result.recipe == recipe]
        row: dict = {"recipe": recipe, "seeds": len({result.seed for result in own})}
        unseen: dict[int, list[float]] = defaultdict(list)
        seen: dict[int, list[float]] = defaultdict(list)
        by_technique: dict[str, list[float]] = defaultdict(list)
        control: dict[int, list[float]] = defaultdict(list)
        for result in own:
            if result.left_out == NONE:
                control[result.seed].append(result.auc)
            elif result.tested_on == result.left_out:
                unseen[result.seed].append(result.auc)
                by_technique[result.left_out].append(result.auc)
            else:
                seen[result.seed].append(result.auc)
        row |= {name: _spread(values) for name, values in sorted(by_technique.items())}
        means = {"unseen": unseen, "seen": seen} | ({NONE: control} if control else {})
        for name, by_seed in means.items():
            row[name] = _spread([float(np.mean(each)) for each in by_seed.values()])
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, lowest and highest."""
    if not values:
        return (float("nan"),) * 3
    return float(np.mean(values)), min(values), max(values)


def write_tables(results: Sequence[Result], folder: Path) -> str:
    """Write table.txt and table.png. Returns the text."""
    rows = summarise(results)
    found = {name for row in rows for name in row}
    names = sorted(found - {*RESERVED}) + [
        name for name in RESERVED[2:] if name in found
    ]
    width = max(24, *(len(row["recipe"]) + 2 for row in rows))
    lines = [
        "AUC over videos; columns: the technique left out, tested on itself; unseen:"
    ]
    lines.append("their mean; seen: mean of the others; none: nothing left out. Mean")
    lines.append("(lowest to highest seed).")
    lines.append("".ljust(width) + "seeds  " + "".join(f"{name:>24}" for name in names))
    for row in rows:
        cells = "".join(f"{_format(row.get(name)):>24}" for name in names)
        lines.append(f"{row['recipe']:<{width}}{row['seeds']:<7}{cells}")
    text = "\n".join(lines) + "\n"
    (folder / "table.txt").write_text(text)
    with save_figure(
        folder / "table.png", 2 + 1.5 * len(names), 1.5 + 0.5 * len(rows)
    ) as figure:
        axes = figure.subplots()
        values = np.array(
            [[row.get(name, (np.nan,))[0] for name in names] for row in rows]
        )
        axes.imshow(values, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
        for y, x in np.ndindex(values.shape):
            colour = "white" if values[y, x] < 0.8 else "black"
            axes.text(
                x, y, f"{values[y, x]:.3f}", ha="center", va="center", color=colour
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(rows)), [row["recipe"] for row in rows])
        axes.set_title("AUC over videos; columns: left out and tested on")
    return text


def _format(spread: tuple[float, float, float] | None) -> str:
    if spread is None or np.isnan(spread[0]):
        return "-"
    return f"{spread[0]:.3f} ({spread[1]:.3f}-{spread[2]:.3f})"


def main(argv: list[str] | None = None) -> int:
    options = _make_parser().parse_args(argv)
    recipes = read_recipes(options.recipe_file, options.recipes)
    data = options.data_dir
    for name, settings in recipes.items():
        try:
            config = load_config(options.config, [*options.set, *settings])
        except UserError as error:
            raise UserError(f"recipe {name}: {error}") from error
        if config.input.clip_frames:
            raise UserError(
                f"{options.config}: the study scores single crops; leave out "
                "input.clip_frames"
            )
    crops = read_crop_table(data)
    split, known = find_techniques(crops)
    techniques = list(dict.fromkeys(options.techniques)) or known
    if unknown := [name for name in techniques if name not in (*known, NONE)]:
        raise UserError(f"--techniques {unknown[0]}: there are {', '.join(known)}")
    if options.shuffle_labels:
        data = options.output_dir / "shuffled"
        shuffle_labels(options.data_dir, data)
        crops = read_crop_table(data)
    scored = crops.select(crops.is_value("split", split))
    videos = {
        scored.name("video", row): (
            int(scored["label"][row]),
            scored.name("technique", row),
        )
        for row in range(len(scored))
    }
    path = options.output_dir / "results.csv"
    results = read_results(path)
    done = {result.run for result in results}
    # seeds outside: after each of them all recipes can be compared
    runs = [
        Run(recipe, technique, seed)
        for seed in dict.fromkeys(options.seeds)
        for technique in techniques
        for recipe in recipes
    ]
    todo = [run for run in runs if run not in done]
    check_settings(options, recipes)
    _print_cost(todo, runs, recipes, options)
    for number, run in enumerate(todo, 1):
        start = time.perf_counter()
        probabilities = train_and_score(run, recipes[run.recipe], data, split, options)
        new = technique_results(run, probabilities, videos, options.resamples)
        results += new
        write_csv(path, HEADER, results)
        aucs = ", ".join(
            f"{each.tested_on} {each.auc:.3f}"
            + (" (unseen)" if each.tested_on == run.left_out else "")
            for each in new
        )
        minutes = (time.perf_counter() - start) / 60
        print(f"{number}/{len(todo)} {run.name}: {aucs}; {minutes:.1f} min", flush=True)
        if not options.keep_weights and PLUS not in run.recipe:
            shutil.rmtree(options.output_dir / "runs" / run.name / "weights")
    wanted = [result for result in results if result.run in {*runs}]
    print(write_tables(wanted, options.output_dir), end="")
    return 0


def find_techniques(crops: CropTable) -> tuple[str, list[str]]:
    """The split to test on, and the techniques that it has.

    Raises:
        UserError: the table does not say which fakes are of which technique, or has no
            crops to test on.
    """
    path = folds_path(crops.root)
    for column in ("technique", "split"):
        if column not in crops.columns:
            raise UserError(f"{path}: has no column {column} (docs/data.md)")
    split = "test" if crops.is_value("split", "test").any() else "val"
    is_fake = crops["label"] == 1
    if (nameless := is_fake & crops.is_value("technique", "")).any():
        raise UserError(
            f"{path}: {nameless.sum()} of {is_fake.sum()} fake crops have no technique; "
            "fill it in, or leave them out"
        )
    tested = crops.select(crops.is_value("split", split))
    counts = tested.counts()
    trained_on = (tested["fold"] != FOLD) & (tested["fold"] != NO_FOLD)
    if not (tested["label"] == 0).any() or (split == "val" and trained_on.any()):
        raise UserError(
            f"{path}: the split {split} must hold real crops, in fold {FOLD} if it is val"
        )
    techniques = [name for name in counts if name not in ("real", "fake")]
    every = [name for name in crops.counts() if name not in ("real", "fake")]
    if missing := [name for name in every if name not in techniques]:
        raise UserError(
            f"{path}: the split {split} has no crop of {missing[0]}; test on some of each"
        )
    if wrong := [name for name in techniques if name in RESERVED]:
        raise UserError(f"{path}: rename the technique {wrong[0]!r}")
    return split, techniques


def _print_cost(
    todo: Sequence[Run],
    runs: Sequence[Run],
    recipes: dict[str, list[str]],
    options: argparse.Namespace,
) -> None:
    """Print how many networks will be trained and how long that takes here."""
    if not todo:
        return
    seconds = 0.0
    trained, every = (
        [run for run in each if PLUS not in run.recipe] for each in (todo, runs)
    )
    for recipe, settings in recipes.items():
        count = sum(run.recipe == recipe for run in trained)
        if count:
            config = load_config(options.config, [*options.set, *settings])
            images = config.epochs * config.batches_per_epoch * config.batch_size
            seconds += count * images / images_per_second(config, options.device)
    minutes = seconds / 60
    cost = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.0f} minutes"
    print(
        f"{len(trained)} of {len(every)} networks to train, about {cost} of training "
        "steps by the speed of this moment, and reading and augmenting; Ctrl-C stops, "
        "the same command goes on",
        flush=True,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="has folds.csv")
    parser.add_argument(
        "--config", type=Path, required=True, help="such as configs/unseen.yaml"
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME",
        help="recipes to compare, of --recipe-file",
    )
    parser.add_argument(
        "--recipe-file", type=Path, default=RECIPES, help="names and their settings"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        action="extend",
        type=int,
        default=[1],
        metavar="N",
        help="one training each",
    )
    parser.add_argument(
        "--techniques",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"to leave out one at a time; all if not given; {NONE}: leave out nothing",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="of the study")
    add_set_option(parser)
    parser.add_argument(
        "--shuffle-labels",
        action="store_true",
        help="a control: give the videos each other's labels; all AUCs must be near 0.5",
    )
    parser.add_argument(
        "--keep-weights", action="store_true", help="keep each run's last checkpoint"
    )
    parser.add_argument(
        "--resamples",
        type=non_negative_int,
        default=1000,
        help="bootstrap resamples of the videos for the intervals",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        default=max(1, (os.cpu_count() or 1) // 2),
        help="loader processes",
    )
    add_device_option(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
