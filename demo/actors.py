"""Synthetic actors: variations of one public-domain portrait, animated in a scene.

Reads  `skimage.data.astronaut()`, NASA's portrait of Eileen Collins (public domain),
       which scikit-image ships

`Actor` is a person as an RGBA texture with landmarks. Actors differ in the shape of the
face, the colours of skin, hair and suit, the light and the side of the parting. `Scene`
renders actors frame by frame, with a background, camera shake and head movements of its
own. Everything is drawn from a seed.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

# Landmarks of the portrait, x and y in its pixels: eyes, nose, mouth corners (as MTCNN
# finds them), then the outline of the region that a swap replaces: brows, cheeks, chin
# (placed by hand).
EYES_NOSE_MOUTH = [(205, 102), (247, 104), (225, 129), (202, 139), (245, 142)]
OUTLINE = [
    (186, 92),
    (225, 84),
    (265, 94),
    (266, 132),
    (250, 168),
    (225, 180),
    (203, 167),
    (184, 130),
]
LANDMARKS = np.array(EYES_NOSE_MOUTH + OUTLINE, np.float32)
FACE_CENTRE = (225.0, 125.0)
FACE_WIDTH = 87.0  # of MTCNN's box on the portrait, pixels

FRAME_SIZE = (320, 240)  # width, height in pixels
NOISE_MARGIN = 64  # pixels; the noise is larger than a frame, each frame gets a window

# Regions of the portrait for its segmentation: polygons, and ellipses (centre, axes,
# angle) of the face, the hair and the collar.
PERSON_POLYGON = [
    (0, 511),
    (30, 300),
    (110, 160),
    (310, 160),
    (370, 300),
    (511, 380),
    (511, 511),
]
SUIT_POLYGON = [(60, 511), (60, 330), (110, 280), (320, 280), (350, 340), (380, 511)]
PERSON_ELLIPSES = [
    ((225, 115), (38, 70), 0),
    ((228, 80), (65, 50), 0),
    ((210, 222), (92, 68), 10),
]


@dataclass(frozen=True)
class Actor:
    """A person.

    Attributes:
        texture: (H, W, 4) float32 RGBA, colours 0..255, alpha 0..1.
        landmarks: (K, 2) float32, in pixels of the texture.
    """

    texture: np.ndarray
    landmarks: np.ndarray


@dataclass(frozen=True)
class Placement:
    """The position of an actor in a scene.

    Attributes:
        centre: of the face, in pixels.
        face_width: in pixels.
        phases: of the five sinusoids of the head's movement.
    """

    centre: tuple[float, float]
    face_width: float
    phases: np.ndarray


@lru_cache(maxsize=8)
def make_actor(seed: int) -> Actor:
    """Draw an actor. The same seed gives the same actor."""
    rng = np.random.default_rng([1, seed])
    rgb, alpha, hair, suit = _portrait()
    rgb = _recolour(rgb, hair, suit, rng)
    rgb = rgb * _light(rgb.shape[:2], rng)[..., None]
    offsets = _shape(rng)
    texture = np.dstack([np.clip(rgb, 0, 255), alpha]).astype(np.float32)
    height, width = alpha.shape
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    grid = grid.astype(np.float32)
    source = grid - _displacement(grid, offsets)
    texture = cv2.remap(
        texture, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    landmarks = LANDMARKS + _displacement(LANDMARKS, offsets)
    if rng.random() < 0.5:
        texture = np.ascontiguousarray(texture[:, ::-1])
        landmarks = np.stack([width - 1 - landmarks[:, 0], landmarks[:, 1]], axis=1)
    return Actor(texture, landmarks.astype(np.float32))


class Scene:
    """A shot of one or two actors; background, light and movement come from a seed."""

    def __init__(self, actors: list[Actor], seed: int):
        self.actors = actors
        self._rng = np.random.default_rng([2, seed])
        self._background = _make_background(self._rng)
        self._shake = self._rng.uniform(0, 2 * np.pi, 4)
        self._gain = self._rng.uniform(0.9, 1.1)
        width, height = FRAME_SIZE
        noise = self._rng.standard_normal(
            (height + NOISE_MARGIN, width + NOISE_MARGIN, 3), np.float32
        )
        self._noise = noise * np.float32(self._rng.uniform(0.5, 2.0))  # grey levels
        self._placements = [self._place(number) for number in range(len(actors))]

    def _place(self, number: int) -> Placement:
        width, height = FRAME_SIZE
        share = (number + 0.5) / len(self.actors)
        centre = (
            width * share + self._rng.uniform(-12, 12),
            height * self._rng.uniform(0.38, 0.48),
        )
        widths = (58, 74) if len(self.actors) == 1 else (50, 57)
        face_width = self._rng.uniform(*widths)
        return Placement(centre, face_width, self._rng.uniform(0, 2 * np.pi, 5))

    def matrix(self, number: int, time: float) -> np.ndarray:
        """The affine map (2, 3) from an actor's texture to the frame.

        Args:
            number: of the actor in the scene.
            time: in seconds.
        """
        actor, placement = self.actors[number], self._placements[number]
        sway = np.sin(np.array([1.1, 0.8, 1.7, 0.6, 1.3]) * time * 2 + placement.phases)
        shake = np.sin(np.array([2.3, 1.9]) * time + self._shake[:2])
        scale = placement.face_width / FACE_WIDTH * (1 + 0.03 * sway[0])
        angle = np.deg2rad(6 * sway[1])
        linear = scale * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        # a slight turn of the head
        linear = linear @ np.array([[1 - 0.05 * abs(sway[2]), 0.04 * sway[3]], [0, 1]])
        x, y = FACE_CENTRE
        mirrored = actor.landmarks[0, 0] > actor.landmarks[1, 0]
        face = np.array([actor.texture.shape[1] - 1 - x if mirrored else x, y])
        centre = np.array(placement.centre) + 6 * sway[3:] + 3 * shake
        return np.column_stack([linear, centre - linear @ face]).astype(np.float32)

    def landmarks(self, number: int, time: float) -> np.ndarray:
        """An actor's landmarks (K, 2) in frame pixels."""
        matrix = self.matrix(number, time)
        return self.actors[number].landmarks @ matrix[:, :2].T + matrix[:, 2]

    def draw(self, time: float) -> np.ndarray:
        """Render the frame at `time` seconds, (H, W, 3) uint8 RGB."""
        drift = 3 * np.sin(np.array([2.3, 1.9]) * time + self._shake[:2])
        shift = np.array([[1, 0, drift[0] - 10], [0, 1, drift[1] - 10]], np.float32)
        frame = cv2.warpAffine(
            self._background, shift, FRAME_SIZE, borderMode=cv2.BORDER_REPLICATE
        )
        for number, actor in enumerate(self.actors):
            matrix = self.matrix(number, time)
            layer = cv2.warpAffine(
                actor.texture, matrix, FRAME_SIZE, flags=cv2.INTER_AREA
            )
            frame += layer[..., 3:] * (layer[..., :3] - frame)
        frame *= self._gain
        # The camera noise depends only on the scene and the time, so that a fake has
        # the noise of its original.
        rng = np.random.default_rng(round(time * 1000))
        left, top = rng.integers(0, NOISE_MARGIN, 2)
        frame += self._noise[top : top + frame.shape[0], left : left + frame.shape[1]]
        return np.clip(frame, 0, 255, out=frame).astype(np.uint8)


