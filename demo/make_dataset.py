"""Make a small data set in DFDC's layout: real and fake videos of synthetic actors.

    python -m demo.make_dataset --output-dir demo/out/data

Writes OUT/dfdc_train_part_N/{*.mp4, metadata.json}   H.264 with sound, as DFDC's
       OUT/test_videos/{*.mp4, labels.csv}            filename, label, original,
                                                      technique, difficulty

Method: the actors of the test videos appear in no training part, nor does one of their
        techniques. Existing videos are kept. The same options give the same videos with the same version of FFmpeg.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import av
import numpy as np

from demo.actors import FRAME_SIZE, Scene, make_actor
from demo.techniques import TECHNIQUES, UNSEEN
from preprocessing.video import X264_OPTIONS
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
# Part 0 is in fold 0, the validation fold; the others are in folds 1 to 4.
PARTS = (0, 3, 6, 9, 12)
TWO_ACTORS_EVERY = 4  # every fourth shot shows two people
AAC_FRAME = 1024  # samples
TEST_FOLDER = "test_videos"


@dataclass(frozen=True)
class Clip:
    """One video to make.

    Attributes:
        path: of the video.
        actors: seeds of the actors that the scene shows.
        scene: seed of the scene.
        frames: number of frames.
        donors: seed of the donor for each of `actors`, whose face a swap shows; empty for
            a real video.
        technique: of a fake, of `demo.techniques.TECHNIQUES`.
        difficulty: of the technique; None for a real video.
        original: file name of the real video of a fake.
    """

    path: Path
    actors: tuple[int, ...]
    scene: int
    frames: int
    donors: tuple[int, ...] = ()
    technique: str = ""
    difficulty: float | None = None
    original: str | None = None


def plan_folder(
    folder: Path,
    actors: list[int],
    techniques: Sequence[str],
    options: argparse.Namespace,
) -> list[Clip]:
    """Plan the videos of a folder: real shots of each actor, and fakes of each shot.

    The donors of the fakes are other actors of the folder. The fakes' techniques take
    turns.
    """
    clips: list[Clip] = []
    turns = cycle(techniques)
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
                donors = rng.choice(others, len(cast), replace=False).tolist()
                difficulty = round(float(rng.uniform(*options.difficulty)), 3)
                clip = replace(
                    real,
                    path=folder / _name(scene, f"fake{fake}"),
                    donors=tuple(donors),
                    technique=next(turns),
                    difficulty=difficulty,
                    original=real.path.name,
                )
                clips.append(clip)
    return clips


def make_clip(clip: Clip) -> None:
    """Render one video, change the faces of a fake, and encode it."""
    scene = Scene([make_actor(actor) for actor in clip.actors], clip.scene)
    fakers = [
        TECHNIQUES[clip.technique](
            make_actor(donor), clip.difficulty or 0.0, clip.scene + donor
        )
        for donor in clip.donors
    ]
    with (
        atomic_file(clip.path) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            options=X264_OPTIONS | {"crf": "20", "preset": "veryfast"},
        )
        video.width, video.height = FRAME_SIZE
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for number in range(clip.frames):
            time = number / FRAMES_PER_SECOND
            frame = scene.draw(time)
            for person, change in enumerate(fakers):
                frame = change(frame, scene.landmarks(person, time))
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        for frame in _tone(clip):
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def _tone(clip: Clip) -> Iterator[av.AudioFrame]:
    """A quiet tone of the length of the video; the pitch depends on the actor.

    A last frame shorter than AAC_FRAME is dropped.
    """
    samples = clip.frames * SAMPLE_RATE // FRAMES_PER_SECOND
    time = np.arange(samples) / SAMPLE_RATE
    pitch = 110 + 7 * (clip.actors[0] % 20)  # Hz
    tremolo = 1 + 0.5 * np.sin(2 * np.pi * 3 * time)
    wave = (0.05 * np.sin(2 * np.pi * pitch * time) * tremolo).astype(np.float32)
    for start in range(0, samples - AAC_FRAME + 1, AAC_FRAME):
        block = wave[None, start : start + AAC_FRAME]
        frame = av.AudioFrame.from_ndarray(block, "fltp", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        yield frame


def write_metadata(folder: Path, clips: list[Clip]) -> None:
    """Write DFDC's metadata.json for a training part."""
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
    """Write the ground truth of the test videos."""
    rows = [
        [
            clip.path.name,
            int(bool(clip.original)),
            clip.original,
            f"unseen: {UNSEEN}" if clip.technique == UNSEEN else clip.technique,
            clip.difficulty,
        ]
        for clip in clips
    ]
    header = ["filename", "label", "original", "technique", "difficulty"]
    write_csv(folder / "labels.csv", header, sorted(rows))


def _save_options(options: argparse.Namespace) -> None:
    """Save the options beside the data, so that data of other options is not mixed in.

    Raises:
        UserError: the folder was made with other options.
    """
    path = options.output_dir / "options.json"
    ignored = ("output_dir", "workers")
    values = {key: value for key, value in vars(options).items() if key not in ignored}
    text = json.dumps(values)
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"{options.output_dir}: was made with other options; delete it, or give "
            "another --output-dir"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _name(scene: int, kind: str) -> str:
    """A file name of ten pseudo-random letters, as DFDC's."""
    digest = hashlib.sha256(f"{scene} {kind}".encode()).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest[:10]) + ".mp4"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(
        "--actors",
        type=positive_int,
        default=40,
        help="number of actors in the training parts",
    )
    parser.add_argument(
        "--test-actors",
        type=positive_int,
        default=12,
        help="number of actors in test_videos, none of them in the training parts",
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
        help=f"frames of each video, {FRAMES_PER_SECOND} a second",
    )
    parser.add_argument(
        "--difficulty",
        type=fraction,
        nargs=2,
        default=(0.6, 1.0),
        metavar=("MIN", "MAX"),
        help="range of the fakes' difficulty, 0 (plain artefacts) to 1 (hardly "
        "visible); see demo/techniques.py",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        default=os.cpu_count(),
        help="worker processes; 0: in this process",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    # a swap in a shot of two actors needs two further actors as donors
    if options.actors < 4 * len(PARTS) or options.test_actors < 4:
        raise UserError(
            f"--actors must be at least {4 * len(PARTS)} and --test-actors at least "
            "4: each part needs four"
        )
    _save_options(options)
    groups = np.array_split(np.arange(options.actors), len(PARTS))
    folders = {
        options.output_dir / f"dfdc_train_part_{part}": group
        for part, group in zip(PARTS, groups)
    }
    folders[options.output_dir / TEST_FOLDER] = np.arange(options.test_actors) + 1000
    seen = [name for name in TECHNIQUES if name != UNSEEN]
    plans = {
        folder: plan_folder(
            folder,
            actors.tolist(),
            list(TECHNIQUES) if folder.name == TEST_FOLDER else seen,
            options,
        )
        for folder, actors in folders.items()
    }
    missing = [
        clip for clips in plans.values() for clip in clips if not clip.path.exists()
    ]
    executor = ExecutorOptions(options.workers)
    outcomes = map_items(make_clip, missing, executor, "make demo videos", "video")
    for _, _, error in outcomes:
        if error is not None:
            raise error
    for folder, clips in plans.items():
        is_test = folder.name == TEST_FOLDER
        (write_labels if is_test else write_metadata)(folder, clips)
    counts = [f"{len(clips)} in {folder.name}" for folder, clips in plans.items()]
    print(f"demo data in {options.output_dir}: {', '.join(counts)}")
    return 0


if __name__ == "__main__":
    run_main(main)
