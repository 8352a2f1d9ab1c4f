"""A face swap without learning: landmarks, warp, colour transfer, blended mask.

Each frame is swapped separately. DFDC itself contains such a method beside the learned
ones ("MM/NN face swap": morphable mask, nearest neighbour; Dolhansky et al., "The
DeepFake Detection Challenge Dataset", 2020). The difficulty, 0 to 1, controls how
visible the artefacts are:

| artefact                        | difficulty 0          | difficulty 1           |
|---------------------------------|-----------------------|------------------------|
| width of the swapped face       | 12 px                 | 72 px (about original) |
| remaining colour difference     | 0.6                   | 0                      |
| jitter of the landmarks         | 2 px                  | 0.2 px                 |
| blur of the mask's edge         | 2 % of the face width | 12 %                   |
"""

import cv2
import numpy as np

from demo.actors import OUTLINE, Actor

PATCH_MARGIN = 12  # pixels of the donor's texture around its landmarks


class FaceSwap:
    """Swaps a donor's face into frames. The jitter is drawn from a seed.

    Args:
        donor: the actor whose face is inserted.
        difficulty: 0 (plain artefacts) to 1 (hardly visible).
        seed: of the jitter.
    """

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        self.difficulty = difficulty
        self._rng = np.random.default_rng([4, seed])
        self._outline = slice(len(donor.landmarks) - len(OUTLINE), None)
        left, top = np.floor(donor.landmarks.min(axis=0) - PATCH_MARGIN).astype(int)
        right, bottom = np.ceil(donor.landmarks.max(axis=0) + PATCH_MARGIN).astype(int)
        face = donor.texture[top:bottom, left:right, :3]
        height, width = face.shape[:2]
        # learned swaps generate the face at a fixed small size, and so does this one
        size = (12 + 60 * difficulty) * np.array([1, height / width])
        size = np.round(size).astype(int)
        self._patch = cv2.resize(face, size.tolist(), interpolation=cv2.INTER_AREA)
        landmarks = donor.landmarks - [left, top] + 0.5
        self._landmarks = landmarks * size / [width, height] - 0.5

    def __call__(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Swap one face.

        Args:
            frame: (H, W, 3) uint8 RGB.
            landmarks: (K, 2), of the face to replace, in pixels.

        Returns:
            The frame with the donor's face, (H, W, 3) uint8 RGB.
        """
        jitter = self._rng.normal(0, 0.2 + 1.8 * (1 - self.difficulty), landmarks.shape)
        target = (landmarks + jitter).astype(np.float32)
        size = (frame.shape[1], frame.shape[0])
        matrix = _fit_affine(self._landmarks, target)
        face = cv2.warpAffine(
            self._patch,
            matrix,
            size,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        mask = self._mask(target[self._outline], size)
        original = frame.astype(np.float32)
        face = self._match_colours(face, original, mask)
        blended = original + mask[..., None] * (face - original)
        return np.clip(blended, 0, 255).astype(np.uint8)

    def _mask(self, outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A soft mask (H, W) float32 0..1 of the outline's convex hull."""
        mask = np.zeros((size[1], size[0]), np.float32)
        hull = cv2.convexHull(np.round(outline).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 1.0)
        width = np.ptp(outline[:, 0])
        softness = max(width * (0.02 + 0.1 * self.difficulty), 0.5)
        inner = cv2.erode(mask, np.ones((3, 3)), iterations=max(round(softness), 1))
        return cv2.GaussianBlur(inner, (0, 0), softness)

    def _match_colours(
        self, face: np.ndarray, original: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """Transfer the colours of the original to the face.

        Moves mean and standard deviation of each Lab channel toward the original's
        (Reinhard et al., "Color Transfer between Images", 2001). Images (H, W, 3)
        float32 RGB 0..255.
        """
        left, top, width, height = cv2.boundingRect((mask > 0.05).astype(np.uint8))
        window = np.s_[top : top + height, left : left + width]
        inside = mask[window] > 0.5
        source, target = (
            cv2.cvtColor(np.ascontiguousarray(image[window]) / 255, cv2.COLOR_RGB2Lab)
            for image in (face, original)
        )
        mean, std = source[inside].mean(axis=0), source[inside].std(axis=0)
        target_mean, target_std = (
            target[inside].mean(axis=0),
            target[inside].std(axis=0),
        )
        matched = (source - mean) * (target_std / np.maximum(std, 1)) + target_mean
        strength = 0.4 + 0.6 * self.difficulty
        mixed = (source + strength * (matched - source)).astype(np.float32)
        result = face.copy()
        result[window] = cv2.cvtColor(mixed, cv2.COLOR_Lab2RGB) * 255
        return result


def _fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares affine map (2, 3) from points (K, 2) to points (K, 2)."""
    points = np.column_stack([source, np.ones(len(source))])
    return np.linalg.lstsq(points, target, rcond=None)[0].T.astype(np.float32)
