"""What a prediction run keeps and writes.

`Journal` is the run's memory: CSV.partial.jsonl, one line for each finished video with every face's score. A run that was
interrupted goes on from it; the tables are views of it, and when they are whole it is deleted.

Writes submission.csv                filename,label       label = probability of FAKE, sorted by name
       submission.report.csv         filename,faces,trouble   only videos with a trouble
       --faces-csv FILE              video,frame,time,x1,y1,x2,y2,model,probability
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inference.aggregate import ensemble_label
from preprocessing.files import whole_file, write_csv, writing


class Journal:
    """Finished videos, on disk as they come. `identity` describes the run; a journal of another run is not continued."""

    def __init__(self, output: Path, identity: dict):
        self.path = output.with_name(f"{output.name}.partial.jsonl")
        self.entries: dict[str, dict] = {}
        lines = _whole_lines(self.path)
        if lines and lines[0] == identity:
            # those without an answer are tried again: a limit may have been raised since, or a disk mended
            self.entries = {entry["filename"]: entry for entry in lines[1:] if entry["frames"]}
        with whole_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in [identity, *self.entries.values()]))

    def add(self, entry: dict) -> None:
        """Keep a video's answers: filename, trouble, frames, times, boxes, probabilities by model, thumbnail for a report.

        Raises:
            MachineError: the disk refuses them.
        """
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.entries[entry["filename"]] = entry

    def finish(self) -> None:
        """All tables are written: forget the run."""
        self.path.unlink()


def report_path(output: Path) -> Path:
    """submission.csv → submission.report.csv"""
    return output.with_name(f"{output.stem}.report.csv")


def write_submission(output: Path, entries: dict[str, dict], rule: str) -> None:
    """The submission, by one of `inference.aggregate.RULES`, and its report."""
    ordered = [entries[name] for name in sorted(entries)]
    write_csv(output, ["filename", "label"], ([entry["filename"], video_label(entry, rule)] for entry in ordered))
    troubled = ([entry["filename"], len(entry["frames"]), entry["trouble"]] for entry in ordered if entry["trouble"])
    write_csv(report_path(output), ["filename", "faces", "trouble"], troubled)


def video_label(entry: dict, rule: str) -> float:
    """The label of a journal's entry: the probability of FAKE."""
    return ensemble_label([np.array(each, np.float32) for each in entry["probabilities"].values()], rule)


def write_faces(output: Path, entries: dict[str, dict]) -> None:
    """Every face's score by every network. Time in seconds, box in whole full-resolution pixels without the margin."""
    write_csv(output, ["video", "frame", "time", "x1", "y1", "x2", "y2", "model", "probability"], _face_rows(entries))


def _face_rows(entries: dict[str, dict]) -> Iterator[list]:
    for name in sorted(entries):
        entry = entries[name]
        for place, (frame, time, box) in enumerate(zip(entry["frames"], entry["times"], entry["boxes"])):
            for model, probabilities in entry["probabilities"].items():
                yield [name, frame, round(time, 3), *box, model, probabilities[place]]


def _whole_lines(path: Path) -> list[dict]:
    """The journal's lines; a last one that was cut short by the interruption is dropped."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines
