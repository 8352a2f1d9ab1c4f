"""Disguise videos as DFDC's organisers disguised 79 % of their test videos.

    python -m evaluation.disguise --test-dir VIDEOS --output-dir OUT \\
        [--labels labels.csv] [--kinds blur …] [--per-video 1]

Reads  the videos and their labels (filename,label, …)
Writes OUT/{video}__{disguise}.mp4, the undisguised copies as {video}__none.mp4;
       OUT/labels.csv: filename, label, all other columns of the labels, source,
       disguise, strength (the sampled parameters as JSON)
Method: `evaluation.perturbations` on decoded frames, encoded by PyAV with x264; the
       audio is copied. Each copy's strength follows from the seed, the video's name and
       the disguise.
"""

import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import av
import numpy as np

from evaluation.perturbations import NONE, PERTURBATIONS, draw_strength
from evaluation.tables import read_label_rows, read_labels
from inference.videos import find_videos
from preprocessing.frame import frame_to_rgb
from preprocessing.video import X264_OPTIONS, choose_stream, decode, open_video
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.executor import add_executor_options, executor_options, map_items
from runtime.files import atomic_file, write_csv

RATE_FACTOR = 18  # x264's CRF where the disguise is not the quality: hardly visible
AUDIO_CODECS = ("aac", "mp3")  # copied to MP4; others are dropped

Frames = Iterator[np.ndarray]  # (H, W, 3) uint8 RGB
# Source video, disguise, output file. A plain tuple, which workers of a cluster can
# unpickle: a class of this module would be in `__main__`.
Job = tuple[Path, str, Path]


def disguise_video(job: Job, seed: int) -> None:
    """Make one disguised copy of a video.

    Raises:
        VideoError: the video cannot be read.
    """
    source, disguise, target = job
    if disguise == NONE:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    strength = draw_strength(disguise, source.name, seed)
    apply = PERTURBATIONS[disguise].apply
    with open_video(source) as video:
        stream, _ = choose_stream(source, video)
        rate = stream.average_rate or Fraction(25)
        frames: Frames = (frame_to_rgb(frame) for frame in decode(video, stream))
        if disguise == "frame_rate":
            rate, frames = _drop_frames(frames, rate, strength["frames_a_second"])
        elif disguise == "slow_motion":
            rate = (rate * Fraction(strength["speed"])).limit_denominator(1000)
        if apply is not None:
            frames = (
                apply(frame, strength, number) for number, frame in enumerate(frames)
            )
        has_audio = disguise not in ("silent", "slow_motion")
        rate_factor = strength.get("rate_factor", RATE_FACTOR)
        _encode(frames, rate, target, rate_factor, source if has_audio else None)


def _drop_frames(
    frames: Frames, rate: Fraction, max_rate: float
) -> tuple[Fraction, Frames]:
    """Lower the frame rate to at most `max_rate` by dropping frames evenly."""
    new = min(rate, Fraction(max_rate).limit_denominator(1000))
    kept = (
        frame
        for number, frame in enumerate(frames)
        if int((number + 1) * new / rate) > int(number * new / rate)
    )
    return new, kept


