"""A face swap without learning: landmarks, warp, colour transfer, blended mask, frame by frame.

DFDC's own set holds such a method beside the learned ones ("MM/NN face swap": morphable mask, nearest neighbour; Dolhansky
et al., "The DeepFake Detection Challenge Dataset", 2020). The difficulty, 0 to 1, says how hard the traces are to see:

| trace                          | difficulty 0 | difficulty 1 |
|--------------------------------|--------------|--------------|
| width of the swapped face      | 12 pixels    | 72 pixels (about its own) |
| share of the colour difference that remains | 0.6 | 0  |
| jitter of the landmarks        | 2 pixels     | 0.2 pixels   |
| softness of the mask's edge    | 2 % of the face's width | 12 % |
"""

import cv2
import numpy as np

from demo.actors import OUTLINE, Actor

PATCH_MARGIN = 12  # pixels of the donor's texture around its landmarks


class FaceSwap:
    """Puts a donor's face over a face in given frames. The jitter is drawn from a seed."""

    def __init__(self, donor: Actor, difficulty: float, seed: int):
        self.difficulty = difficulty
        self._rng = np.random.default_rng([4, seed])
        self._outline = slice(len(donor.landmarks) - len(OUTLINE), None)
        left, top = np.floor(donor.landmarks.min(axis=0) - PATCH_MARGIN).astype(int)
        right, bottom = np.ceil(donor.landmarks.max(axis=0) + PATCH_MARGIN).astype(int)
        face = donor.texture[top:bottom, left:right, :3]
        # a learned swap paints at a fixed small size; so does this one
        size = np.round(
            (12 + 60 * difficulty) * np.array([1, face.shape[0] / face.shape[1]])
        ).astype(int)
        self._patch = cv2.resize(face, size.tolist(), interpolation=cv2.INTER_AREA)
        self._landmarks = (donor.landmarks - [left, top] + 0.5) * size / [
            face.shape[1],
            face.shape[0],
        ] - 0.5

    def __call__(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Swap the face whose landmarks (K, 2) in pixels are given. Frame and result: (H, W, 3) uint8 RGB."""
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
        return np.clip(original + mask[..., None] * (face - original), 0, 255).astype(
            np.uint8
        )

    def _mask(self, outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros((size[1], size[0]), np.float32)
        cv2.fillConvexPoly(
            mask, cv2.convexHull(np.round(outline).astype(np.int32)), 1.0
        )
        width = np.ptp(outline[:, 0])
        softness = max(width * (0.02 + 0.1 * self.difficulty), 0.5)
        inner = cv2.erode(mask, np.ones((3, 3)), iterations=max(round(softness), 1))
        return cv2.GaussianBlur(inner, (0, 0), softness)

    def _match_colours(
        self, face: np.ndarray, original: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """Move mean and spread of each Lab channel toward the original's (Reinhard et al., "Color Transfer", 2001)."""
        box = cv2.boundingRect((mask > 0.05).astype(np.uint8))
        window = np.s_[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
        inside = mask[window] > 0.5
        labs = [
            cv2.cvtColor(np.ascontiguousarray(image[window]) / 255, cv2.COLOR_RGB2Lab)
            for image in (face, original)
        ]
        (mean, spread), (aim_mean, aim_spread) = [
            (lab[inside].mean(axis=0), lab[inside].std(axis=0)) for lab in labs
        ]
        matched = (labs[0] - mean) * (aim_spread / np.maximum(spread, 1)) + aim_mean
        strength = 0.4 + 0.6 * self.difficulty
        mixed = (labs[0] + strength * (matched - labs[0])).astype(np.float32)
        result = face.copy()
        result[window] = cv2.cvtColor(mixed, cv2.COLOR_Lab2RGB) * 255
        return result


def _fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The affine map (2, 3) that takes points (K, 2) to others with the least squared error."""
    points = np.column_stack([source, np.ones(len(source))])
    return np.linalg.lstsq(points, target, rcond=None)[0].T.astype(np.float32)
