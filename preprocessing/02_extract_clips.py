"""Step 2, optional: cut clips, for networks that see change over time.

    python -m preprocessing.02_extract_clips --root-dir DATA

Reads  DATA/boxes/{original}.json from step 1, and the videos
Writes DATA/clips/{video}/{frame}_{actor}.mp4: about a second of one face around that
       frame, full resolution, cut with the box that the face has in it; about a second
       is at most 32 frames
Method: as the crops: a fake is cut with its original's boxes, at the same frames. Four
       moments of a video, evenly spread (--clips-per-video).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing.clips import CLIPS, choose_clips, clip_numbers, write_clip
from preprocessing.crops import crop_face
from preprocessing.dataset import Video
from preprocessing.layout import clips_dir
from preprocessing.pairs import fit_frame, match_original, probe_original, read_boxes
from preprocessing.step import open_dataset, output_root, run_step, step_parser
from preprocessing.video import probe, read_frames
from runtime.cli import UserError, positive_int, run_main
from runtime.files import atomic_folder


def extract_clips(video: Video, root: Path, count: int) -> None:
    """Write one video's clips, and the skip reasons of those that are missing.

    Raises:
        UserError: there are no boxes for its original, or they do not fit.
        VideoError: the video cannot be read.
    """
    boxes = read_boxes(root, video)
    found = {number: each for number, each in boxes.items() if each}
    info = probe(video.path)
    fit, skipped = match_original(video, info, found) if found else (None, [])
    source = probe_original(video) or info
    offsets = clip_numbers(source.fps)
    wanted = choose_clips(boxes, source.frames, offsets, count)
    clips = [clip for clip in wanted if clip.numbers[-1] < info.frames]
    if not clips:
        length = offsets.stop - offsets.start
        skipped.append(
            f"no clip: of {info.frames} frames no {length} around a searched one show "
            "a face in all that were searched"
        )
    images: dict[str, list[np.ndarray]] = {}
    numbers = sorted({number for clip in clips for number in clip.numbers})
    with atomic_folder(clips_dir(root, video.name), skipped) as folder:
        for number, frame in read_frames(video.path, numbers, info):
            frame = fit_frame(frame, fit)
            for clip in (clip for clip in clips if number in clip.numbers):
                cut = images.setdefault(clip.name, [])
                crop = crop_face(frame, clip.box)
                if crop.size:
                    cut.append(crop.copy())
                if len(cut) == len(clip.numbers):
                    write_clip(folder / clip.name, cut, source.fps / offsets.step)
                    cut.clear()
        missing = [clip for clip in clips if not (folder / clip.name).exists()]
        if clips and len(missing) == len(clips):
            raise UserError(f"{video.path}: none of its clips could be cut")
        skipped += [
            f"frame {clip.middle}, face {clip.actor}: not all frames of its clip could "
            "be cut"
            for clip in missing
        ]


def add_clips_option(parser: argparse.ArgumentParser) -> None:
    """Add --clips-per-video."""
    parser.add_argument(
        "--clips-per-video",
        type=positive_int,
        default=CLIPS,
        help="evenly spread moments of a video; what was cut stays: delete DATA/clips "
        "to change it",
    )


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_clips_option(parser)
    options = parser.parse_args(argv)
    dataset = open_dataset(options)
    videos = [video for video in dataset.videos if not video.crops]
    if not videos:
        raise UserError(
            f"{options.root_dir}: holds crops and no videos, so there are no clips to cut"
        )
    return run_step(
        partial(
            extract_clips, root=output_root(options), count=options.clips_per_video
        ),
        videos,
        lambda video: clips_dir(dataset.root, video.name),
        options,
        "2 extract clips",
        dataset.skipped,
    )


if __name__ == "__main__":
    run_main(main)
