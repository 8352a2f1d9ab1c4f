"""Self-blended images and strong compression, beside slow obvious versions."""

import cv2
import numpy as np
import pytest

from training import codec, self_blend
from training.cutout import face_outline

LANDMARKS = np.array([[70, 80], [130, 78], [100, 115], [78, 150], [124, 149]])


@pytest.fixture
def crop(portrait):
    """The portrait's face, (240, 200, 3) uint8 RGB."""
    return np.ascontiguousarray(portrait[20:260, 130:330])


def test_a_blend_by_hand():
    source = np.full((1, 3, 3), 200, np.uint8)
    target = np.full((1, 3, 3), 101, np.uint8)
    mask = np.array([[0, 0.5, 1]], np.float32)
    mixed = self_blend.blend(source, target, mask)
    assert mixed[0, :, 0].tolist() == [101, 150, 200]  # 150.5 is rounded to even


def test_outside_of_the_mask_a_blend_is_the_crop_or_its_changed_copy(crop):
    """Where the mask is 0 nothing comes from the source; else the two are mixed."""
    kept, shares = 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        blended, mask = self_blend.self_blend(crop, LANDMARKS, rng)
        assert blended.shape == crop.shape and blended.dtype == np.uint8
        assert mask.min() == 0 and 0.24 < mask.max() <= 1
        shares.append((mask > 0).mean())
        kept += np.array_equal(blended[mask == 0], crop[mask == 0])
        again, _ = self_blend.self_blend(crop, LANDMARKS, np.random.default_rng(seed))
        np.testing.assert_array_equal(blended, again)
        assert np.abs(blended.astype(int) - crop).max() > 2
    assert 10 <= kept <= 30  # a coin says which side is changed
    assert 0.05 < np.median(shares) < 0.6


def test_ratios_are_the_published_ones(crop):
    """1 half of the time, else 0.25, 0.5 or 0.75."""
    highest = [
        self_blend.self_blend(crop, LANDMARKS, np.random.default_rng(seed))[1].max()
        for seed in range(300)
    ]
    nearest = [min((0.25, 0.5, 0.75, 1), key=lambda r: abs(r - h)) for h in highest]
    counts = [nearest.count(ratio) for ratio in (0.25, 0.5, 0.75, 1)]
    assert abs(counts[3] - 150) < 40 and all(
        abs(count - 50) < 30 for count in counts[:3]
    )


LANDMARKS_68 = np.array(
    # jaw, brows, nose, eyes and mouth of a face that is its own mirror image about x = 100
    [(100 - 50 * np.cos(t), 90 + 80 * np.sin(t)) for t in np.pi * np.arange(17) / 16]
    + [(62 + 7 * i, 68) for i in range(5)]
    + [(110 + 7 * i, 68) for i in range(5)]
    + [(100, 85 + 9 * i) for i in range(4)]
    + [(92 + 4 * i, 120) for i in range(5)]
    + [(64, 82), (68, 78), (76, 78), (80, 82), (76, 85), (68, 85)]
    + [(120, 82), (124, 78), (132, 78), (136, 82), (132, 85), (124, 85)]
    + [(80, 145), (86, 141), (93, 139), (100, 140), (107, 139), (114, 141), (120, 145)]
    + [(114, 151), (107, 153), (100, 154), (93, 153), (86, 151)]
    + [(84, 145), (93, 143), (100, 144), (107, 143), (116, 145)]
    + [(107, 147), (100, 148), (93, 147)]
)


def test_each_landmark_has_its_mirror_image():
    """On a face that is symmetric about x = 100, so that a slip of one index shows."""
    mirrored = LANDMARKS_68[self_blend.MIRRORED[68]]
    np.testing.assert_allclose(mirrored * (-1, 1) + (200, 0), LANDMARKS_68, atol=1e-9)
    assert sorted(self_blend.MIRRORED[68]) == list(range(68))
    assert np.array(LANDMARKS)[self_blend.MIRRORED[5]].tolist() == [
        *([130, 78], [70, 80], [100, 115], [124, 149], [78, 150])
    ]


def test_a_mirrored_face_lies_on_the_face():
    """Dots of two colours, one a side, change places; the landmarks stay."""
    image = np.zeros((200, 200, 3), np.uint8)
    turned = LANDMARKS @ [[0.98, 0.17], [-0.17, 0.98]] + (-5, 20)
    for (x, y), colour in zip(turned.round().astype(int), np.eye(5) * 200):
        cv2.circle(image, (int(x), int(y)), 6, colour[:3].tolist(), -1)
    mirrored = self_blend.mirrored(image, turned)
    for here, there in enumerate(self_blend.MIRRORED[5]):
        x, y = turned[here].round().astype(int)
        colour = mirrored[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1))
        np.testing.assert_allclose(colour, (np.eye(5) * 200)[there][:3], atol=40)
    np.testing.assert_array_equal(
        self_blend.mirrored(image, np.full((5, 2), 50)), image
    )


@pytest.mark.parametrize("landmarks", [LANDMARKS, LANDMARKS_68])
def test_a_part_blend_changes_a_part_of_the_face(crop, landmarks):
    """Outside of its mask it is the crop, or its copy of another colour."""
    outline = face_outline(landmarks, *crop.shape[:2])
    kept, shares = 0, []
    for seed in range(60):
        blended, mask = self_blend.part_blend(
            crop, landmarks, np.random.default_rng(seed)
        )
        assert blended.dtype == np.uint8 and mask.dtype == np.float32
        assert mask.shape == crop.shape[:2] and 0 <= mask.min() < mask.max() <= 1
        y, x = (np.average(axis, weights=mask) for axis in np.indices(mask.shape))
        assert outline[:, 0].min() < x < outline[:, 0].max()
        assert outline[:, 1].min() < y < outline[:, 1].max()
        kept += np.array_equal(blended[mask == 0], crop[mask == 0])
        shares.append((mask > 0.1).mean())
        assert np.abs(blended.astype(int) - crop)[mask > 0.3].max() > 2
    assert 30 <= kept <= 50  # 1 - 0.7 / 2 of 60
    assert max(shares) < 0.5 and min(shares) < 0.07
    again = self_blend.part_blend(crop, landmarks, np.random.default_rng(seed))
    np.testing.assert_array_equal(again[0], blended)


def test_a_part_is_moved_within_its_bounds(crop):
    """Each corner of a part 40 pixels wide, by shift, scale and rotation together."""
    centre = np.array([100.0, 120.0])
    dots = np.zeros(crop.shape[:2], np.uint8)
    dots[118:123, 118:123] = 255  # 20 pixels right of the centre
    for seed in range(30):
        moved = self_blend.move_part(dots, centre, np.random.default_rng(seed))
        y, x = (np.average(axis, weights=moved) for axis in np.indices(moved.shape))
        assert abs(x - 120) <= 0.06 * 200 + 2 + 1
        assert abs(y - 120) <= 0.04 * 240 + 22 * np.sin(np.deg2rad(6)) + 1


def slow_polygon(points, height, width):
    """Pixels whose centre is inside of a polygon, by the even-odd rule."""
    mask = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            inside = False
            for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0)):
                if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
                    inside = not inside
            mask[y, x] = inside
    return mask


@pytest.mark.parametrize("count", [5, 68, None])
def test_the_hull_of_landmarks(monkeypatch, count):
    """With radii that do not vary, the hull or outline as it is, but for its border."""
    monkeypatch.setattr(self_blend, "HULL_SCALES", (1.0, 1.0))
    rng = np.random.default_rng(0)
    height, width = 60, 50
    if count == 68:
        landmarks = rng.uniform((10, 12), (40, 50), (68, 2)).round().astype(np.int16)
        jaw_and_brows = landmarks[:27].astype(np.float32)
        points = cv2.convexHull(jaw_and_brows)[:, 0]
    else:
        landmarks = None if count is None else (LANDMARKS / 4).round().astype(np.int16)
        points = face_outline(landmarks, height, width)
    mask = self_blend.hull_mask((height, width), landmarks, rng)
    slow = slow_polygon(np.round(points), height, width)
    assert mask[slow].all()
    border = mask.astype(bool) & ~slow
    assert border.sum() <= 1.2 * cv2.arcLength(points.astype(np.float32), True)


def test_the_hulls_radius_varies_within_its_bounds(crop):
    areas = [
        self_blend.hull_mask(crop.shape, LANDMARKS, np.random.default_rng(seed)).sum()
        for seed in range(100)
    ]
    outline = face_outline(LANDMARKS, *crop.shape[:2]).astype(np.float32)
    area = cv2.contourArea(outline)
    assert 0.6 * area < min(areas) < 0.95 * area < max(areas) < 1.35 * area