@lru_cache(maxsize=1)
def _portrait() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Segment the portrait.

    Returns:
        rgb: (H, W, 3) float32, 0..255.
        person, hair, suit: (H, W) float32, soft masks 0..1.
    """
    import skimage.data

    rgb = skimage.data.astronaut()
    person = _segment_person(rgb)
    hair, face = np.zeros_like(person), np.zeros_like(person)
    cv2.ellipse(hair, (228, 85), (85, 75), 0, 0, 360, 1, -1)
    cv2.ellipse(face, (225, 131), (45, 64), 0, 0, 360, 1, -1)
    suit = np.zeros_like(person)
    suit[190:] = 1
    hair *= 1 - face
    soft = [
        cv2.GaussianBlur(mask, (0, 0), sigma)
        for mask, sigma in ((person, 1.0), (hair, 4.0), (suit, 8.0))
    ]
    return rgb.astype(np.float32), *soft


def _segment_person(rgb: np.ndarray) -> np.ndarray:
    """GrabCut, initialised by hand. Returns a mask (H, W) float32 of 0 and 1."""
    labels = np.full(rgb.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.ellipse(labels, (228, 110), (95, 105), 0, 0, 360, cv2.GC_PR_FGD, -1)
    cv2.fillPoly(labels, [np.array(PERSON_POLYGON)], cv2.GC_PR_FGD)
    for centre, axes, angle in PERSON_ELLIPSES:
        cv2.ellipse(labels, centre, axes, angle, 0, 360, cv2.GC_FGD, -1)
    cv2.fillPoly(labels, [np.array(SUIT_POLYGON)], cv2.GC_FGD)
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(rgb, labels, None, background, foreground, 6, cv2.GC_INIT_WITH_MASK)
    person = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, components, stats, _ = cv2.connectedComponentsWithStats(person)
    largest = 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    return (components == largest).astype(np.float32)


def _recolour(
    rgb: np.ndarray, hair: np.ndarray, suit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Vary the colours of skin, hair and suit in Lab; (H, W, 3) float32 0..255."""
    # L 0..100, a and b about -100..100
    lab = cv2.cvtColor(rgb / 255, cv2.COLOR_RGB2Lab)
    skin = np.array([rng.uniform(0.82, 1.06), rng.uniform(-4, 4), rng.uniform(-5, 6)])
    lab[..., 0] *= skin[0]
    lab[..., 1:] += skin[1:]
    lab[..., 0] *= 1 + hair * (rng.uniform(0.55, 1.15) - 1)
    lab[..., 1:] += hair[..., None] * rng.uniform([-3, -12], [8, 8])
    angle = rng.uniform(0, 2 * np.pi)  # rotates the hue of the suit
    a, b = lab[..., 1].copy(), lab[..., 2].copy()
    lab[..., 1] += suit * (np.cos(angle) * a - np.sin(angle) * b - a)
    lab[..., 2] += suit * (np.sin(angle) * a + np.cos(angle) * b - b)
    return cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_Lab2RGB) * 255


