"""Make a small data set in DFDC's layout: real and fake videos of synthetic actors.

    python -m demo.make_dataset --output-dir demo/out/data

Writes OUT/dfdc_train_part_N/{*.mp4, metadata.json}   H.264 with sound, as DFDC's
       OUT/test_videos/{*.mp4, labels.csv}            filename,label,original,difficulty; actors that no part shows
What exists is kept. The same options give the same videos with the same FFmpeg.
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from demo.actors import FRAME_SIZE, Scene, make_actor
from demo.face_swap import FaceSwap
from runtime.cli import (
    UserError,
    fraction,
    make_parser,
    non_negative_int,
    positive_int,
    run_main,
)
from runtime.executor import ExecutorOptions, map_items
from runtime.files import atomic_file, write_csv

FRAMES_PER_SECOND = 25
SAMPLE_RATE = 16000  # Hz
PARTS = (
    0,
    3,
    6,
    9,
    12,
)  # part 0 is in fold 0, which validates; the others are in folds 1 to 4
TWO_ACTORS_EVERY = 4  # every fourth shot shows two people


@dataclass(frozen=True)
class Clip:
    """One video to make. `donors` holds an actor for each of `actors`, or nothing for a real video."""

    path: Path
    actors: tuple[int, ...]
    scene: int
    frames: int
    donors: tuple[int, ...] = ()
    difficulty: float | None = None
    original: str | None = None


def plan_folder(
    folder: Path, actors: list[int], options: argparse.Namespace
) -> list[Clip]:
    """Each actor's shots, and the fakes of each with other actors of the folder as donors."""
    clips = []
    for position, actor in enumerate(actors):
        for shot in range(options.shots):
            scene = actor * 100 + shot
            rng = np.random.default_rng([5, scene])
            cast = (actor,)
            if (position + shot) % TWO_ACTORS_EVERY == TWO_ACTORS_EVERY - 1:
                cast += (actors[(position + 1) % len(actors)],)
            real = Clip(folder / _name(scene, "real"), cast, scene, options.frames)
            clips.append(real)
            others = [other for other in actors if other not in cast]
            for fake in range(options.fakes):
                donors = tuple(
                    int(donor) for donor in rng.choice(others, len(cast), replace=False)
                )
                difficulty = round(float(rng.uniform(*options.difficulty)), 3)
                path = folder / _name(scene, f"fake{fake}")
                clips.append(
                    Clip(
                        path,
                        cast,
                        scene,
                        options.frames,
                        donors,
                        difficulty,
                        real.path.name,
                    )
                )
    return clips


