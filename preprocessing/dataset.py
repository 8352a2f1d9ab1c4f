"""The records of a data set: its videos, and what had to be skipped. Readers such as
`preprocessing.dfdc` fill them, the numbered steps work on them.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Video:
    """One listed video. `original` is the video that a fake was made from; a real video is its own original."""

    path: Path
    part: int
    is_fake: bool
    original: str  # without its suffix, as `name`

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Skipped:
    """A file that had to be left out, or part of it, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """All usable videos of a DFDC folder, sorted by part and name, and what had to be left out."""

    root: Path
    videos: list[Video]
    skipped: list[Skipped]

    @property
    def reals(self) -> list[Video]:
        return [video for video in self.videos if not video.is_fake]

    @property
    def fakes(self) -> list[Video]:
        return [video for video in self.videos if video.is_fake]
