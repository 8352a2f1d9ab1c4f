"""Clip networks: exact beginnings, convolutions beside slow versions, gradients."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from runtime.cli import UserError
from tests.test_unseen import make_trainer
from training.checkpoint import load_classifier, read_start, save_checkpoint, start_from
from training.config import Config
from training.distributed import World
from training.model import DeepFakeClassifier, to_channels_last
from training.temporal import TemporalPointwise, hold_side_taps, is_over_time
from training.trainer import Trainer

B0, T = "tf_efficientnet_b0.ns_jft_in1k", 3


def pair(encoder, kind="depthwise", pretrained="none"):
    """A frame network, and the clip network that begins with it."""
    torch.manual_seed(3)
    frame = DeepFakeClassifier(encoder, pretrained).eval()
    clip = DeepFakeClassifier(encoder, clip_frames=T, temporal=kind).eval()
    start_from(clip, frame.state_dict(), Path("a test"))
    return frame, clip


@pytest.mark.parametrize(
    ("encoder", "new_parameters"),
    [
        (B0, 26_784),
        ("tf_efficientnet_b2.ns_jft_in1k", 44_208),
        ("tf_efficientnet_lite0", 26_784),
        pytest.param("tf_efficientnet_b7.ns_jft_in1k", 210_240, marks=pytest.mark.slow),
    ],
)
def test_a_clip_network_begins_as_the_frame_network_bit_for_bit(
    encoder, new_parameters
):
    frame, clip = pair(encoder)
    images = torch.randn(2 * T, 3, 64, 64)
    with torch.inference_mode():
        expected, logits = frame(images), clip.frame_logits(images)
        assert torch.equal(logits, expected) and logits.std() > 0
        torch.testing.assert_close(clip(images), expected.view(2, T).mean(1))
    added = {key for key in clip.state_dict() if key not in frame.state_dict()}
    assert added == {key for key in clip.state_dict() if is_over_time(key)}
    missing, unexpected = clip.load_state_dict(frame.state_dict(), strict=False)
    assert set(missing) == added and not unexpected
    count = sum(
        value.numel() for key, value in clip.state_dict().items() if key in added
    )
    assert count == new_parameters


def test_dense_begins_as_the_frame_network_too():
    frame, clip = (to_channels_last(each) for each in pair(B0, "dense"))
    images = torch.randn(2 * T, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(clip.frame_logits(images), frame(images))


@pytest.mark.parametrize("kind", ["depthwise", "dense"])
def test_a_convolution_over_time_beside_a_loop(kind):
    """Neighbours of the same clip; the ends are repeated."""
    torch.manual_seed(0)
    layer = TemporalPointwise(nn.Conv2d(4, 6, 1), T, kind)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(2 * T, 4, 5, 7)
    expected = []
    for number in range(2 * T):
        start = number - number % T
        before, after = max(number - 1, start), min(number + 1, start + T - 1)
        one, two, three = (images[each] for each in (before, number, after))
        if kind == "dense":
            centre = layer.weight[..., 0, 0]
            kernels = [layer.side_taps[0], centre, layer.side_taps[1]]
            mixed = sum(
                torch.einsum("oi,ihw->ohw", kernel, image)
                for kernel, image in zip(kernels, (one, two, three))
            )
            expected.append(mixed + layer.bias[:, None, None])
            continue
        taps = [layer.side_taps[0], layer.centre_tap, layer.side_taps[1]]
        pointwise = [
            torch.einsum("oi,ihw->ohw", layer.weight[..., 0, 0], image)
            + layer.bias[:, None, None]
            for image in (one, two, three)
        ]
        expected.append(
            sum(tap[:, None, None] * image for tap, image in zip(taps, pointwise))
        )
    torch.testing.assert_close(layer(images), torch.stack(expected))


def test_clips_of_a_batch_do_not_see_each_other_and_order_matters():
    _, clip = pair("tf_efficientnet_lite0", pretrained="package")
    for layer in clip.modules():
        if isinstance(layer, TemporalPointwise):
            nn.init.constant_(layer.side_taps[0], 0.2)
            nn.init.constant_(layer.side_taps[1], -0.1)
    images = torch.randn(2 * T, 3, 64, 64)
    with torch.inference_mode():
        together = clip(images)
        alone = torch.cat([clip(images[:T]), clip(images[T:])])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        other_order = clip(images[[1, 0, 2, 4, 3, 5]])
        assert ((other_order - together).abs() > 1e-3).all()


@pytest.mark.parametrize("kind", ["depthwise", "dense"])
def test_training_moves_the_side_taps_unless_they_are_held(kind):
    settings = {"size": 48, "clip_frames": T}
    torch.manual_seed(1)
    clips = torch.randint(0, 256, (4, T, 48, 48, 3), dtype=torch.uint8)
    batch = {"image": clips, "label": torch.tensor([0.0, 1, 0, 1])}
    for hold in (False, True):
        encoder = "tf_efficientnet_lite0"
        trainer = make_trainer(encoder=encoder, input=settings, temporal=kind)
        if hold:
            hold_side_taps(trainer.network)
        trainer.step([batch], 0)
        sides = [
            value
            for key, value in trainer.network.state_dict().items()
            if key.endswith("side_taps")
        ]
        assert len(sides) == 15
        assert all(bool((value == 0).all()) == hold for value in sides)


def test_a_clip_network_is_saved_loaded_and_begun_with(tmp_path):
    settings = {"size": 48, "clip_frames": T, "clip_spacing": 0.1}
    config = Config(encoder=B0, input=settings, temporal="dense")
    frame, clip = pair(B0, "dense")
    save_checkpoint(
        tmp_path / "clip", state_dict=clip.state_dict(), config=config.model_dump()
    )
    loaded, found = load_classifier(tmp_path / "clip")
    assert found.clip_frames == T and found.clip_spacing == 0.1
    images = torch.randn(T, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(images), clip(images))
    # a frame network's checkpoint, the winner's form; encoder weights alone are none
    torch.save({"state_dict": frame.state_dict()}, tmp_path / "frame")
    torch.save(frame.encoder.state_dict(), tmp_path / "encoder")
    assert (
        read_start(tmp_path / "encoder") is None and read_start(tmp_path / "x") is None
    )
    assert read_start(tmp_path / "frame").keys() == frame.state_dict().keys()
    config = Config(encoder=B0, input=settings)
    cpu = World(0, 1, torch.device("cpu"))
    trainer = Trainer.build(config, cpu, str(tmp_path / "frame"))
    with torch.inference_mode():
        trainer.network.eval()
        assert torch.equal(trainer.network.frame_logits(images), frame(images))
    with pytest.raises(UserError, match="not weights of this encoder"):
        start_from(
            DeepFakeClassifier("tf_efficientnet_lite0"), frame.state_dict(), Path("x")
        )


def test_a_network_without_such_blocks_cannot_see_time():
    with pytest.raises(UserError, match="need an EfficientNet of timm"):
        DeepFakeClassifier("resnet18", clip_frames=3)


def test_space_and_time_are_trained_by_turns():
    """Steps 0 and 3 train what a frame network has, 1 and 2 the convolutions over time;
    the last layer is always trained.
    """
    trainer = make_trainer(
        encoder="tf_efficientnet_lite0",
        input={"size": 48, "clip_frames": T},
        alternate=3,
        optimizer="adamw",
    )
    torch.manual_seed(1)
    clips = torch.randint(0, 256, (4, T, 48, 48, 3), dtype=torch.uint8)
    batch = {"image": clips, "label": torch.tensor([0.0, 1, 0, 1])}
    for number in range(4):
        before = {
            name: value.detach().clone()
            for name, value in trainer.network.named_parameters()
        }
        trainer.step([batch], number)
        moved = {
            name
            for name, value in trainer.network.named_parameters()
            if (value != before[name]).any()
        }
        kinds = {is_over_time(name) for name in moved if name.startswith("encoder")}
        assert kinds == {number in (1, 2)} and "fc.weight" in moved
    with pytest.raises(ValidationError, match="alternate needs weights over time"):
        Config(alternate=3)


def test_weights_over_time_have_a_learning_rate_of_their_own():
    """The first step of AdamW moves each weight by the learning rate, but for decay."""
    settings = {
        "encoder": "tf_efficientnet_lite0",
        "input": {"size": 48, "clip_frames": T},
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "learning_rate": 1e-4,
    }
    torch.manual_seed(1)
    clips = torch.randint(0, 256, (4, T, 48, 48, 3), dtype=torch.uint8)
    batch = {"image": clips, "label": torch.tensor([0.0, 1, 0, 1])}
    trainer = make_trainer(**settings, time_learning_rate=10)
    before = {
        name: value.detach().clone()
        for name, value in trainer.network.named_parameters()
    }
    trainer.step([batch], 0)
    steps: dict[bool, list[float]] = {False: [], True: []}
    for name, value in trainer.network.named_parameters():
        steps[is_over_time(name)].append((value - before[name]).abs().max().item())
    ratio = max(steps[True]) / max(steps[False])
    assert ratio == pytest.approx(10, rel=0.05)
