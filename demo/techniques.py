"""Five techniques that change a face without learning, each with traces of its own.

| technique   | as                                        | its trace                        |
|-------------|-------------------------------------------|----------------------------------|
| swap        | the face of another person, as DFDC's     | seams, colours, features that do |
|             | "MM/NN face swap"                         | not fit                          |
| autoencoder | what an autoencoder paints                | fine detail is missing, a tint   |
| upsampling  | transposed convolutions of a generator    | a periodic pattern               |
| denoising   | a face that was rendered, not filmed      | no noise of the camera           |
| reenactment | mouth, eyes and brows moved               | warped features, nothing else    |

Each frame is changed separately. The difficulty, 0 to 1, controls how visible the traces
are; at 1 they are hardly visible.

Sources: for the swap Dolhansky et al., "The DeepFake Detection Challenge Dataset" (2020);
for the pattern Odena et al., "Deconvolution and Checkerboard Artifacts" (2016).
"""

from typing import NamedTuple

import cv2
import numpy as np

from demo.actors import EYES_NOSE_MOUTH, OUTLINE, Actor

PATCH_MARGIN = 12  # pixels of the donor's texture around its landmarks
EYES, MOUTH = slice(0, 2), slice(3, 5)  # of an actor's landmarks
BROWS = slice(len(EYES_NOSE_MOUTH), len(EYES_NOSE_MOUTH) + 3)


class Face(NamedTuple):
    """A face in a frame.

    Attributes:
        frame: (H, W, 3) float32 RGB, 0..255.
        landmarks: (K, 2) float32, in pixels.
        mask: (H, W) float32 0..1, what will be blended in.
        window: rows and columns of all that the mask covers.
    """

    frame: np.ndarray
    landmarks: np.ndarray
    mask: np.ndarray
    window: tuple[slice, slice]

    @property
    def inside(self) -> np.ndarray:
        """The frame in the window, (h, w, 3)."""
        return self.frame[self.window]


