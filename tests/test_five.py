"""Parts of the other winning teams' networks against slow versions and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from inference.aggregate import Aggregation
from inference.ensemble import Ensemble
from inference.extraction import VideoFaces
from inference.members import EnsembleFile, plain_members
from inference.report import Report
from runtime.cli import UserError
from tests.conftest import cpu_trainer
from training import attention
from training.attention import AttentionClassifier, crop_to, drop_from, pool_by_maps
from training.checkpoint import (
    load_classifier,
    run_name,
    save_checkpoint,
    start_from,
)
from training.config import Config, load_config, read_settings
from training.cutmix import cutmix
from training.losses import balanced_loss
from training.model import DeepFakeClassifier, Normalize
from training.networks import make_classifier
from training.residuals import filters

ROOT = Path(__file__).parents[1]
LITE0 = "tf_efficientnet_lite0"


def config(**more):
    values = {"size": 64} | more.pop("input", {})
    return Config(**{"encoder": LITE0, "pretrained": "none"} | more, input=values)


def test_attention_pooling_beside_loops():
    torch.manual_seed(0)
    features, maps = torch.randn(2, 5, 3, 4), torch.rand(2, 8, 3, 4)
    ours = attention.normalize(pool_by_maps(features, maps))
    for n in range(2):
        vector = []
        for m in range(8):
            for c in range(5):
                total = sum(
                    maps[n, m, y, x].item() * features[n, c, y, x].item()
                    for y in range(3)
                    for x in range(4)
                )
                mean = total / 12
                vector.append(np.sign(mean) * np.sqrt(abs(mean)))
        expected = np.array(vector) / np.linalg.norm(vector)
        np.testing.assert_allclose(ours[n], expected, atol=1e-5)


def test_a_crop_to_a_map_by_hand():
    """The map is high in rows 10 to 19 and columns 30 to 34 of 40; the margin is 4."""
    image = torch.rand(1, 3, 40, 40)
    maps = torch.full((1, 40, 40), 0.1)
    maps[0, 10:20, 30:35] = 1.0
    ours = crop_to(image, maps, torch.full((1, 1, 1), 0.5))
    expected = functional.interpolate(
        image[:, :, 6:23, 26:38], (40, 40), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    # a map that is nowhere high shows the whole image
    whole = crop_to(image, torch.zeros(1, 5, 5), torch.full((1, 1, 1), 0.5))
    torch.testing.assert_close(whole, image, atol=1e-5, rtol=0)


def test_dropping_beside_a_loop():
    torch.manual_seed(1)
    images, maps = torch.rand(3, 3, 12, 12) + 1, torch.rand(3, 4, 4)
    thresholds = torch.tensor([0.4, 0.55, 0.7]).view(3, 1, 1)
    ours = drop_from(images, maps, thresholds)
    large = functional.interpolate(
        maps[:, None], (12, 12), mode="bilinear", align_corners=True
    )
    for n in range(3):
        for y in range(12):
            for x in range(12):
                limit = thresholds[n] * maps[n].max()
                kept = float(large[n, 0, y, x] < limit)
                assert torch.equal(ours[n, :, y, x], kept * images[n, :, y, x])
    assert 0 < (ours == 0).float().mean() < 1


def test_the_attention_loss_is_the_sum_of_its_parts(monkeypatch):
    """Passes over the image, the crop (a third) and the masked image (a half), and the
    squared distance from the centres, which move by a twentieth.
    """
    torch.manual_seed(2)
    model = AttentionClassifier(LITE0).eval()  # no dropout, batch norm as it is
    images = torch.randn(6, 3, 64, 64)
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0])
    model.centres.copy_(torch.randn_like(model.centres))
    before = functional.normalize(model.centres, dim=1)
    seen = []
    monkeypatch.setattr(
        attention, "crop_to", lambda *args: seen.append(crop_to(*args)) or seen[-1]
    )
    monkeypatch.setattr(
        attention, "drop_from", lambda *args: seen.append(drop_from(*args)) or seen[-1]
    )
    unmoved = model.centres.clone()
    with torch.no_grad():
        logits, extra = model(images, labels)
        crop, masked = (balanced_loss(model(each), labels)[0] for each in seen)
        pooled = model.pool(model.features(images)) / attention.SCALE
    torch.testing.assert_close(logits, model(images))
    distances = [
        ((pooled[n] - before[int(labels[n])]) ** 2).sum().item() for n in range(6)
    ]
    expected = crop / 3 + masked / 2 + np.mean(distances)
    torch.testing.assert_close(extra, expected, atol=1e-4, rtol=1e-4)
    for kind in (0, 1):
        own = pooled[labels == kind]
        moved = unmoved[kind] + 0.05 * (own.mean(0) - before[kind])
        torch.testing.assert_close(model.centres[kind], moved)


def test_maps_are_drawn_by_the_square_roots_of_their_sums(monkeypatch):
    """One map has nine times the sum of another, so it is drawn three times as often."""
    model = AttentionClassifier(LITE0).eval()
    sums = torch.tensor([9.0, 1, 0, 0, 0, 0, 0, 0])
    maps = sums.view(1, 8, 1, 1).expand(400, 8, 2, 2)
    features = torch.zeros(400, 1280, 2, 2)
    monkeypatch.setattr(model, "features", lambda images: features)
    monkeypatch.setattr(model, "attention", nn.Module())
    monkeypatch.setattr(
        model.attention, "forward", lambda features: maps, raising=False
    )
    drawn = []
    monkeypatch.setattr(
        attention, "crop_to", lambda images, maps, _: drawn.append(maps) or images
    )
    monkeypatch.setattr(
        attention, "drop_from", lambda images, maps, _: drawn.append(maps) or images
    )
    torch.manual_seed(0)
    model(torch.zeros(400, 3, 32, 32), torch.zeros(400))
    share = (torch.stack(drawn) == 9).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.05)
    assert not torch.equal(*drawn)


def test_an_attention_network_is_trained_saved_and_loaded(tmp_path):
    settings = config(head="attention", batch_size=4)
    trainer = cpu_trainer(settings)
    trainer.model.train()
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    batch = {"image": images, "label": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    before = [each.clone() for each in trainer.network.parameters()]
    loss, fake, real = trainer.step([batch], 0)
    assert loss > (fake + real) / 2  # the other passes count
    moved = [
        not torch.equal(one, other)
        for one, other in zip(before, trainer.network.parameters())
    ]
    assert all(moved)
    trainer.model.eval()
    path = tmp_path / "net"
    state = trainer.network.state_dict()
    save_checkpoint(path, state_dict=state, config=settings.model_dump(mode="json"))
    loaded, _ = load_classifier(path)
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(inputs), trainer.network(inputs))


def test_attention_begins_with_the_encoder_of_a_plain_network(tmp_path):
    """As the second-placed team did; what is of the head stays new."""
    torch.manual_seed(0)
    plain = DeepFakeClassifier(LITE0)
    model = make_classifier(config(head="attention"))
    new = {key: value.clone() for key, value in model.state_dict().items()}
    start_from(model, plain.state_dict(), tmp_path)
    for key, value in model.state_dict().items():
        before = plain.state_dict() if key.startswith("encoder.") else new
        assert torch.equal(value, before[key]), key
    # with all of another's, the head included
    other = make_classifier(config(head="attention"))
    start_from(other, model.state_dict(), tmp_path)
    assert torch.equal(other.fc.weight, model.fc.weight)


def test_attention_over_the_tokens_of_a_vision_transformer():
    model = make_classifier(config(encoder="test_vit", head="attention")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens = model.features(images)  # a class token, then 4 x 4 patches
        maps = torch.zeros(2, tokens.shape[2], 4, 4)
        for place in range(16):
            maps[:, :, place // 4, place % 4] = tokens[:, 1 + place]
        expected = model.pool(maps)
        for same in (tokens, maps.permute(0, 2, 3, 1)):
            torch.testing.assert_close(model.pool(same), expected, atol=1e-3, rtol=1e-4)
        assert model(images).shape == (2,)
        with pytest.raises(UserError, match="needs an encoder with feature maps"):
            model.pool(tokens[:, 3:])


def test_attention_sees_single_frames():
    with pytest.raises(ValueError, match="attention sees single frames"):
        config(head="attention", input={"clip_frames": 3})


@pytest.mark.parametrize("shape", [(6, 10, 12, 3), (6, 8, 10, 12, 3)])
def test_cutmix_beside_a_loop(shape):
    """Every pixel is one of the two, and the label their share of the volume."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0.0, 1, 0, 1, 0, 1])
    shares = []
    for seed in range(60):
        mixed, soft = cutmix(images, labels, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.beta(1, 1)
        for _ in shape[1:-1]:
            rng.uniform()
        others = rng.permutation(6)
        for n in range(6):
            pasted = (mixed[n] == images[others[n]]).all(-1)
            kept = (mixed[n] == images[n]).all(-1)
            assert (pasted | kept).all()
            if others[n] == n:
                assert soft[n] == labels[n]
                continue
            share = pasted.float().mean().item()
            expected = labels[n] + share * (labels[others[n]] - labels[n])
            assert soft[n].item() == pytest.approx(expected.item(), abs=1e-6)
            shares.append(share)
    assert min(shares) < 0.1 and max(shares) > 0.6
    assert torch.equal(
        images,
        torch.randint(
            0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
    )


def test_a_step_with_cutmix_depends_on_its_seed_alone():
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    batch = {"image": images, "label": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    trainer = cpu_trainer(config(cutmix=0.5, batch_size=4))
    mixes = [trainer._mixed(batch, number, 0) for number in range(40)]
    again = [trainer._mixed(batch, number, 0) for number in range(40)]
    assert all(
        torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        for one, other in zip(mixes, again)
    )
    untouched = sum(torch.equal(each[0], images) for each in mixes)
    assert 10 < untouched < 35


def test_the_filters_by_hand():
    small, large, line = filters()[:, 0]
    assert all(each.sum().abs() < 1e-6 for each in (small, large, line))
    assert small[2].tolist() == [0, 2, -4, 2, 0]
    assert large[2].tolist() == [-2, 8, -12, 8, -2]
    assert large[0].tolist() == [-1, 2, -2, 2, -1]
    assert torch.equal(large, large.T) and torch.equal(large, large.flip(0))
    assert line[2].tolist() == [0, 1, -2, 1, 0] and line[1].abs().sum() == 0


@pytest.mark.parametrize(
    "encoder", [LITE0, "tf_efficientnet_b0.ns_jft_in1k", "test_vit"]
)
def test_the_second_stem_adds_nothing_at_first_and_learns(encoder, tmp_path):
    torch.manual_seed(0)
    plain = DeepFakeClassifier(encoder).eval()
    settings = config(encoder=encoder, srm=True, batch_size=2)
    model = make_classifier(settings).eval()
    start_from(model, plain.state_dict(), tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), plain(images))
    assert {key for key in model.state_dict() if key not in plain.state_dict()} == {
        key for key in model.state_dict() if key.startswith("residual_stem.")
    }
    model(images).sum().backward()
    last = model.residual_stem.layers[-1].weight
    assert last.grad.abs().sum() > 0
    with torch.no_grad():
        last.add_(0.1)
        assert not torch.equal(model(images), plain(images))


def test_residuals_beside_a_loop():
    settings = config(srm=True)
    stem = make_classifier(settings).residual_stem
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 110, (1, 8, 8, 3), np.uint8)
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1)
        for each in (settings.input.mean, settings.input.std)
    )
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    ours = stem.residuals(inputs)
    grey = pixels[0].mean(2)
    for k, kernel in enumerate(filters()[:, 0].numpy()):
        for y in range(2, 6):
            for x in range(2, 6):
                window = grey[y - 2 : y + 3, x - 2 : x + 3]
                value = (kernel * window).sum() / (4, 12, 2)[k]
                expected = np.clip(value, -3, 3)
                assert ours[0, k, y, x].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["r2plus1d_18", "mc3_18", "r3d_18"])
