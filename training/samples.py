"""What belongs to one crop on disk: its image, its landmarks, its diff; from the folders of steps 2 to 4 or from shards.

Reads DATA/crops, DATA/landmarks, DATA/diffs, as preprocessing or the winner's own scripts wrote them, or DATA/shards
"""

import io
import os
import tarfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from preprocessing.crop_table import CropTable
from preprocessing.crops import decode_image, read_image
from preprocessing.layout import shard_index_path
from runtime.cli import UserError

OPEN_SHARDS = 64  # that a process keeps open


class Sample:
    """The files of crop `row`, read when asked for.

    Raises:
        UserError: from each method, where a file cannot be read, with its name and what to do.
    """

    def __init__(self, crops: CropTable, row: int):
        self._files, self._packed = crops.files(row), crops.packed
        if crops.packed:
            self._shard = shard_index_path(crops.root).parent / crops.name("shard", row)
            self._offset, self._size = (
                int(crops["offset"][row]),
                int(crops["size"][row]),
            )

    def image(self) -> np.ndarray:
        """The crop (h, w, 3) uint8 RGB."""
        return self._image("png", self._files.png, cv2.IMREAD_COLOR_RGB)

    def diff(self) -> np.ndarray | None:
        """Where it differs from the real crop, (h, w) uint8, if step 4 made that."""
        if not self._is_there("diff.png", self._files.diff):
            return None
        return self._image("diff.png", self._files.diff, cv2.IMREAD_GRAYSCALE)

    def landmarks(self) -> np.ndarray | None:
        """(5, 2) x and y of the eyes, the nose, the corners of the mouth in crop pixels, if step 3 found them."""
        if not self._is_there("npy", self._files.npy):
            return None
        try:
            data = (
                self._members["npy"] if self._packed else self._files.npy.read_bytes()
            )
            landmarks = np.load(io.BytesIO(data))
            if landmarks.shape != (5, 2) or landmarks.dtype.kind not in "if":
                raise ValueError(f"{landmarks.dtype} {landmarks.shape}")
        except (ValueError, EOFError, OSError) as error:
            name, remedy = self._name("npy", self._files.npy)
            raise UserError(
                f"{name}: not landmarks; {remedy} and run the preprocessing again"
            ) from error
        return landmarks

    def wrong_size(self) -> UserError:
        """That the diff does not fit the crop."""
        name, remedy = self._name("diff.png", self._files.diff)
        return UserError(
            f"{name}: is not of the crop's size; {remedy} and run the preprocessing again"
        )

    def _image(self, ending: str, path: Path, flags: int) -> np.ndarray:
        if not self._packed:
            return read_image(path, flags)
        return decode_image(
            self._members.get(ending, b""), *self._name(ending, path), flags
        )

    def _is_there(self, ending: str, path: Path) -> bool:
        return ending in self._members if self._packed else path.exists()

    def _name(self, ending: str, path: Path) -> tuple[str, str]:
        if not self._packed:
            return str(path), f"delete the folder {path.parent}"
        return (
            f"{self._shard}: the .{ending} at byte {self._offset} ({path})",
            f"delete {self._shard.with_suffix('.*')}",
        )

    @cached_property
    def _members(self) -> dict[str, bytes]:
        """The files by their endings, in one read of the shard."""
        try:
            data = os.pread(_open(self._shard).fileno(), self._size, self._offset)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                return {
                    entry.name.partition(".")[2]: tar.extractfile(entry).read()
                    for entry in tar
                }
        except (OSError, tarfile.TarError) as error:
            raise UserError(
                f"{self._shard}: cannot be read ({error}); delete {self._shard.with_suffix('.*')} and run "
                "preprocessing step 6 again"
            ) from error


@lru_cache(OPEN_SHARDS)
def _open(shard: Path) -> BinaryIO:
    """Closed when it falls out of the cache."""
    return open(shard, "rb", buffering=0)
