"""The perturbations of DFDC's test videos: their strengths, and what they do to frames.

`PERTURBATIONS` holds them by name. `evaluation.disguise` applies them to videos.

Method: the augmenters and distractors that Dolhansky et al. name ("The DeepFake
       Detection Challenge (DFDC) Dataset", 2020). Their strengths were never published;
       `Perturbation.source` names the source of each bound here. AugLy, by one of
       DFDC's authors, would be the natural library, but it needs Pillow before 9,
       opencv-python beside the headless one and a system FFmpeg; so this is OpenCV.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from preprocessing.faces import INFERENCE_THRESHOLDS, half_size, load_detector

NONE = "none"  # the undisguised copy
LINES = 1080  # sizes in pixels are for frames of this height, and scaled to others
FONT = cv2.FONT_HERSHEY_DUPLEX

Strength = dict[str, Any]  # the sampled parameters of a perturbation, JSON values
Colour = Sequence[int]  # RGB, 0 to 255


@dataclass(frozen=True)
class Perturbation:
    """One way to disguise a video.

    Attributes:
        draw: samples the strength.
        apply: changes a frame, (H, W, 3) uint8 RGB, given the strength and the frame's
            number; None where the encoder does the work (`evaluation.disguise`).
        source: where the bounds of the strength are from.
    """

    draw: Callable[[random.Random], Strength]
    apply: Callable[[np.ndarray, Strength, int], np.ndarray] | None
    source: str


def draw_strength(name: str, video: str, seed: int) -> Strength:
    """Sample a strength, which follows from the perturbation, the video and the seed.

    Args:
        name: of the perturbation; `NONE` has no strength.
        video: the video's file name.
    """
    if name == NONE:
        return {}
    return PERTURBATIONS[name].draw(random.Random(f"{seed} {name} {video}"))


def blur(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    sigma = strength["sigma"] * frame.shape[0] / LINES + 1e-3
    return cv2.GaussianBlur(frame, (0, 0), sigma)


def brightness(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    return _to_uint8(frame.astype(np.float32) + 255 * strength["level"])


def contrast(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    return _to_uint8((frame.astype(np.float32) - 127.5) * strength["factor"] + 127.5)


def grey(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def mirror(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    return np.ascontiguousarray(frame[:, ::-1])


def noise(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    rng = np.random.default_rng([strength["seed"], number])
    gaussian = rng.normal(0, strength["deviation"], frame.shape)
    return _to_uint8(frame + gaussian.astype(np.float32))


def resolution(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    height, width = (
        max(2, round(side * strength["scale"] / 2) * 2) for side in frame.shape[:2]
    )
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def rotation(frame: np.ndarray, strength: Strength, _: int) -> np.ndarray:
    height, width = frame.shape[:2]
    centre = width / 2, height / 2
    matrix = cv2.getRotationMatrix2D(centre, strength["degrees"], 1)
    return cv2.warpAffine(frame, matrix, (width, height))


def picture(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """Overlay an emoji, a laughing face."""
    side = max(8, round(strength["size"] * frame.shape[0]))
    left, top = _position(strength, number, frame.shape, side)
    frame = frame.copy()
    x, y = left + side // 2, top + side // 2
    yellow, brown, red = (250, 205, 60), (60, 40, 20), (120, 30, 30)
    _fill_circle(frame, (x, y), side // 2, yellow)
    for eye in (-1, 1):
        centre = x + eye * side // 6, y - side // 8
        _fill_circle(frame, centre, max(1, side // 14), brown)
    mouth, axes = (x, y + side // 12), (side // 4, side // 5)
    cv2.ellipse(frame, mouth, axes, 0, 0, 180, red, -1, cv2.LINE_AA)
    return frame


def shapes(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """Overlay filled circles and squares."""
    frame = frame.copy()
    for shape in strength["shapes"]:
        side = max(4, round(shape["size"] * frame.shape[0]))
        motion = shape | {"movement": strength["movement"]}
        x, y = _position(motion, number, frame.shape, side)
        if shape["round"]:
            centre = x + side // 2, y + side // 2
            _fill_circle(frame, centre, side // 2, shape["colour"])
        else:
            cv2.rectangle(frame, (x, y), (x + side, y + side), shape["colour"], -1)
    return frame


def dots(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """Overlay coloured dots, at new positions in each frame."""
    frame = frame.copy()
    rng = np.random.default_rng([strength["seed"], number])
    height, width = frame.shape[:2]
    radius = max(1, height // 180)
    limits = width, height, 256, 256, 256
    for x, y, *colour in rng.integers(0, limits, (strength["count"], 5)).tolist():
        _fill_circle(frame, (x, y), radius, colour)
    return frame


def text(frame: np.ndarray, strength: Strength, number: int) -> np.ndarray:
    """Overlay a line of text."""
    frame = frame.copy()
    words, colour = strength["words"], strength["colour"]
    scale = strength["size"] * frame.shape[0] / 30
    thickness = max(1, round(2 * scale))
    (width, height), _ = cv2.getTextSize(words, FONT, scale, 1)
    x, y = _position(strength, number, frame.shape, min(width, frame.shape[1] // 2))
    corner = x, y + height
    cv2.putText(frame, words, corner, FONT, scale, colour, thickness, cv2.LINE_AA)
    return frame


def dog_mask(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    """Overlay a dog's nose, tongue and ears on each face."""
    frame = frame.copy()
    for face in _detect_faces(frame):
        across, down = face.across, face.down
        for side in (-1, 1):
            ear = face.eyes + side * 1.1 * across
            _fill_ellipse(
                frame, ear - 1.15 * down, 0.45 * across, 0.75 * down, (110, 70, 40)
            )
            _fill_ellipse(
                frame, ear - 1.05 * down, 0.25 * across, 0.5 * down, (200, 150, 130)
            )
        _fill_ellipse(frame, face.nose, 0.35 * across, 0.25 * down, (30, 25, 25))
        tongue = face.mouth + 0.45 * down
        _fill_ellipse(frame, tongue, 0.25 * across, 0.5 * down, (225, 90, 110))
    return frame


