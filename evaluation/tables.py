"""Read submissions, faces CSVs and labels as users have them.

Reads  a submission: filename,label
       a faces CSV of `inference.predict` or `evaluation.crops`: video,frame,…,model,
       probability
       labels: a CSV with filename,label (0/1 or REAL/FAKE) and optionally more columns;
       DATA/folds.csv, whose videos have technique and split; a DFDC metadata.json, also
       that of the released test set, whose columns are augmenter and distractor
All CSV files also as Excel saves them (`runtime.files.read_csv_rows`).
"""

import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from inference.submission import CLIP_COLUMN
from preprocessing.dataset import parse_label, parse_number
from preprocessing.datasets.dfdc import read_metadata
from preprocessing.video import SUFFIXES
from runtime.cli import UserError
from runtime.files import read_csv_rows

FACES_COLUMNS = ("video", "frame", "model", "probability")
NO_DISGUISE = "none"


def read_submission(path: Path) -> dict[str, float]:
    """The probability of FAKE by file name.

    Raises:
        UserError: a label is not a number from 0 to 1.
    """
    probabilities = {}
    for name, row in _read_rows(path).items():
        text = row["label"]
        try:
            probability = parse_number(text)
        except ValueError as error:
            raise UserError(
                f"{path}: {name}: the label {text!r} is not a number"
            ) from error
        if not 0 <= probability <= 1:
            raise UserError(
                f"{path}: {name}: the label {text} is not a probability from 0 to 1"
            )
        probabilities[name] = probability
    return probabilities


def read_labels(path: Path) -> dict[str, int]:
    """The label, 0 or 1, by file name, from a CSV or a metadata.json.

    Raises:
        UserError: a label is none of 0, 1, REAL and FAKE.
    """
    labels = {}
    for name, row in read_label_rows(path).items():
        label = row.get("label")
        try:
            labels[name] = parse_label(str(label).strip())
        except ValueError as error:
            raise UserError(
                f"{path}: {name}: the label {label!r} must be 0, 1, REAL or FAKE"
            ) from error
    return labels


def read_label_rows(path: Path) -> dict[str, dict]:
    """All columns of the labels file by file name."""
    if path.suffix.lower() == ".json":
        return {name: _json_row(row) for name, row in read_metadata(path).items()}
    return _read_rows(path)


def _json_row(entry: dict) -> dict:
    """A metadata.json's entry; of the test set, which has no `label`, as a row."""
    if "is_fake" not in entry:
        return entry
    label = entry["is_fake"]
    row = {"label": str(int(label) if isinstance(label, bool) else label)}
    augmentations = entry.get("augmentations") or {}
    for column in ("augmenter", "distractor"):
        kinds = augmentations.get(column) if isinstance(augmentations, dict) else None
        names = [kinds] if isinstance(kinds, str) else kinds or []
        row[column] = "+".join(map(str, names)) or NO_DISGUISE
    return row


def read_column(path: Path, column: str) -> dict[str, str]:
    """One column of the labels file by file name.

    Raises:
        UserError: there is no such column.
    """
    rows = read_label_rows(path)
    if not any(column in row for row in rows.values()):
        columns = ", ".join(dict.fromkeys(key for row in rows.values() for key in row))
        raise UserError(f"{path}: has no column {column!r}; it has {columns}")
    return {name: str(row.get(column) or "") for name, row in rows.items()}


def is_faces_csv(path: Path) -> bool:
    """Whether the first lines name the columns of a faces CSV."""
    try:
        with open(path, "rb") as file:
            start = file.read(1000)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    # of UTF-16 every second byte is 0
    text = start.replace(b"\0", b"").decode("utf-8", "replace")
    header = " ".join(text.splitlines()[:2])
    return all(column in header for column in FACES_COLUMNS)


