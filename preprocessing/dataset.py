"""Dataset records: videos and skipped files.

Readers such as `preprocessing.dfdc` create them; the numbered steps process them.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Video:
    """One video of the dataset.

    `original` is the name of the video that a fake was made from, without suffix, and
    `original_path` its file. A real video is its own original.
    """

    path: Path
    part: int
    is_fake: bool
    original: str
    original_path: Path | None = None

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Skipped:
    """A file that was skipped completely or in part, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class Unused(Skipped):
    """Files that are no part of the data set; they do not count as failures."""


@dataclass(frozen=True)
class Dataset:
    """The usable videos of a DFDC folder, sorted by part and name; skipped files."""

    root: Path
    videos: list[Video]
    skipped: list[Skipped]

    @property
    def reals(self) -> list[Video]:
        return [video for video in self.videos if not video.is_fake]

    @property
    def fakes(self) -> list[Video]:
        return [video for video in self.videos if video.is_fake]