def test_blurring_leaves_a_soft_mask_inside(crop):
    """Zero below 1 after the first blur: the mask only shrinks, but for the second."""
    mask = self_blend.hull_mask(crop.shape, LANDMARKS, np.random.default_rng(0))
    for seed in range(10):
        soft = self_blend.blur_mask(mask, np.random.default_rng(seed))
        assert soft.max() == pytest.approx(1, abs=1e-3) and soft.min() == 0
        assert soft.sum() < mask.sum()
        assert ((soft > 0.02) & (soft < 0.98)).sum() > 100


def test_an_elastic_deformation_beside_a_loop(monkeypatch):
    """Each pixel is the bilinear mean of the four around its displaced place."""
    rng = np.random.default_rng(3)
    mask = (rng.random((30, 40)) > 0.5).astype(np.float32)
    deformed = self_blend.deform(mask, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    moves = [
        50
        * cv2.GaussianBlur(rng.uniform(-1, 1, mask.shape).astype(np.float32), (0, 0), 7)
        for _ in range(2)
    ]
    assert 0.5 < np.abs(moves).max() < 20
    for y in range(30):
        for x in range(40):
            place = x + moves[0][y, x], y + moves[1][y, x]
            left, top = (int(np.floor(value)) for value in place)
            expected = 0.0
            for j in (0, 1):
                for i in (0, 1):
                    weight = (1 - abs(place[0] - left - i)) * (
                        1 - abs(place[1] - top - j)
                    )
                    if 0 <= top + j < 30 and 0 <= left + i < 40:
                        expected += weight * mask[top + j, left + i]
            assert deformed[y, x] == pytest.approx(expected, abs=0.05)


def test_sharpening_by_hand():
    image = np.full((5, 5, 3), 100, np.uint8)
    image[2, 2] = 110
    # 0.5 * 110 + 0.5 * (9 * 110 - 8 * 100) = 150; neighbours 0.5 * 100 + 0.5 * 90
    sharp = self_blend.sharpen(image, 0.5, 1.0)
    assert sharp[2, 2, 0] == 150 and sharp[1, 1, 0] == 95 and sharp[0, 0, 0] == 100


def test_a_move_stays_within_its_bounds(crop):
    for seed in range(30):
        mask = np.zeros(crop.shape[:2], np.float32)
        mask[119:122, 99:102] = 1
        _, moved = self_blend.move(crop, mask, np.random.default_rng(seed))
        y, x = (np.average(axis, weights=moved) for axis in np.indices(moved.shape))
        assert abs(x - 100) <= 0.03 * 200 + 1 and abs(y - 120) <= 0.015 * 240 + 1


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_compression_is_stronger_as_asked(crop):
    odd = crop[:-1, :-1]
    for image in (crop, odd):
        for method, mild, strong in (
            (codec.jpeg, 100, 40),
            (codec.fewer_pixels, 1.0, 0.25),
            (codec.h264, 17, 39),
        ):
            weak, hard = method(image, mild), method(image, strong)
            assert weak.shape == hard.shape == image.shape
            assert psnr(hard, image) < psnr(weak, image) - 3 or mild == 1.0
            assert psnr(weak, image) > 30 and 18 < psnr(hard, image) < 36
    np.testing.assert_array_equal(codec.fewer_pixels(crop, 1.0), crop)
    small = crop[:10, :10]
    np.testing.assert_array_equal(codec.h264(small, 30), small)


def test_each_compression_is_as_likely(crop, monkeypatch):
    taken = []
    for name in ("jpeg", "fewer_pixels", "h264"):
        monkeypatch.setattr(
            codec, name, lambda image, value, name=name: taken.append((name, value))
        )
    for seed in range(600):
        codec.compress(crop, np.random.default_rng(seed))
    for name, low, high in (
        ("jpeg", 40, 100),
        ("fewer_pixels", 0.25, 1),
        ("h264", 17, 39),
    ):
        values = [value for each, value in taken if each == name]
        assert 150 < len(values) < 250
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_the_same_seed_gives_the_same_bytes(crop):
    for seed in range(6):
        one, other = (
            codec.compress(crop, np.random.default_rng(seed)) for _ in range(2)
        )
        np.testing.assert_array_equal(one, other)
