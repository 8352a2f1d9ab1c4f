"""Disguised copies of a folder of videos, as DFDC's organisers disguised 79 % of their test videos.

    python -m evaluation.disguise --test-dir VIDEOS --output-dir OUT [--labels labels.csv] [--kinds blur …] [--per-video 1]

Reads  the videos and their labels (filename,label, …)
Writes OUT/{video}__{disguise}.mp4, the undisguised ones among them as {video}__none.mp4; and OUT/labels.csv: filename, label,
       all other columns of the labels, source, disguise, strength (what was drawn, as JSON)
Method: the augmenters and distractors that Dolhansky et al. name ("The DeepFake Detection Challenge (DFDC) Dataset", 2020).
       Their strengths were never published; `KINDS` names the source of each bound here. AugLy, by one of DFDC's authors,
       would be the natural library, but wants Pillow before 9, opencv-python beside the headless one and a system FFmpeg;
       so this is PyAV and OpenCV. Each copy's strength follows from the seed, the video's name and the disguise.
"""

import json
import math
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from evaluation.score import read_label_rows, read_labels
from inference.predict import find_videos
from preprocessing.faces import INFERENCE_THRESHOLDS, half_size, load_detector
from preprocessing.video import decode, frame_to_rgb, open_video
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.executor import add_executor_options, executor_options, map_items
from runtime.files import atomic_file, write_csv

NONE = "none"
RATE_FACTOR = 18  # of x264 where the quality is not the disguise: hardly visible
LINES = 1080  # sizes in pixels are for frames of so many lines, and scaled to others

Frames = Iterator[np.ndarray]  # (H, W, 3) uint8 RGB
Strength = dict[str, object]


@dataclass(frozen=True)
class Kind:
    """A disguise. `draw` gives its strength, `apply` changes each frame by it; `source` is where the bounds are from."""

    draw: Callable[[random.Random], Strength]
    apply: Callable[[np.ndarray, Strength, int], np.ndarray] | None
    source: str


def blur(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    return cv2.GaussianBlur(
        frame, (0, 0), strength["sigma"] * frame.shape[0] / LINES + 1e-3
    )


def brightness(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    return _clip(frame.astype(np.float32) + 255 * strength["level"])


def contrast(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    return _clip((frame.astype(np.float32) - 127.5) * strength["factor"] + 127.5)


def grey(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def mirror(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    return np.ascontiguousarray(frame[:, ::-1])


def noise(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    rng = np.random.default_rng([strength["seed"], number])
    return _clip(
        frame + rng.normal(0, strength["deviation"], frame.shape).astype(np.float32)
    )


def resolution(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    height, width = (
        max(2, round(side * strength["scale"] / 2) * 2) for side in frame.shape[:2]
    )
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def rotation(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    height, width = frame.shape[:2]
    return cv2.warpAffine(
        frame,
        cv2.getRotationMatrix2D((width / 2, height / 2), strength["degrees"], 1),
        (width, height),
    )


def picture(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """A laughing face, as an emoji pasted on."""
    side = max(8, round(strength["size"] * frame.shape[0]))
    x, y = _place(strength, number, frame.shape, side)
    frame = frame.copy()
    middle = (x + side // 2, y + side // 2)
    cv2.circle(frame, middle, side // 2, (250, 205, 60), -1, cv2.LINE_AA)
    for eye in (-1, 1):
        cv2.circle(
            frame,
            (middle[0] + eye * side // 6, middle[1] - side // 8),
            max(1, side // 14),
            (60, 40, 20),
            -1,
            cv2.LINE_AA,
        )
    cv2.ellipse(
        frame,
        (middle[0], middle[1] + side // 12),
        (side // 4, side // 5),
        0,
        0,
        180,
        (120, 30, 30),
        -1,
        cv2.LINE_AA,
    )
    return frame


def shapes(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    frame = frame.copy()
    for each in strength["shapes"]:
        side = max(4, round(each["size"] * frame.shape[0]))
        x, y = _place(
            each | {"movement": strength["movement"]}, number, frame.shape, side
        )
        if each["round"]:
            cv2.circle(
                frame,
                (x + side // 2, y + side // 2),
                side // 2,
                each["colour"],
                -1,
                cv2.LINE_AA,
            )
        else:
            cv2.rectangle(frame, (x, y), (x + side, y + side), each["colour"], -1)
    return frame


def dots(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """Coloured dots that jump to other places in each frame."""
    frame = frame.copy()
    rng = np.random.default_rng([strength["seed"], number])
    height, width = frame.shape[:2]
    for x, y, *colour in rng.integers(
        0, (width, height, 256, 256, 256), (strength["count"], 5)
    ).tolist():
        cv2.circle(frame, (x, y), max(1, height // 180), colour, -1, cv2.LINE_AA)
    return frame


def text(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    frame = frame.copy()
    scale = strength["size"] * frame.shape[0] / 30
    (width, height), _ = cv2.getTextSize(
        strength["words"], cv2.FONT_HERSHEY_DUPLEX, scale, 1
    )
    x, y = _place(strength, number, frame.shape, min(width, frame.shape[1] // 2))
    thickness = max(1, round(2 * scale))
    cv2.putText(
        frame,
        strength["words"],
        (x, y + height),
        cv2.FONT_HERSHEY_DUPLEX,
        scale,
        strength["colour"],
        thickness,
        cv2.LINE_AA,
    )
    return frame


def dog_mask(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    """A dog's nose, tongue and ears on each face."""
    frame = frame.copy()
    for eyes, across, down, nose, _, mouth in _faces(frame):
        for side in (-1, 1):
            _ellipse(
                frame,
                eyes + side * 1.1 * across - 1.15 * down,
                0.45 * across,
                0.75 * down,
                (110, 70, 40),
            )
            _ellipse(
                frame,
                eyes + side * 1.1 * across - 1.05 * down,
                0.25 * across,
                0.5 * down,
                (200, 150, 130),
            )
        _ellipse(frame, nose, 0.35 * across, 0.25 * down, (30, 25, 25))
        _ellipse(frame, mouth + 0.45 * down, 0.25 * across, 0.5 * down, (225, 90, 110))
    return frame


def flower_crown(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    """A row of flowers over each forehead."""
    frame = frame.copy()
    colours = (
        (235, 80, 120),
        (250, 210, 80),
        (170, 100, 220),
        (245, 245, 240),
        (235, 80, 120),
    )
    for eyes, across, down, *_ in _faces(frame):
        for place, colour in zip((-1, -0.5, 0, 0.5, 1), colours):
            middle = eyes + place * across * 1.1 - (1.15 - 0.25 * place**2) * down
            for petal in range(5):
                angle = 2 * math.pi * petal / 5
                _ellipse(
                    frame,
                    middle + 0.2 * (math.cos(angle) * across + math.sin(angle) * down),
                    0.18 * across,
                    0.18 * down,
                    colour,
                )
            _ellipse(frame, middle, 0.12 * across, 0.12 * down, (120, 70, 30))
    return frame


def _nothing(_: random.Random) -> Strength:
    return {}


def _uniform(name: str, low: float, high: float) -> Callable[[random.Random], Strength]:
    return lambda rng: {name: round(rng.uniform(low, high), 3)}


def _either_side(
    name: str, low: float, high: float
) -> Callable[[random.Random], Strength]:
    """From low to high, up or down."""
    return lambda rng: {name: round(rng.choice((-1, 1)) * rng.uniform(low, high), 3)}


def _colour(rng: random.Random) -> list[int]:
    return [rng.randrange(256) for _ in range(3)]


def _moving(rng: random.Random) -> Strength:
    return {
        "movement": rng.choice(("still", "rolling", "jumping")),
        "x": round(rng.random(), 3),
        "y": round(rng.random(), 3),
        "seed": rng.randrange(2**31),
    }


PREVIEW = "Dolhansky et al., DFDC preview (2019): 15 frames a second, a quarter of the resolution, lower quality"
AUGLY = "AugLy 1.0.0's default"
OURS = "no published bound; chosen so that a person still recognises the face"
KINDS: dict[str, Kind] = {
    "blur": Kind(
        _uniform("sigma", 2, 10),
        blur,
        f"{AUGLY} range of sigma ends at 10 pixels; taken at {LINES} lines",
    ),
    "brightness": Kind(
        _either_side("level", 0.15, 0.35),
        brightness,
        f"{AUGLY} level is 0.15; the upper end: {OURS}",
    ),
    "contrast": Kind(
        lambda rng: {
            "factor": round(
                rng.choice((rng.uniform(0.4, 0.7), rng.uniform(1.5, 2.5))), 3
            )
        },
        contrast,
        OURS,
    ),
    "frame_rate": Kind(_uniform("frames_a_second", 15, 24), None, PREVIEW),
    "grey": Kind(_nothing, grey, "no strength"),
    "mirror": Kind(_nothing, mirror, "no strength"),
    "silent": Kind(_nothing, None, "no strength"),
    "noise": Kind(
        lambda rng: {
            "deviation": round(rng.uniform(10, 25), 3),
            "seed": rng.randrange(2**31),
        },
        noise,
        f"{AUGLY} level of noise is 25 grey levels",
    ),
    "quality": Kind(
        lambda rng: {"rate_factor": rng.randint(29, 40)},
        None,
        f"{AUGLY} range of x264's rate factor ends at 40; up to 28 is what its manual calls sane",
    ),
    "resolution": Kind(_uniform("scale", 0.25, 0.5), resolution, PREVIEW),
    "rotation": Kind(
        _either_side("degrees", 5, 15), rotation, f"{AUGLY} rotation is 15 degrees"
    ),
    "picture": Kind(
        lambda rng: {"size": round(rng.uniform(0.15, 0.25), 3), **_moving(rng)},
        picture,
        f"{AUGLY} emoji is 0.15 of the height; the upper end: {OURS}",
    ),
    "shapes": Kind(
        lambda rng: {
            "movement": rng.choice(("still", "rolling", "jumping")),
            "shapes": [
                {
                    "size": round(rng.uniform(0.05, 0.2), 3),
                    "round": rng.random() < 0.5,
                    "colour": _colour(rng),
                    **_moving(rng),
                }
                for _ in range(rng.randint(1, 5))
            ],
        },
        shapes,
        OURS,
    ),
    "dots": Kind(
        lambda rng: {"count": rng.randint(50, 100), "seed": rng.randrange(2**31)},
        dots,
        f"{AUGLY} number of dots is 100",
    ),
    "text": Kind(
        lambda rng: {
            "words": "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=10)),
            "colour": _colour(rng),
            "size": round(rng.uniform(0.06, 0.12), 3),
            **_moving(rng),
        },
        text,
        f"{AUGLY} text has 10 letters; their size: {OURS}",
    ),
    "dog_mask": Kind(_nothing, dog_mask, "the private test's; no strength"),
    "flower_crown": Kind(_nothing, flower_crown, "the private test's; no strength"),
    "slow_motion": Kind(
        _uniform("speed", 0.25, 0.75),
        None,
        f"{AUGLY} range of speed begins at 0.25; the sound is left out",
    ),
}


def draw_strength(kind: str, video: str, seed: int) -> Strength:
    return (
        {}
        if kind == NONE
        else KINDS[kind].draw(random.Random(f"{seed} {kind} {video}"))
    )


def disguise_video(job: tuple[Path, str, Path], seed: int) -> None:
    """Make one disguised copy: of the video job[0] with the disguise job[1] as the file job[2].

    Raises:
        VideoError: the video cannot be read.
    """
    source, kind, target = job
    strength = draw_strength(kind, source.name, seed)
    if kind == NONE:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    apply = KINDS[kind].apply or (lambda frame, *_: frame)
    with open_video(source) as video:
        rate = video.streams.video[0].average_rate or Fraction(25)
        frames = (
            frame_to_rgb(frame) for frame in decode(video, video.streams.video[0])
        )
        if kind == "frame_rate":
            rate, frames = _at_rate(frames, rate, strength["frames_a_second"])
        elif kind == "slow_motion":
            rate = Fraction(rate * Fraction(strength["speed"])).limit_denominator(1000)
        frames = (apply(frame, strength, number) for number, frame in enumerate(frames))
        with_sound = kind not in ("silent", "slow_motion")
        _encode(
            frames,
            rate,
            target,
            strength.get("rate_factor", RATE_FACTOR),
            source if with_sound else None,
        )


def _at_rate(frames: Frames, old: Fraction, wanted: float) -> tuple[Fraction, Frames]:
    """Frames left out evenly, at most so many a second."""
    new = min(old, Fraction(wanted).limit_denominator(1000))
    return new, (
        frame
        for number, frame in enumerate(frames)
        if int((number + 1) * new / old) > int(number * new / old)
    )


def _encode(
    frames: Frames, rate: Fraction, target: Path, rate_factor: int, sound: Path | None
) -> None:
    with (
        atomic_file(target) as temporary,
        av.open(str(temporary), "w", format="mp4") as output,
    ):
        options = {"crf": str(rate_factor), "preset": "veryfast", "threads": "1"}
        stream = output.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        first = next(frames, None)
        if first is None:
            raise UserError(f"{target}: its source holds no frame that can be decoded")
        height, width = (side - side % 2 for side in first.shape[:2])
        stream.height, stream.width = height, width
        copier = _SoundCopier(sound, output) if sound else None
        for number, frame in enumerate(_chain(first, frames)):
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[:height, :width]), format="rgb24"
            )
            picture.pts, picture.time_base = number, 1 / rate
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
        if copier:
            copier.copy()


class _SoundCopier:
    """The sound of a video, packet by packet as it is, if it has one that MP4 takes."""

    def __init__(self, path: Path, output: av.container.OutputContainer):
        self._source, self._output, self._stream = open_video(path), output, None
        if self._source.streams.audio and self._source.streams.audio[
            0
        ].codec_context.name in ("aac", "mp3"):
            self._stream = output.add_stream_from_template(
                self._source.streams.audio[0]
            )

    def copy(self) -> None:
        for packet in (
            self._source.demux(self._source.streams.audio[0]) if self._stream else ()
        ):
            if packet.dts is not None:
                packet.stream = self._stream
                self._output.mux(packet)
        self._source.close()


def _chain(first: np.ndarray, others: Frames) -> Frames:
    yield first
    yield from others


def _place(
    strength: Strength, number: int, shape: tuple[int, ...], side: int
) -> tuple[int, int]:
    """The upper left corner: where it is, a 60th of the width further each frame, or anywhere anew every tenth frame."""
    x, y = strength["x"], strength["y"]
    if strength["movement"] == "rolling":
        x = (x + number / 60) % 1
    elif strength["movement"] == "jumping":
        x, y = np.random.default_rng([strength["seed"], number // 10]).random(2)
    return int(x * max(shape[1] - side, 1)), int(y * max(shape[0] - side, 1))


def _faces(frame: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each face, in pixels: between the eyes, half the way from eye to eye, from the eyes to the mouth, nose, box, mouth."""
    (faces,) = load_detector(INFERENCE_THRESHOLDS, "cpu")([half_size(frame)])
    for points in faces.landmarks * 2:
        eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
        yield eyes, (points[1] - points[0]) / 2, mouth - eyes, points[2], points, mouth


def _ellipse(
    frame: np.ndarray,
    middle: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    colour: tuple[int, ...],
) -> None:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    outline = middle + np.cos(angles) * across + np.sin(angles) * down
    cv2.fillPoly(frame, [np.round(outline).astype(np.int32)], colour, cv2.LINE_AA)


def _clip(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, 255).astype(np.uint8)


def plan(
    videos: list[Path], kinds: list[str], per_video: int, seed: int, folder: Path
) -> list[tuple[Path, str, Path]]:
    """Which video gets which disguises: `per_video` drawn for each, all if 0; and each undisguised."""
    jobs = []
    for video in videos:
        rng = random.Random(f"{seed} {video.name}")
        drawn = (
            sorted(rng.sample(kinds, min(per_video, len(kinds))))
            if per_video
            else kinds
        )
        jobs += [
            (video, kind, folder / f"{video.stem}__{kind}.mp4")
            for kind in [NONE, *drawn]
        ]
    return jobs


def find_labels(folder: Path) -> Path:
    """The labels that lie beside the videos.

    Raises:
        UserError: there are none.
    """
    for name in ("labels.csv", "metadata.json"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: holds neither labels.csv nor metadata.json; give --labels"
    )


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
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--per-video",
        type=non_negative_int,
        default=0,
        help="disguises drawn for each video; 0: each gets all",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the strengths")
    add_executor_options(parser)
    options = parser.parse_args(argv)
    labels = options.labels or find_labels(options.test_dir)
    rows, answers = read_label_rows(labels), read_labels(labels)
    videos = [path for path in find_videos(options.test_dir) if path.name in answers]
    if not videos:
        raise UserError(f"{labels}: names none of the videos in {options.test_dir}")
    jobs = plan(
        videos, options.kinds, options.per_video, options.seed, options.output_dir
    )
    failed: dict[Path, str] = {}
    missing = [job for job in jobs if not job[2].exists()]
    for (_, _, target), _, error in map_items(
        partial(disguise_video, seed=options.seed),
        missing,
        executor_options(options),
        "disguise",
        "video",
    ):
        if isinstance(error, UserError):
            failed[target] = str(error)
            print(f"left out: {error}", file=sys.stderr)
        elif error is not None:
            raise error
    columns = [
        key
        for key in dict.fromkeys(key for row in rows.values() for key in row)
        if key not in ("filename", "label")
    ]
    table = []
    for source, kind, target in jobs:
        if target not in failed:
            others = [rows[source.name].get(column) or "" for column in columns]
            strength = (
                json.dumps(draw_strength(kind, source.name, options.seed))
                if kind != NONE
                else ""
            )
            table.append(
                [
                    target.name,
                    answers[source.name],
                    *others,
                    source.name,
                    kind,
                    strength,
                ]
            )
    write_csv(
        options.output_dir / "labels.csv",
        ["filename", "label", *columns, "source", "disguise", "strength"],
        table,
    )
    print(
        f"{options.output_dir}: {len(table)} videos of {len(videos)}, {len(failed)} left out; labels.csv says what each is"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