def _encode(
    frames: Frames,
    rate: Fraction,
    target: Path,
    rate_factor: int,
    audio_source: Path | None,
) -> None:
    """Encode frames as H.264 in MP4, atomically, with the audio of another file."""
    with (
        atomic_file(target) as temporary,
        av.open(str(temporary), "w", format="mp4") as output,
    ):
        options = X264_OPTIONS | {"crf": str(rate_factor), "preset": "veryfast"}
        stream = output.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        first = next(frames, None)
        if first is None:
            raise UserError(f"{target}: its source holds no frame that can be decoded")
        # 4:2:0 needs even sides
        height, width = (side - side % 2 for side in first.shape[:2])
        stream.height, stream.width = height, width
        audio = _AudioCopier(audio_source, output) if audio_source else None
        for number, frame in enumerate(chain([first], frames)):
            cropped = np.ascontiguousarray(frame[:height, :width])
            picture = av.VideoFrame.from_ndarray(cropped, format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
        if audio:
            audio.copy()


class _AudioCopier:
    """Copies a video's audio packets without re-encoding, if MP4 takes the codec."""

    def __init__(self, path: Path, output: av.container.OutputContainer):
        self._source = open_video(path)
        self._output = output
        self._stream: av.AudioStream | None = None
        audio = self._source.streams.audio
        if audio and audio[0].codec_context.name in AUDIO_CODECS:
            self._stream = output.add_stream_from_template(audio[0])

    def copy(self) -> None:
        if self._stream is not None:
            for packet in self._source.demux(self._source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = self._stream
                    self._output.mux(packet)
        self._source.close()


def plan(
    videos: Sequence[Path],
    disguises: Sequence[str],
    per_video: int,
    seed: int,
    folder: Path,
) -> list[Job]:
    """Choose the disguises of each video.

    Each video gets `NONE` and `per_video` disguises, sampled without replacement; all
    of them if `per_video` is 0.
    """
    jobs = []
    for video in videos:
        chosen = disguises
        if per_video:
            rng = random.Random(f"{seed} {video.name}")
            count = min(per_video, len(disguises))
            chosen = sorted(rng.sample(disguises, count))
        jobs += [
            (video, disguise, folder / f"{video.stem}__{disguise}.mp4")
            for disguise in [NONE, *chosen]
        ]
    return jobs


def find_labels(folder: Path) -> Path:
    """The labels file in a folder of videos.

    Raises:
        UserError: there is none.
    """
    for name in ("labels.csv", "metadata.json"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: holds neither labels.csv nor metadata.json; give --labels"
    )


def _write_labels(
    path: Path,
    jobs: Sequence[Job],
    rows: Mapping[str, dict],
    labels: Mapping[str, int],
    seed: int,
) -> None:
    """Write the labels of the disguised copies.

    Args:
        rows: all that the labels file says of each source video, by file name.
        labels: 0 or 1 by file name.
    """
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    others = [column for column in columns if column not in ("filename", "label")]
    table = []
    for source, disguise, target in jobs:
        strength = ""
        if disguise != NONE:
            strength = json.dumps(draw_strength(disguise, source.name, seed))
        kept = [rows[source.name].get(column) or "" for column in others]
        label = labels[source.name]
        table.append([target.name, label, *kept, source.name, disguise, strength])
    header = ["filename", "label", *others, "source", "disguise", "strength"]
    write_csv(path, header, table)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--test-dir", type=Path, required=True, help="folder of videos")
    parser.add_argument(
        "--labels",
        type=Path,
        help="their labels: CSV (filename,label, …) or metadata.json; if not given, "
        "labels.csv or metadata.json in that folder",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--kinds",
        nargs="+",
        action="extend",
        choices=PERTURBATIONS,
        default=list(PERTURBATIONS),
        metavar="KIND",
        help=f"disguises, of {', '.join(PERTURBATIONS)}",
    )
    parser.add_argument(
        "--per-video",
        type=non_negative_int,
        default=0,
        help="disguises sampled for each video; 0: each gets all",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the disguises and their strengths"
    )
    add_executor_options(parser)
    options = parser.parse_args(argv)
    labels_file = options.labels or find_labels(options.test_dir)
    rows, labels = read_label_rows(labels_file), read_labels(labels_file)
    videos, _ = find_videos(options.test_dir)
    videos = [path for path in videos if path.name in labels]
    if not videos:
        raise UserError(
            f"{labels_file}: names none of the videos in {options.test_dir}"
        )
    kinds = list(dict.fromkeys(options.kinds))
    jobs = plan(videos, kinds, options.per_video, options.seed, options.output_dir)
    todo = [job for job in jobs if not job[2].exists()]
    failed: set[Path] = set()
    for (_, _, target), _, error in map_items(
        partial(disguise_video, seed=options.seed),
        todo,
        executor_options(options),
        "disguise",
        "video",
    ):
        if isinstance(error, UserError):
            failed.add(target)
            print(f"left out: {error}", file=sys.stderr)
        elif error is not None:
            raise error
    done = [job for job in jobs if job[2] not in failed]
    labels_csv = options.output_dir / "labels.csv"
    _write_labels(labels_csv, done, rows, labels, options.seed)
    print(
        f"{options.output_dir}: {len(done)} copies of {len(videos)} videos, "
        f"{len(failed)} left out; labels.csv lists them"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