def read_faces(path: Path) -> dict[str, dict[int, dict[str, list[float]]]]:
    """Read a faces CSV.

    Returns:
        by video, by frame number, by network: the probabilities of the frame's faces,
        NaN of a face that the network does not see.

    Raises:
        UserError: a frame or a probability is no number in its range.
    """
    videos: dict[str, dict] = defaultdict(dict)
    clip_models = set()  # which score some frames' faces only
    for row in read_csv_rows(path, FACES_COLUMNS):
        try:
            frame, probability = int(row["frame"]), parse_number(row["probability"])
        except ValueError as error:
            raise UserError(
                f"{path}: {row['video']}: frame {row['frame']!r} with the probability "
                f"{row['probability']!r} are no numbers"
            ) from error
        if probability < 0 or probability > 1:
            raise UserError(
                f"{path}: {row['video']}: {probability} is no probability from 0 to 1"
            )
        by_model = videos[row["video"]].setdefault(frame, defaultdict(list))
        by_model[row["model"]].append(probability)
        if row.get(CLIP_COLUMN):
            clip_models.add(row["model"])
    if not videos:
        raise UserError(f"{path}: lists no face")
    models = {
        model
        for frames in videos.values()
        for each in frames.values()
        for model in each
    }
    models = models - clip_models or models
    for video, frames in videos.items():
        for frame, by_model in frames.items():
            counts = {len(by_model.get(model, [])) for model in models}
            if len(counts) > 1:
                raise UserError(
                    f"{path}: {video}, frame {frame}: has not as many faces of each "
                    "network; is the file complete?"
                )
    return dict(videos)


def frame_scores(frames: dict[int, dict[str, list[float]]]) -> dict[int, float]:
    """A video's score of each frame: mean over networks, then the largest face's.

    Networks that score fewer of the video's frames than others, as those of clips, are
    left out.
    """
    counts = Counter(model for by_model in frames.values() for model in by_model)
    most = max(counts.values(), default=0)
    scores = {}
    for frame, by_model in frames.items():
        whole = [each for model, each in by_model.items() if counts[model] == most]
        seen = [
            float(np.mean(known))
            for face in zip(*whole)
            if (known := [score for score in face if not math.isnan(score)])
        ]
        if seen:
            scores[frame] = max(seen)
    return scores


def scores_by_model(
    frames: dict[int, dict[str, list[float]]],
) -> dict[str, np.ndarray]:
    """A video's face scores of each network, (K,) float32 in the frames' order."""
    by_model: dict[str, list[float]] = defaultdict(list)
    for each in frames.values():
        for model, probabilities in each.items():
            by_model[model] += [p for p in probabilities if not math.isnan(p)]
    return {name: np.array(each, np.float32) for name, each in by_model.items()}


Value = TypeVar("Value")


def match_names(
    probabilities: Mapping[str, Value], labels: Mapping[str, int]
) -> dict[str, Value]:
    """Give the probabilities the file names of the labels, and say so on stderr.

    `aaaa` and `aaaa.mp4` are one video where no other name of either file has this
    stem. Other names are kept.
    """
    own, others = _by_stem(probabilities), _by_stem(labels)
    renamed = {}
    for stem, names in own.items():
        found = others.get(stem, [])
        if len(names) == len(found) == 1 and names != found:
            bare = {names[0].strip(), found[0].strip()}
            if stem in bare or len(bare) == 1:
                renamed[names[0]] = found[0]
    if renamed:
        name, label = next(iter(renamed.items()))
        print(
            f"{len(renamed)} file names differ in their endings and were matched "
            f"without, the first is {name} in the submission, {label} in the labels",
            file=sys.stderr,
        )
    return {renamed.get(name, name): value for name, value in probabilities.items()}


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The file names by what they are without a video's ending."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, ending = os.path.splitext(name.strip())
        is_video = ending.lower() in SUFFIXES
        groups.setdefault(stem if is_video else name.strip(), []).append(name)
    return groups


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV by their filename, which must be unique.

    Of a folds.csv, which has a row for each crop, the first row of each video.
    """
    try:
        rows = read_csv_rows(path, ("filename", "label"))
    except UserError:
        try:
            crops = read_csv_rows(path, ("video", "label", "file"))
        except UserError:
            crops = []
        if not crops:
            raise
        return {row["video"]: row for row in reversed(crops)}
    if not rows:
        raise UserError(f"{path}: lists no video")
    for stem, names in _by_stem(row["filename"] for row in rows).items():
        if len({*names}) < len(names) or (stem in names and len(names) > 1):
            raise UserError(
                f"{path}: names a video twice, {' and '.join(sorted({*names}))}; "
                "keep one row of each"
            )
    return {row["filename"]: row for row in rows}