def test_a_3d_network_is_torchvisions(name):
    from torchvision.models import get_model

    settings = Config(
        encoder=f"torchvision/{name}", pretrained="none", input={"clip_frames": 4}
    )
    model = make_classifier(settings).eval()
    reference = get_model(name, weights=None).eval()
    encoder = {
        key: value
        for key, value in reference.state_dict().items()
        if not key.startswith("fc.")
    }
    model.encoder.load_state_dict(encoder)
    reference.fc = nn.Identity()
    clips = torch.randn(2, 4, 3, 32, 32)  # N, T, C, H, W
    with torch.inference_mode():
        features = reference(clips.transpose(1, 2))
        ours = model(clips.flatten(0, 1))
        torch.testing.assert_close(ours, model.fc(features).squeeze(1))


def test_a_3d_network_needs_clips_and_has_kinetics_input(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("encoder: torchvision/r3d_18\ninput: {clip_frames: 4}\n")
    settings = load_config(path)
    assert settings.input.size == 112 and settings.input.mean[0] == 0.43216
    with pytest.raises(UserError, match="sees clips"):
        make_classifier(Config(encoder="torchvision/r3d_18"))
    with pytest.raises(UserError, match="there are r2plus1d_18"):
        make_classifier(Config(encoder="torchvision/resnet", input={"clip_frames": 4}))


def test_the_exponential_schedule():
    from training.schedule import exponential_learning_rate

    assert exponential_learning_rate(0, 0.001, 0.95) == 0.001
    assert exponential_learning_rate(2, 0.001, 0.95) == pytest.approx(0.0009025)


@pytest.mark.parametrize("place", ["second", "third", "fourth", "fifth"])
def test_the_members_of_an_ensemble_file_are_what_the_configs_train(place):
    names = []
    for path in sorted((ROOT / "configs" / "five").glob("*.yaml")):
        settings = load_config(path)
        with torch.device("meta"):
            make_classifier(settings)
        for seed in ("", "1_", "2_", "3_"):
            names.append(run_name(f"{path.stem}_{seed}", settings.encoder, 0) + "_last")
    file = read_settings(ROOT / "configs/ensembles" / f"{place}.yaml", EnsembleFile)
    assert {member.checkpoint for member in file.members} <= {*names}
    if place in ("second", "fourth"):
        assert sum(each.weight for each in file.members) == pytest.approx(1)


def test_the_report_shows_the_residuals_of_a_face(tmp_path):
    """Grey where a picture is even, and only for a network that has the stem."""
    for name, srm in (("with", True), ("without", False)):
        settings = config(srm=srm)
        state = make_classifier(settings).state_dict()
        saved = settings.model_dump(mode="json")
        save_checkpoint(tmp_path / name, state_dict=state, config=saved)
    images = np.full((1, 64, 64, 3), 90, np.uint8)
    images[0, 40, 40] = 250
    ensembles = {
        name: Ensemble(plain_members([tmp_path / name]), "cpu")
        for name in ("with", "without")
    }
    assert ensembles["without"].residuals(images) is None
    shown = ensembles["with"].residuals(images)
    assert shown.shape == images.shape and shown.dtype == np.uint8
    assert np.abs(shown[0, :37].astype(int) - 127.5).max() <= 1
    assert shown[0, 38:43].max() == 255 and shown[0, 38:43].min() == 0
    entry = {
        "filename": "a.mp4",
        "reason": "",
        "frames": [0],
        "times": [0.0],
        "boxes": [(0, 0, 9, 9)],
        "probabilities": {"with": [0.7]},
    }
    heatmaps = ensembles["with"].grad_cam(images)
    Report(tmp_path, Aggregation()).write_video(
        entry, images, {}, heatmaps, residuals=shown
    )
    (page,) = (tmp_path / "videos").glob("*.html")
    text = page.read_text()
    assert text.count('src="data:image/jpeg') == 3
    assert "Noise residuals that with sees" in text


def test_a_3d_network_is_trained_and_predicts(tmp_path):
    settings = Config(
        encoder="torchvision/mc3_18",
        pretrained="none",
        batch_size=2,
        cutmix=1.0,
        input={"size": 32, "clip_frames": 4},
    )
    trainer = cpu_trainer(settings)
    trainer.model.train()
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    batch = {"image": clips, "label": torch.tensor([0.0, 1.0])}
    first = trainer.network.fc.weight.clone()
    assert np.isfinite(trainer.step([batch], 0)).all()
    assert not torch.equal(first, trainer.network.fc.weight)
    path, state = tmp_path / "net", trainer.network.state_dict()
    save_checkpoint(path, state_dict=state, config=settings.model_dump(mode="json"))
    faces = VideoFaces(
        clips={32: clips.numpy()}, clip_frames=[0, 9], clip_boxes=[(0, 0, 9, 9)] * 2
    )
    ((scores,),) = Ensemble(plain_members([path]), "cpu")([faces])
    model, own = load_classifier(path)
    with torch.inference_mode():
        logits = model(Normalize(own.mean, own.std)(clips))
    np.testing.assert_allclose(scores, torch.sigmoid(logits), atol=1e-5)


def test_attention_is_pooled_in_float32_in_any_precision():
    """A map that is dropped has a root with an endless slope in half precision."""
    torch.manual_seed(0)
    model = AttentionClassifier(LITE0).train()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0.0, 1, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits, extra = model(images, labels)
    (logits.float().sum() + extra).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 100
    assert all(torch.isfinite(each).all() for each in gradients)
    half = model.eval().bfloat16()
    with torch.inference_mode():
        features = half.features(images.bfloat16())
        pooled, maps = half._pool_by_maps(features)
        assert pooled.dtype == maps.dtype == torch.float32
        assert half(images.bfloat16()).isfinite().all()


def test_a_heatmap_of_an_attention_network_is_refused_in_one_line(tmp_path):
    settings = config(head="attention")
    path, state = tmp_path / "net", make_classifier(settings).state_dict()
    save_checkpoint(path, state_dict=state, config=settings.model_dump(mode="json"))
    ensemble = Ensemble(plain_members([path]), "cpu")
    with pytest.raises(UserError, match="does not classify the mean of feature maps"):
        ensemble.grad_cam(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_residuals_are_those_of_float32_in_any_precision(dtype):
    """A bright, even picture has none; the filters' sums stay 0."""
    stem = make_classifier(config(srm=True)).residual_stem
    images = torch.full((1, 3, 32, 32), 2.0)
    images[:, :, :, 16:] = -1.5
    expected = stem.residuals(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stem.residuals(images), expected)
    low = stem.to(dtype).residuals(images.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), expected, atol=0.02, rtol=0.01)
    assert low[..., :12].abs().max() < 1e-3