def flower_crown(frame: np.ndarray, _: Strength, __: int) -> np.ndarray:
    """Overlay a row of flowers on each forehead."""
    frame = frame.copy()
    pink, yellow = (235, 80, 120), (250, 210, 80)
    violet, white = (170, 100, 220), (245, 245, 240)
    colours = (pink, yellow, violet, white, pink)
    flowers = list(zip((-1, -0.5, 0, 0.5, 1), colours))
    for face in _detect_faces(frame):
        across, down = face.across, face.down
        for offset, colour in flowers:
            rise = 1.15 - 0.25 * offset**2
            centre = face.eyes + offset * across * 1.1 - rise * down
            for petal in range(5):
                angle = 2 * math.pi * petal / 5
                direction = math.cos(angle) * across + math.sin(angle) * down
                petal_centre = centre + 0.2 * direction
                _fill_ellipse(frame, petal_centre, 0.18 * across, 0.18 * down, colour)
            _fill_ellipse(frame, centre, 0.12 * across, 0.12 * down, (120, 70, 30))
    return frame


class FaceGeometry(NamedTuple):
    """Points (x, y) and vectors of a face in pixels of the frame.

    eyes: the point between the eyes.
    across: half the vector from the left eye to the right.
    down: the vector from `eyes` to `mouth`.
    mouth: the point between the corners of the mouth.
    landmarks: (5, 2), as in `preprocessing.faces.Faces`.
    """

    eyes: np.ndarray
    across: np.ndarray
    down: np.ndarray
    nose: np.ndarray
    mouth: np.ndarray
    landmarks: np.ndarray


def _detect_faces(frame: np.ndarray) -> Iterator[FaceGeometry]:
    (faces,) = load_detector(INFERENCE_THRESHOLDS, "cpu")([half_size(frame)])
    for points in faces.landmarks * 2:
        eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
        across = (points[1] - points[0]) / 2
        yield FaceGeometry(eyes, across, mouth - eyes, points[2], mouth, points)


def _position(
    strength: Strength, number: int, shape: tuple[int, ...], side: int
) -> tuple[int, int]:
    """The upper left corner of an overlay in a frame.

    "rolling" moves it by 1/60 of the width each frame, "jumping" to a random position
    every tenth frame.
    """
    x, y = strength["x"], strength["y"]
    if strength["movement"] == "rolling":
        x = (x + number / 60) % 1
    elif strength["movement"] == "jumping":
        x, y = np.random.default_rng([strength["seed"], number // 10]).random(2)
    return int(x * max(shape[1] - side, 1)), int(y * max(shape[0] - side, 1))


def _fill_circle(
    frame: np.ndarray, centre: tuple[int, int], radius: int, colour: Colour
) -> None:
    cv2.circle(frame, centre, radius, colour, -1, cv2.LINE_AA)


def _fill_ellipse(
    frame: np.ndarray,
    centre: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    colour: Colour,
) -> None:
    """Fill the ellipse with the semi-axes `across` and `down`."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    outline = centre + np.cos(angles) * across + np.sin(angles) * down
    cv2.fillPoly(frame, [np.round(outline).astype(np.int32)], colour, cv2.LINE_AA)


def _to_uint8(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, 255).astype(np.uint8)


def _no_strength(_: random.Random) -> Strength:
    return {}


def _uniform(name: str, low: float, high: float) -> Callable[[random.Random], Strength]:
    return lambda rng: {name: round(rng.uniform(low, high), 3)}


def _signed_uniform(
    name: str, low: float, high: float
) -> Callable[[random.Random], Strength]:
    """A magnitude from low to high with a random sign."""
    return lambda rng: {name: round(rng.choice((-1, 1)) * rng.uniform(low, high), 3)}


def _draw_contrast(rng: random.Random) -> Strength:
    weaker_or_stronger = rng.uniform(0.4, 0.7), rng.uniform(1.5, 2.5)
    return {"factor": round(rng.choice(weaker_or_stronger), 3)}


def _draw_noise(rng: random.Random) -> Strength:
    return {
        "deviation": round(rng.uniform(10, 25), 3),
        "seed": rng.randrange(2**31),
    }


def _draw_quality(rng: random.Random) -> Strength:
    return {"rate_factor": rng.randint(29, 40)}


def _draw_picture(rng: random.Random) -> Strength:
    return {"size": round(rng.uniform(0.15, 0.25), 3), **_draw_motion(rng)}


def _draw_shapes(rng: random.Random) -> Strength:
    return {
        "movement": _draw_movement(rng),
        "shapes": [
            {
                "size": round(rng.uniform(0.05, 0.2), 3),
                "round": rng.random() < 0.5,
                "colour": _draw_colour(rng),
                **_draw_motion(rng),
            }
            for _ in range(rng.randint(1, 5))
        ],
    }


def _draw_dots(rng: random.Random) -> Strength:
    return {"count": rng.randint(50, 100), "seed": rng.randrange(2**31)}


def _draw_text(rng: random.Random) -> Strength:
    return {
        "words": "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=10)),
        "colour": _draw_colour(rng),
        "size": round(rng.uniform(0.06, 0.12), 3),
        **_draw_motion(rng),
    }


def _draw_motion(rng: random.Random) -> Strength:
    """What `_position` needs."""
    return {
        "movement": _draw_movement(rng),
        "x": round(rng.random(), 3),
        "y": round(rng.random(), 3),
        "seed": rng.randrange(2**31),
    }


def _draw_movement(rng: random.Random) -> str:
    return rng.choice(("still", "rolling", "jumping"))


def _draw_colour(rng: random.Random) -> list[int]:
    return [rng.randrange(256) for _ in range(3)]


PREVIEW = (
    "Dolhansky et al., DFDC preview (2019): 15 frames a second, a quarter of the "
    "resolution, lower quality"
)
AUGLY = "AugLy 1.0.0's default"
OURS = "no published bound; chosen so that a person still recognises the face"
NO_STRENGTH = "no strength"
PRIVATE_TEST = "in the private test set; no strength"

PERTURBATIONS: dict[str, Perturbation] = {
    "blur": Perturbation(
        _uniform("sigma", 2, 10),
        blur,
        f"{AUGLY} range of sigma ends at 10 pixels; taken at {LINES} lines",
    ),
    "brightness": Perturbation(
        _signed_uniform("level", 0.15, 0.35),
        brightness,
        f"{AUGLY} level is 0.15; the upper end: {OURS}",
    ),
    "contrast": Perturbation(_draw_contrast, contrast, OURS),
    "frame_rate": Perturbation(_uniform("frames_a_second", 15, 24), None, PREVIEW),
    "grey": Perturbation(_no_strength, grey, NO_STRENGTH),
    "mirror": Perturbation(_no_strength, mirror, NO_STRENGTH),
    "silent": Perturbation(_no_strength, None, NO_STRENGTH),
    "noise": Perturbation(
        _draw_noise, noise, f"{AUGLY} level of noise is 25 grey levels"
    ),
    "quality": Perturbation(
        _draw_quality,
        None,
        f"{AUGLY} range of x264's rate factor ends at 40; its manual calls values up "
        "to 28 sane",
    ),
    "resolution": Perturbation(_uniform("scale", 0.25, 0.5), resolution, PREVIEW),
    "rotation": Perturbation(
        _signed_uniform("degrees", 5, 15), rotation, f"{AUGLY} rotation is 15 degrees"
    ),
    "picture": Perturbation(
        _draw_picture,
        picture,
        f"{AUGLY} emoji is 0.15 of the height; the upper end: {OURS}",
    ),
    "shapes": Perturbation(_draw_shapes, shapes, OURS),
    "dots": Perturbation(_draw_dots, dots, f"{AUGLY} number of dots is 100"),
    "text": Perturbation(
        _draw_text, text, f"{AUGLY} text has 10 letters; their size: {OURS}"
    ),
    "dog_mask": Perturbation(_no_strength, dog_mask, PRIVATE_TEST),
    "flower_crown": Perturbation(_no_strength, flower_crown, PRIVATE_TEST),
    "slow_motion": Perturbation(
        _uniform("speed", 0.25, 0.75),
        None,
        f"{AUGLY} range of speed begins at 0.25; the sound is left out",
    ),
}
