"""The files of a crop: image, landmarks and diff, from folders or from shards.

Reads DATA/crops, DATA/landmarks and DATA/diffs, as written by preprocessing steps 2 to
      4 or by the winner's own scripts; or DATA/shards
"""

import io
import os
import tarfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from preprocessing.clips import CLIP_SUFFIX, read_clip
from preprocessing.crop_table import CropTable
from preprocessing.crops import decode_image, read_image
from preprocessing.layout import shard_index_path
from runtime.cli import UserError

# Shard files that a process keeps open.
MAX_OPEN_SHARDS = 64


class Sample:
    """The files of crop `row`, read on access.

    Raises:
        UserError: from each method, if a file cannot be read; the message names it and
            says what to do.
    """

    def __init__(self, crops: CropTable, row: int):
        self._files, self._in_shards = crops.files(row), crops.in_shards
        if crops.in_shards:
            self._shard = shard_index_path(crops.root).parent / crops.name("shard", row)
            self._offset = int(crops["offset"][row])
            self._size = int(crops["size"][row])

    def image(self) -> np.ndarray:
        """The crop (h, w, 3) uint8 RGB."""
        return self._image("png", self._files.image, cv2.IMREAD_COLOR_RGB)

    def clip(self) -> tuple[np.ndarray, float]:
        """The frames of a clip (T, h, w, 3) uint8 RGB, and how many there are a second."""
        extension, path = CLIP_SUFFIX[1:], self._files.image
        try:
            data = self._members[extension] if self._in_shards else path.read_bytes()
        except (OSError, KeyError):
            data = b""
        return read_clip(data, *self._describe(extension, path))

    def diff(self) -> np.ndarray | None:
        """Difference from the real crop (h, w) uint8, or None if step 4 made none."""
        if not self._exists("diff.png", self._files.diff):
            return None
        return self._image("diff.png", self._files.diff, cv2.IMREAD_GRAYSCALE)

    def landmarks(self) -> np.ndarray | None:
        """The landmarks (5, 2), x and y in crop pixels, or None if step 3 found none.

        They are the eyes, the nose and the corners of the mouth.
        """
        return self._points("npy", self._files.npy, 5)

    def outline_landmarks(self) -> np.ndarray | None:
        """The 68 landmarks (68, 2) where step 3 made them, else `landmarks`."""
        points = self._points("68.npy", self._files.npy68, 68)
        return self.landmarks() if points is None else points

    def _points(self, extension: str, path: Path, count: int) -> np.ndarray | None:
        if not self._exists(extension, path):
            return None
        try:
            data = self._members[extension] if self._in_shards else path.read_bytes()
            landmarks = np.load(io.BytesIO(data))
            if landmarks.shape != (count, 2) or landmarks.dtype.kind not in "if":
                raise ValueError(f"{landmarks.dtype} {landmarks.shape}")
        except (ValueError, EOFError, OSError) as error:
            name, remedy = self._describe(extension, path)
            raise UserError(
                f"{name}: not landmarks; {remedy} and run the preprocessing again"
            ) from error
        return landmarks

    def diff_size_error(self) -> UserError:
        """The error for a diff whose size differs from the crop's."""
        name, remedy = self._describe("diff.png", self._files.diff)
        return UserError(
            f"{name}: does not have the crop's size; {remedy} and run the "
            "preprocessing again"
        )

    def _image(self, extension: str, path: Path, flags: int) -> np.ndarray:
        if not self._in_shards:
            return read_image(path, flags)
        data = self._members.get(extension, b"")
        return decode_image(data, *self._describe(extension, path), flags)

    def _exists(self, extension: str, path: Path) -> bool:
        return extension in self._members if self._in_shards else path.exists()

    def _describe(self, extension: str, path: Path) -> tuple[str, str]:
        """For error messages: which file it is, and what to delete if it is damaged."""
        if not self._in_shards:
            return str(path), f"delete the folder {path.parent}"
        return (
            f"{self._shard}: the .{extension} at byte {self._offset} ({path})",
            f"delete {self._shard.with_suffix('.*')}",
        )

    @cached_property
    def _members(self) -> dict[str, bytes]:
        """The files by extension, in one read of the shard."""
        members = {}
        try:
            data = os.pread(_open(self._shard).fileno(), self._size, self._offset)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for entry in tar:
                    if file := tar.extractfile(entry):
                        members[entry.name.partition(".")[2]] = file.read()
        except (OSError, tarfile.TarError) as error:
            pattern = self._shard.with_suffix(".*")
            raise UserError(
                f"{self._shard}: cannot be read ({error}); delete {pattern} and run "
                "preprocessing step 6 again"
            ) from error
        return members


@lru_cache(MAX_OPEN_SHARDS)
def _open(shard: Path) -> BinaryIO:
    """Open a shard; it is closed when it is evicted from the cache."""
    return open(shard, "rb", buffering=0)