def _light(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A directional light: factors (H, W) that brighten one side of the face."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    dx, dy = x - FACE_CENTRE[0], y - FACE_CENTRE[1]
    side = (np.cos(angle) * dx + np.sin(angle) * dy) / FACE_WIDTH
    return 1 + strength * np.tanh(side)


def _shape(
    rng: np.random.Generator,
) -> list[tuple[tuple[float, float], float, np.ndarray]]:
    """Draw Gaussian bumps that each move a part of the face.

    Returns:
        List of (centre, radius, offset), all in pixels of the portrait.
    """
    eyes, cheeks, chin = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-4, 4)
    brows, nose = rng.uniform(-3, 3), rng.uniform(-3, 3)
    smile, mouth = rng.uniform(-2, 2), rng.uniform(-3, 3)
    bumps = [
        ((205, 102), 16, (-eyes, 0)),
        ((247, 104), 16, (eyes, 0)),
        ((203, 90), 14, (0, brows)),
        ((248, 92), 14, (0, brows)),
        ((225, 129), 14, (0, nose)),
        ((202, 140), 14, (-mouth, smile)),
        ((245, 142), 14, (mouth, smile)),
        ((186, 140), 26, (-cheeks, 0)),
        ((264, 142), 26, (cheeks, 0)),
        ((225, 180), 30, (0, chin)),
    ]
    return [
        (centre, radius, np.array(offset, np.float32))
        for centre, radius, offset in bumps
    ]


def _displacement(points: np.ndarray, bumps: list) -> np.ndarray:
    """The sum of the bumps' offsets at points (..., 2)."""
    total = np.zeros_like(points, dtype=np.float32)
    for centre, radius, offset in bumps:
        difference = points - np.array(centre, np.float32)
        squared = (difference**2).sum(axis=-1, keepdims=True)
        total += np.exp(-squared / (2 * radius**2)) * offset
    return total


def _make_background(rng: np.random.Generator) -> np.ndarray:
    """A smooth texture of a few colours, (H + 20, W + 20, 3) float32."""
    width, height = FRAME_SIZE[0] + 20, FRAME_SIZE[1] + 20
    texture = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 12):
        coarse = rng.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        layer = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        texture += layer * (2 / cells)
    base = rng.uniform(40, 170, 3)
    colours = base + 60 * (texture - texture.mean(axis=(0, 1)))
    return np.clip(colours, 0, 255).astype(np.float32)
