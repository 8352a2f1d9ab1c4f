"""What a prediction run keeps and writes.

`Journal` is the run's memory: CSV.partial.jsonl, one line for each finished video with
every face's score. An interrupted run continues from it. The tables are views of it,
and when they are complete it is deleted.

Writes submission.csv          filename,label: probability of FAKE, sorted by name, or as
                               in the list of videos
       submission.report.csv   filename,faces,reason: videos with a reason, unused files
       --faces-csv FILE        video,frame,time,x1,y1,x2,y2,model,probability, with clip
                               networks also clip_seconds; nan where a network does not
                               see a face
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from inference.aggregate import TRACKED, Aggregation, ensemble_label
from preprocessing.tracking import track_faces
from runtime.files import atomic_file, write_csv, write_errors

JOURNAL_VERSION = 3  # of its keys; a journal of another version is not continued
FACES_HEADER = [
    "video",
    "frame",
    "time",
    "x1",
    "y1",
    "x2",
    "y2",
    "model",
    "probability",
]
CLIP_COLUMN = "clip_seconds"


class Journal:
    """The finished videos of a run, appended to disk as they come.

    Args:
        output: the submission that it belongs to.
        identity: describes the run; the journal of another run is not continued.

    Attributes:
        entries: by file name.
    """

    def __init__(self, output: Path, identity: dict):
        self.path = output.with_name(f"{output.name}.partial.jsonl")
        self.entries: dict[str, dict] = {}
        header = identity | {"version": JOURNAL_VERSION}
        lines = _complete_lines(self.path)
        if lines and lines[0] == header:
            # those without a face are tried again: a limit may have been raised since
            self.entries = {
                entry["filename"]: entry for entry in lines[1:] if is_answered(entry)
            }
        elif lines:
            print(f"{self.path}: is of a run with other settings; beginning anew")
        with atomic_file(self.path) as temporary:
            kept = [header, *self.entries.values()]
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def add(self, entry: dict) -> None:
        """Append a video: filename, reason, frames, times, boxes, probabilities by
        model, thumbnail for a report, and clips where there are clip networks.

        Raises:
            MachineError: the disk refuses it.
        """
        with write_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.entries[entry["filename"]] = entry

    def finish(self) -> None:
        """Delete the journal: all tables are written."""
        self.path.unlink()


def report_path(output: Path) -> Path:
    """submission.csv → submission.report.csv"""
    return output.with_name(f"{output.stem}.report.csv")


def write_submission(
    output: Path,
    entries: dict[str, dict],
    aggregation: Aggregation,
    unused: Mapping[str, Sequence[Path]] | None = None,
) -> None:
    """Write the submission and its report, in the order of the entries.

    Args:
        unused: by reason the files that were not predicted, for the report.
    """
    ordered = entries.values()
    labels = ([entry["filename"], video_label(entry, aggregation)] for entry in ordered)
    write_csv(output, ["filename", "label"], labels)
    rows = [
        [entry["filename"], len(entry["frames"]), entry["reason"]]
        for entry in ordered
        if entry["reason"]
    ]
    for reason, paths in (unused or {}).items():
        rows += [[path.name, 0, f"not predicted: {reason}"] for path in paths]
    write_csv(report_path(output), ["filename", "faces", "reason"], rows)


def video_label(entry: dict, aggregation: Aggregation) -> float:
    """The label of a journal's entry: the probability of FAKE."""
    return ensemble_label(
        {name: np.array(each, np.float32) for name, each in network_scores(entry)},
        aggregation,
        _tracks(entry) if aggregation.rule in TRACKED else None,
    )


def _tracks(entry: dict) -> dict[str, np.ndarray]:
    """By network which scores are the same person's."""
    found = {}
    for kind in (entry, _clips(entry)):
        tracks = np.array(track_faces(kind["frames"], kind["boxes"]), int)
        for name, scores in kind["probabilities"].items():
            found[name] = tracks[~np.isnan(np.array(scores, float))]
    return found


def is_answered(entry: dict) -> bool:
    """Whether a network has scored something of a video."""
    return any(scores for _, scores in network_scores(entry))


def network_scores(entry: dict) -> list[tuple[str, list[float]]]:
    """The scores of each network, of the faces or clips that it sees."""
    found = [
        *entry["probabilities"].items(),
        *_clips(entry)["probabilities"].items(),
    ]
    return [
        (name, [score for score in scores if not math.isnan(score)])
        for name, scores in found
    ]


def _clips(entry: dict) -> dict:
    """The clips of a journal's entry, none where no network sees clips."""
    none: dict = {"frames": [], "times": [], "boxes": [], "seconds": []}
    return entry.get("clips", none | {"probabilities": {}})


def write_faces(output: Path, entries: dict[str, dict]) -> None:
    """Write every face's score by every network, in the order of the entries.

    Time in seconds, empty where nobody knows; box in whole full-resolution pixels without
    the margin. Where a network sees clips, a column says how many seconds a clip takes;
    it is empty for a face.
    """
    has_clips = any("clips" in entry for entry in entries.values())
    header = FACES_HEADER + [CLIP_COLUMN] * has_clips
    rows = (row[: len(header)] for row in _face_rows(entries))
    write_csv(output, header, rows)


def _face_rows(entries: dict[str, dict]) -> Iterator[list]:
    for name, entry in entries.items():
        clips = _clips(entry)
        lengths = [round(end - start, 3) for start, end in clips["seconds"]]
        for kind, clip in ((entry, [""] * len(entry["frames"])), (clips, lengths)):
            faces = zip(kind["frames"], kind["times"], kind["boxes"])
            for place, (frame, time, box) in enumerate(faces):
                for model, scores in kind["probabilities"].items():
                    seconds = "" if math.isnan(time) else round(time, 3)
                    score = scores[place]
                    yield [name, frame, seconds, *box, model, score, clip[place]]


def _complete_lines(path: Path) -> list[dict]:
    """The journal's lines without a last one that the interruption cut short."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines
