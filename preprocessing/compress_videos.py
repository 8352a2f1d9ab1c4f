"""Optional: re-encode a DFDC folder at random quality, to train on compressed videos.

    python -m preprocessing.compress_videos --root-dir DATA --output-dir OUT

Reads  DATA/dfdc_train_part_N/{metadata.json, *.mp4}
Writes OUT/dfdc_train_part_N/{metadata.json, *.mp4}: another DFDC folder, for
       preprocess_data.sh; without audio
Method: the winner's: H.264 with a constant rate factor drawn from 23, 28 and 32 for
       each video.
"""

import random
import shutil
from functools import partial
from pathlib import Path

import av

from preprocessing.dataset import Video
from preprocessing.datasets.dfdc import read_dataset
from preprocessing.step import run_step, step_parser
from preprocessing.video import (
    X264_OPTIONS,
    VideoError,
    choose_stream,
    decode,
    open_video,
)
from runtime.cli import UserError, run_main
from runtime.files import atomic_file

RATE_FACTORS = (23, 28, 32)  # the winner's; higher means smaller and lower quality


def compressed_file(video: Video, output: Path) -> Path:
    return output / video.path.parent.name / f"{video.name}.mp4"


def compress_video(video: Video, output: Path, seed: int) -> None:
    """Re-encode one video. Its quality is determined by its name and the seed.

    Raises:
        VideoError: the video cannot be read, or no frame can be decoded.
    """
    rate_factor = random.Random(f"{seed} {video.name}").choice(RATE_FACTORS)
    with atomic_file(compressed_file(video, output)) as temporary:
        with (
            open_video(video.path) as source,
            av.open(str(temporary), "w", format="mp4") as target,
        ):
            stream, _ = choose_stream(video.path, source)
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise VideoError(f"{video.path}: has no frame rate")
            encoder = target.add_stream(
                "libx264",
                rate=rate,
                options=X264_OPTIONS | {"crf": str(rate_factor)},
            )
            encoder.width = stream.width - stream.width % 2
            encoder.height = stream.height - stream.height % 2
            encoder.pix_fmt = "yuv420p"
            frames = 0
            for frame in decode(source, stream):
                # constant frame rate, which keeps the frame numbers of the source
                size = encoder.width, encoder.height
                frame = frame.reformat(*size, "yuv420p", threads=1)
                frame.pts, frame.time_base = frames, 1 / rate
                target.mux(encoder.encode(frame))
                frames += 1
            target.mux(encoder.encode())
        if not frames:
            raise VideoError(f"{video.path}: no frame could be decoded")


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__, has_dataset=False)
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="new DFDC folder"
    )
    parser.add_argument(
        "--seed", type=int, default=777, help="seed of the videos' quality"
    )
    options = parser.parse_args(argv)
    if options.output_dir.resolve() == options.root_dir.resolve():
        raise UserError(
            "--output-dir must not be --root-dir: the originals would be overwritten"
        )
    dataset = read_dataset(options.root_dir)
    status = run_step(
        partial(compress_video, output=options.output_dir, seed=options.seed),
        dataset.videos,
        lambda video: compressed_file(video, options.output_dir),
        options,
        "compress",
        dataset.skipped,
    )
    for metadata in sorted(
        {video.path.parent / "metadata.json" for video in dataset.videos}
    ):
        target = options.output_dir / metadata.parent.name
        if target.is_dir():
            with atomic_file(target / metadata.name) as temporary:
                shutil.copyfile(metadata, temporary)
    return status


if __name__ == "__main__":
    run_main(main)