class Technique:
    """Changes faces in the frames of a video. All randomness is drawn from a seed.

    Args:
        donor: the actor whose face a swap inserts.
        difficulty: 0 (plain traces) to 1 (hardly visible).
        seed: of the jitter, and of what is constant in a video.
    """

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        self.difficulty = difficulty
        self._rng = np.random.default_rng([4, seed])

    def __call__(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Change one face.

        Args:
            frame: (H, W, 3) uint8 RGB.
            landmarks: (K, 2), of the face, in pixels; `demo.actors` says which.

        Returns:
            The frame with the changed face, (H, W, 3) uint8 RGB.
        """
        jitter = self._rng.normal(0, self._between(2.0, 0.2), landmarks.shape)
        target = (landmarks + jitter).astype(np.float32)
        mask = self._mask(target[-len(OUTLINE) :], frame.shape[:2])
        original = frame.astype(np.float32)
        left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
        window = np.s_[top : top + height, left : left + width]
        changed = original.copy()
        changed[window] = self.paint(Face(original, target, mask, window))
        blended = original + mask[..., None] * (changed - original)
        return np.clip(blended, 0, 255).astype(np.uint8)

    def paint(self, face: Face) -> np.ndarray:
        """The changed face, (h, w, 3) float32 of the window's size."""
        raise NotImplementedError

    def _between(self, easy: float, hard: float) -> float:
        """A value between those of difficulty 0 and 1."""
        return easy + (hard - easy) * self.difficulty

    def _mask(self, outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A soft mask (H, W) float32 0..1 of the outline's convex hull."""
        mask = np.zeros(shape, np.float32)
        hull = cv2.convexHull(np.round(outline).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 1.0)
        # the blur of the edge, in parts of the face's width
        softness = max(np.ptp(outline[:, 0]) * self._between(0.02, 0.12), 0.5)
        inner = cv2.erode(mask, np.ones((3, 3)), iterations=max(round(softness), 1))
        return cv2.GaussianBlur(inner, (0, 0), softness)


class FaceSwap(Technique):
    """Another person's face: landmarks, warp, colour transfer, blended mask.

    The face is 12 pixels wide at difficulty 0, and 72, about the original's, at 1; of
    the difference in colour 0.6 remain, and none.
    """

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        super().__init__(donor, difficulty, seed)
        left, top = np.floor(donor.landmarks.min(axis=0) - PATCH_MARGIN).astype(int)
        right, bottom = np.ceil(donor.landmarks.max(axis=0) + PATCH_MARGIN).astype(int)
        face = donor.texture[top:bottom, left:right, :3]
        height, width = face.shape[:2]
        # learned swaps generate the face at a fixed small size, and so does this one
        size = self._between(12, 72) * np.array([1, height / width])
        size = np.round(size).astype(int)
        self._patch = cv2.resize(face, size.tolist(), interpolation=cv2.INTER_AREA)
        landmarks = donor.landmarks - [left, top] + 0.5
        self._landmarks = landmarks * size / [width, height] - 0.5

    def paint(self, face: Face) -> np.ndarray:
        matrix = _fit_affine(self._landmarks, face.landmarks)
        swapped = cv2.warpAffine(
            self._patch,
            matrix,
            face.frame.shape[1::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        window = face.window
        return self._match_colours(swapped[window], face.inside, face.mask[window])

    def _match_colours(
        self, face: np.ndarray, original: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """Transfer the colours of the original to the face.

        Moves mean and standard deviation of each Lab channel toward the original's
        (Reinhard et al., "Color Transfer between Images", 2001). Images (H, W, 3)
        float32 RGB 0..255.
        """
        inside = mask > 0.5
        source, target = (
            cv2.cvtColor(np.ascontiguousarray(image) / 255, cv2.COLOR_RGB2Lab)
            for image in (face, original)
        )
        mean, std = source[inside].mean(axis=0), source[inside].std(axis=0)
        target_mean, target_std = (
            target[inside].mean(axis=0),
            target[inside].std(axis=0),
        )
        matched = (source - mean) * (target_std / np.maximum(std, 1)) + target_mean
        strength = self._between(0.4, 1.0)
        mixed = (source + strength * (matched - source)).astype(np.float32)
        return cv2.cvtColor(mixed, cv2.COLOR_Lab2RGB) * 255


class Autoencoder(Technique):
    """The face at a low resolution, 14 to 48 pixels wide, with a slight tint."""

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        super().__init__(donor, difficulty, seed)
        self._tint = self._rng.uniform(-1, 1, 3) * self._between(8, 1)

    def paint(self, face: Face) -> np.ndarray:
        height, width = face.inside.shape[:2]
        small = round(self._between(14, 48))
        small_size = (small, max(1, round(small * height / width)))
        code = cv2.resize(face.inside, small_size, interpolation=cv2.INTER_AREA)
        painted = cv2.resize(code, (width, height), interpolation=cv2.INTER_CUBIC)
        return (painted + self._tint).astype(np.float32)


class Upsampling(Technique):
    """The pattern of transposed convolutions whose stride does not divide the kernel.

    Every second and every fourth row and column is brighter, by 8 % at difficulty 0 and
    1.5 % at 1.
    """

    def paint(self, face: Face) -> np.ndarray:
        gain = np.ones(face.inside.shape[:2], np.float32)
        for stride in (2, 4):
            for axis, length in enumerate(gain.shape):
                wave = np.cos(2 * np.pi * np.arange(length) / stride)
                gain *= np.expand_dims(1 + self._between(0.08, 0.015) * wave, 1 - axis)
        return face.inside * gain[..., None]


class Denoising(Technique):
    """The face without the camera's noise and the skin's texture, its edges kept."""

    def paint(self, face: Face) -> np.ndarray:
        inside = np.ascontiguousarray(face.inside)
        levels = self._between(40, 10)  # differences of grey levels that are smoothed
        return cv2.bilateralFilter(inside, 9, levels, 3)


class Reenactment(Technique):
    """Mouth, eyes and brows are moved, by up to 6 % of the face's width, 2 % at best."""

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        super().__init__(donor, difficulty, seed)
        self._directions = self._rng.uniform(-1, 1, (3, 2))
        self._phases = self._rng.uniform(0, 2 * np.pi, 3)
        self._frame = 0

    def paint(self, face: Face) -> np.ndarray:
        width = float(np.ptp(face.landmarks[-len(OUTLINE) :, 0]))
        height, whole_width = face.frame.shape[:2]
        y, x = np.mgrid[:height, :whole_width].astype(np.float32)
        moved_x, moved_y = x.copy(), y.copy()
        self._frame += 1
        swing = np.sin(self._frame / 6 + self._phases)
        for part, direction, now in zip((MOUTH, EYES, BROWS), self._directions, swing):
            offset = direction * (0.5 + 0.5 * now) * width * self._between(0.06, 0.02)
            for point in face.landmarks[part]:
                squared = (x - point[0]) ** 2 + (y - point[1]) ** 2
                bump = np.exp(-squared / (2 * (0.14 * width) ** 2))
                moved_x -= bump * np.float32(offset[0])
                moved_y -= bump * np.float32(offset[1])
        moved = cv2.remap(face.frame, moved_x, moved_y, cv2.INTER_LINEAR)
        return moved[face.window]


TECHNIQUES = {
    "swap": FaceSwap,
    "autoencoder": Autoencoder,
    "upsampling": Upsampling,
    "denoising": Denoising,
    "reenactment": Reenactment,
}
UNSEEN = "reenactment"  # no training part has it


def _fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares affine map (2, 3) from points (K, 2) to points (K, 2)."""
    points = np.column_stack([source, np.ones(len(source))])
    return np.linalg.lstsq(points, target, rcond=None)[0].T.astype(np.float32)
