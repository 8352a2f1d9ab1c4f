"""The evidence on change over time: the pairs, the frames, the people, the tables."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from demo.make_dataset import Clip, make_clip
from evaluation import transitions
from evaluation.transitions import (
    APPEARANCE,
    FLICKER,
    SHUFFLED,
    SHUFFLED_MEAN,
    Condition,
    Faces,
    conditions,
    conditions_of,
    disturb,
    draw_disturbance,
    make_pair,
    paired_interval,
    split_people,
    test_clips,
    times_at_rate,
    training_batch,
)
from preprocessing.clips import shown_at
from runtime.cli import UserError
from tests.test_train import ROOT
from training.config import Config, load_config

test_clips.__test__ = False
T = 5


@pytest.fixture
def still(portrait):
    """The portrait's face as a clip of five equal frames, (5, 112, 112, 3)."""
    face = portrait[20:260, 118:358][::2, ::2][:112, :112]
    return np.repeat(face[None], T, axis=0)


def config():
    return Config(
        encoder="tf_efficientnet_lite0",
        input={"size": 112, "clip_frames": T},
        batch_size=8,
    )


def test_flicker_changes_from_frame_to_frame_and_its_real_does_not(still):
    real, fake = make_pair(still, FLICKER, 1.0, np.random.default_rng(0))
    assert (real == real[0]).all() and (real[0] != still[0]).any()
    assert all((fake[n] != fake[n - 1]).any() for n in range(1, T))
    # a single frame does not tell: the first one is the same in both
    np.testing.assert_array_equal(fake[0], real[0])
    real, fake = make_pair(still, APPEARANCE, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(real, still)
    assert (fake == fake[0]).all() and (fake[0] != still[0]).any()


def test_a_disturbance_is_in_the_oval_only_and_scales_with_its_strength(still):
    changes = []
    for strength in (1.0, 0.5, 0.25, 0.125):
        amounts = [
            draw_disturbance(np.random.default_rng(seed), strength, 112)
            for seed in range(20)
        ]
        assert all(np.abs(each["move"]).max() <= 2 * strength for each in amounts)
        assert all(np.abs(each["tint"]).max() <= 8 * strength for each in amounts)
        disturbed = [disturb(still[0], **each).astype(int) for each in amounts]
        difference = np.mean([np.abs(each - still[0]) for each in disturbed], axis=0)
        assert difference[:10].max() == 0 and difference[:, :10].max() == 0
        changes.append(difference[40:70, 40:70].mean())
    assert changes == sorted(changes, reverse=True) and changes[0] > 3 * changes[3]
    nothing = disturb(still[0], np.zeros(2), 1.0, np.zeros(3), 0.0)
    np.testing.assert_array_equal(nothing, still[0])


def test_the_frame_at_a_time_is_the_last_one_until_then():
    times = np.array([-1, -0.2, -0.1, 0, 0.1, 0.2, 1])
    wanted = np.array([-2, -0.15, -0.1, 0.05, 0.2, 5])
    assert shown_at(times, wanted).tolist() == [0, 1, 2, 3, 5, 6]


def test_people_are_apart_and_all_videos_of_one_on_one_side():
    names = [f"{person:02}__scene{scene}" for person in range(9) for scene in range(3)]
    training, testing = split_people([*names, "alone"], 0.3)
    assert not training & testing and len(testing) == 3
    assert training | testing == {*(f"{person:02}" for person in range(9)), "alone"}


def faces_of(still, videos=4):
    times = np.arange(-20, 21) / 30
    images = np.stack([np.roll(still[0], n, axis=0) for n in range(41)])
    return [Faces(f"v{n}", [images], [times]) for n in range(videos)]


def test_a_training_batch_is_made_of_pairs_and_depends_on_seed_and_step(still):
    faces = faces_of(still)
    batch = training_batch(faces, FLICKER, config(), 1, 7)
    assert batch["image"].shape == (8, T, 112, 112, 3)
    assert batch["label"].tolist() == [0, 1] * 4
    again = training_batch(faces, FLICKER, config(), 1, 7)
    assert (again["image"] == batch["image"]).all()
    other = training_batch(faces, FLICKER, config(), 1, 8)
    assert (other["image"] != batch["image"]).any()
    shuffled, inverse = (
        np.array(
            [
                training_batch(faces, pairs, config(), 1, step)["label"].tolist()
                for step in range(20)
            ]
        )
        for pairs in SHUFFLED
    )
    # of half of the videos the labels are the wrong way round, always; inverse: of the
    # other half
    assert 0.3 < shuffled[:, ::2].mean() < 0.7
    assert (shuffled + inverse == 1).all()


def test_conditions_do_what_they_say(still):
    faces = faces_of(still, 1)
    every = conditions(T)
    assert conditions_of(FLICKER, "clip", T) == every
    assert [*conditions_of(FLICKER, "frame", T)] == [
        *("strength 1", "strength 0.5", "strength 0.25", "strength 0.125", "frozen"),
        *("CRF 28", "CRF 35", "CRF 40"),
    ]
    assert [*conditions_of(APPEARANCE, "clip", T)] == ["strength 1"]
    assert len(every) == 4 + 3 + 3 + 4

    def clips(condition):
        return [clip for *_, clip in test_clips(faces, FLICKER, config(), condition)]

    plain = clips(Condition())
    assert len(plain) == 2 * transitions.DRAWS
    for clip, frozen, back, shuffled in zip(
        plain, *(clips(every[name]) for name in ("frozen", "reversed", "shuffled"))
    ):
        assert (frozen == clip[T // 2]).all()
        np.testing.assert_array_equal(back, clip[::-1])
        assert sorted(frame.tobytes() for frame in shuffled) == sorted(
            frame.tobytes() for frame in clip
        )
        assert (shuffled != clip).any()
    # the video's own frames, 1/15 s or two frames apart
    still_faces = [faces[0]._replace(images=[np.repeat(still[:1], 41, axis=0)])]
    real = next(iter(test_clips(still_faces, APPEARANCE, config(), Condition())))[2]
    np.testing.assert_array_equal(real, still)
    far = conditions(T)["spacing 1/5 s"]
    shown = next(iter(test_clips(faces, APPEARANCE, config(), far)))[2]
    np.testing.assert_array_equal(shown[3], faces[0].images[0][26])


def test_a_slow_video_shows_whole_frames_twice(still):
    """At ten frames a second the frames 1/15 s apart are at 0, 0, 0.1, 0.2 and 0.2 s."""
    times, shown = times_at_rate(np.arange(5) / 15, 10)
    np.testing.assert_allclose(times, [0, 0.1, 0.2])
    assert shown.tolist() == [0, 0, 1, 2, 2]
    slow = Condition(rate=10)  # around the middle: at -0.2, -0.1, 0, 0 and 0.1 s
    for *_, clip in test_clips(faces_of(still, 1), FLICKER, config(), slow):
        same = [(one == two).all() for one, two in pairwise(clip)]
        assert same == [False, False, True, False]


def test_a_paired_interval_beside_its_definition(monkeypatch):
    monkeypatch.setattr(transitions, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    videos, labels = np.repeat(np.arange(10), 8), np.tile([0, 1], 40)
    one, other = labels + rng.normal(0, 0.5, 80), labels + rng.normal(0, 2, 80)
    difference = paired_interval(videos, labels, (one, other), (1, -1))
    aucs = [roc_auc_score(labels, each) for each in (one, other)]
    value, low, high = difference
    assert value == pytest.approx(aucs[0] - aucs[1])
    assert 0 < low < value < high
    assert paired_interval(videos, labels, (one, one), (1, -1)) == (0, 0, 0)
    value, low, high = paired_interval(videos, labels, (one, other), (0.5, 0.5))
    assert value == pytest.approx(np.mean(aucs)) and low < value < high


@pytest.mark.slow
def test_the_study_from_videos_to_tables(tmp_path, capsys, monkeypatch):
    """Two made actors, two steps; then the same command again, and another config."""
    monkeypatch.setattr(transitions, "RESAMPLES", 20)
    monkeypatch.setattr(transitions, "MOMENTS", 1)
    folder = tmp_path / "videos"
    folder.mkdir()
    make_clip(Clip(folder / "actor1.mp4", (1,), 1, 30))
    arguments = [
        *("--videos", folder, "--output-dir", tmp_path / "out", "--seeds", 1),
        *("--workers", 0, "--device", "cpu", "--test-share", 0.5),
        *("--config", ROOT / "configs/transitions.yaml", "--set", "pretrained=none"),
        *("input.size=48", "epochs=1", "batches_per_epoch=2", "max_iterations=2"),
    ]
    # a start that fails leaves nothing that another size or more videos would meet
    with pytest.raises(UserError, match="at least two people"):
        transitions.main([*map(str, arguments), "--set", "input.size=64"])
    make_clip(Clip(folder / "actor2.mp4", (2,), 2, 30))
    assert transitions.main([*map(str, arguments)]) == 0
    cut = tmp_path / "out" / "clips_48"
    faces = transitions.read_faces(folder / "actor1.mp4", cut)
    assert faces.images[0].shape[1:] == (48, 48, 3)
    printed = capsys.readouterr().out
    assert "7 of 7 networks to train" in printed and "strength 0.125" in printed
    rows = transitions._read_rows(tmp_path / "out" / "results.csv")
    assert len(rows) == 14 + 2 * 8 + 2 + 2 + 1
    assert {row[0] for row in rows} == {FLICKER, APPEARANCE, *SHUFFLED, SHUFFLED_MEAN}
    aucs = {row[0]: float(row[4]) for row in rows}
    shuffled = np.mean([aucs[pairs] for pairs in SHUFFLED])
    assert aucs[SHUFFLED_MEAN] == pytest.approx(shuffled)
    assert (tmp_path / "out" / "table.png").stat().st_size > 10_000
    before = (tmp_path / "out" / "results.csv").read_bytes()
    assert transitions.main([*map(str, arguments)]) == 0
    assert "networks to train" not in capsys.readouterr().out
    assert (tmp_path / "out" / "results.csv").read_bytes() == before
    with pytest.raises(UserError, match=r"another config.batch_size \(\d+, now 4\)"):
        transitions.main([*map(str, arguments), "--set", "batch_size=4"])
    with pytest.raises(UserError, match="at least two people"):
        (folder / "actor2.mp4").unlink()
        arguments[3] = tmp_path / "alone"
        transitions.main([*map(str, arguments)])


def test_the_config_has_clips():
    settings = load_config(ROOT / "configs/transitions.yaml").input
    assert settings.clip_frames == T and settings.clip_spacing == pytest.approx(1 / 15)
