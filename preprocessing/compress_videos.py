"""Optional: re-encode a DFDC folder at random quality, so that networks also see strongly compressed videos.

    python -m preprocessing.compress_videos --root-dir DATA --output-dir DATA_COMPRESSED

Reads  DATA/dfdc_train_part_N/{metadata.json, *.mp4}
Writes OUT/dfdc_train_part_N/{metadata.json, *.mp4}: a DFDC folder again, for preprocess_data.sh; sound is left out
Method: the winner's: H.264 with a constant rate factor drawn from 23, 28 and 32 for each video.
"""

import random
import shutil
from functools import partial
from pathlib import Path

import av

from preprocessing.dataset import Video
from preprocessing.dfdc import read_dataset
from preprocessing.step import run_step, step_parser
from preprocessing.video import VideoError, decode, open_video
from runtime.cli import UserError, run_main
from runtime.files import atomic_file

RATE_FACTORS = (23, 28, 32)  # the winner's; higher is smaller and worse


def compressed_file(video: Video, output: Path) -> Path:
    return output / video.path.parent.name / f"{video.name}.mp4"


def compress_video(video: Video, output: Path, seed: int) -> None:
    """Re-encode one video. Its quality follows from its name and the seed.

    Raises:
        VideoError: the video cannot be read, or holds no frame.
    """
    quality = random.Random(f"{seed} {video.name}").choice(RATE_FACTORS)
    with atomic_file(compressed_file(video, output)) as temporary:
        with (
            open_video(video.path) as source,
            av.open(str(temporary), "w", format="mp4") as target,
        ):
            stream = source.streams.video[0]
            encoder = target.add_stream(
                "libx264",
                rate=stream.average_rate,
                options={"crf": str(quality), "threads": "1"},
            )
            encoder.width, encoder.height = (
                stream.width - stream.width % 2,
                stream.height - stream.height % 2,
            )
            encoder.pix_fmt = "yuv420p"
            frames = 0
            for frame in decode(source, stream):
                # evenly spaced by the frame rate, so that frame numbers stay those of the source
                frame = frame.reformat(encoder.width, encoder.height, "yuv420p")
                frame.pts, frame.time_base = frames, 1 / stream.average_rate
                target.mux(encoder.encode(frame))
                frames += 1
            target.mux(encoder.encode())
        if not frames:
            raise VideoError(f"{video.path}: no frame could be decoded")


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="a new DFDC folder"
    )
    parser.add_argument(
        "--seed", type=int, default=777, help="of the quality of each video"
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
    for metadata in options.root_dir.glob("dfdc_train_part_*/metadata.json"):
        target = options.output_dir / metadata.parent.name
        if target.is_dir():
            with atomic_file(target / metadata.name) as temporary:
                shutil.copyfile(metadata, temporary)
    return status


if __name__ == "__main__":
    run_main(main)