def make_clip(clip: Clip) -> None:
    """Draw, swap and encode one video."""
    scene = Scene([make_actor(actor) for actor in clip.actors], clip.scene)
    swaps = [
        FaceSwap(make_actor(donor), clip.difficulty, clip.scene + donor)
        for donor in clip.donors
    ]
    with (
        atomic_file(clip.path) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            options={"crf": "20", "preset": "veryfast", "threads": "1"},
        )
        video.width, video.height = FRAME_SIZE
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for number in range(clip.frames):
            time = number / FRAMES_PER_SECOND
            frame = scene.draw(time)
            for person, swap in enumerate(swaps):
                frame = swap(frame, scene.landmarks(person, time))
            container.mux(
                video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
            )
        container.mux(video.encode())
        for frame in _hum(clip):
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def _hum(clip: Clip):
    """A soft tone as long as the video, its pitch the actor's."""
    total = clip.frames * SAMPLE_RATE // FRAMES_PER_SECOND
    time = np.arange(total) / SAMPLE_RATE
    wave = (
        0.05
        * np.sin(2 * np.pi * (110 + 7 * (clip.actors[0] % 20)) * time)
        * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    )
    for start in range(
        0, total - 1023, 1024
    ):  # AAC's frame; the last, shorter one is left out
        frame = av.AudioFrame.from_ndarray(
            wave[None, start : start + 1024].astype(np.float32), "fltp", "mono"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        yield frame


def write_metadata(folder: Path, clips: list[Clip]) -> None:
    """DFDC's metadata.json for a training part."""
    entries = {}
    for clip in clips:
        entry = {
            "label": "FAKE" if clip.original else "REAL",
            "split": "train",
            "original": clip.original,
        }
        entries[clip.path.name] = {
            key: value for key, value in entry.items() if value is not None
        }
    with atomic_file(folder / "metadata.json") as temporary:
        temporary.write_text(json.dumps(entries, indent=1))


def write_labels(folder: Path, clips: list[Clip]) -> None:
    """The answers for the test videos."""
    rows = [
        [clip.path.name, int(bool(clip.original)), clip.original, clip.difficulty]
        for clip in clips
    ]
    write_csv(
        folder / "labels.csv",
        ["filename", "label", "original", "difficulty"],
        sorted(rows),
    )


def _keep_options(options: argparse.Namespace) -> None:
    """Note what the data is made with; data made with other options must not be mixed with it."""
    path = options.output_dir / "options.json"
    ours = json.dumps(
        {
            key: value
            for key, value in vars(options).items()
            if key not in ("output_dir", "workers")
        }
    )
    if path.exists() and path.read_text() != ours:
        raise UserError(
            f"{options.output_dir}: was made with other options; delete it, or give another --output-dir"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(ours)


def _name(scene: int, kind: str) -> str:
    """Ten letters that tell nothing, as DFDC's names."""
    digest = hashlib.sha256(f"{scene} {kind}".encode()).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest[:10]) + ".mp4"


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(
        "--actors", type=positive_int, default=40, help="in the training parts"
    )
    parser.add_argument(
        "--test-actors",
        type=positive_int,
        default=12,
        help="in test_videos, all of them new",
    )
    parser.add_argument(
        "--shots", type=positive_int, default=2, help="real videos of each actor"
    )
    parser.add_argument(
        "--fakes", type=positive_int, default=2, help="fake videos of each real one"
    )
    parser.add_argument(
        "--frames",
        type=positive_int,
        default=80,
        help=f"of each video, {FRAMES_PER_SECOND} a second",
    )
    parser.add_argument(
        "--difficulty",
        type=fraction,
        nargs=2,
        default=(0.0, 0.5),
        metavar=("MIN", "MAX"),
        help="how hard the fakes are to see, each drawn between these: 0 is plain, 1 is hard (demo/face_swap.py)",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        default=os.cpu_count(),
        help="videos made at a time; 0: in this process",
    )
    options = parser.parse_args(argv)
    # a swap in a shot of two needs two donors who are not in it
    if options.actors < 4 * len(PARTS) or options.test_actors < 4:
        raise UserError(
            f"--actors must be at least {4 * len(PARTS)} and --test-actors at least 4: each part needs four"
        )
    _keep_options(options)
    groups = np.array_split(np.arange(options.actors), len(PARTS))
    folders = {
        options.output_dir / f"dfdc_train_part_{part}": group
        for part, group in zip(PARTS, groups)
    }
    folders[options.output_dir / "test_videos"] = np.arange(options.test_actors) + 1000
    plans = {
        folder: plan_folder(folder, actors.tolist(), options)
        for folder, actors in folders.items()
    }
    missing = [
        clip for clips in plans.values() for clip in clips if not clip.path.exists()
    ]
    for _, _, error in map_items(
        make_clip,
        missing,
        ExecutorOptions(options.workers),
        "make demo videos",
        "video",
    ):
        if error is not None:
            raise error
    for folder, clips in plans.items():
        (write_labels if folder.name == "test_videos" else write_metadata)(
            folder, clips
        )
    made = {folder.name: len(clips) for folder, clips in plans.items()}
    print(
        f"demo data in {options.output_dir}: "
        + ", ".join(f"{count} in {name}" for name, count in made.items())
    )
    return 0


if __name__ == "__main__":
    run_main(main)
