"""Distillation: the target by hand, teachers of other sizes and of clips, training."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from runtime.cli import UserError
from tests.conftest import cpu_trainer, portrait_crops
from training.checkpoint import load_classifier, save_checkpoint
from training.config import Config, InputSettings
from training.losses import balanced_loss
from training.model import Normalize
from training.networks import make_classifier
from training.teachers import Teachers

LITE0 = "tf_efficientnet_lite0"


def trainer_of(**settings):
    return cpu_trainer(
        Config(
            encoder=LITE0,
            pretrained="none",
            precision="float32",
            batch_size=4,
            **settings,
        )
    )


@pytest.fixture(scope="module")
def batch():
    return {
        "image": torch.from_numpy(portrait_crops(4, 64)),
        "label": torch.tensor([0.0, 1.0, 0.0, 1.0]),
    }


def slow_logits(path, images):
    """One image after the other, resized to the network's input."""
    model, settings = load_classifier(path)
    normalize = Normalize(settings.mean, settings.std)
    logits = []
    with torch.inference_mode():
        for image in images:
            inputs = normalize(image[None])
            size = (settings.size, settings.size)
            inputs = functional.interpolate(
                inputs, size, mode="bilinear", antialias=True
            )
            logits.append(model(inputs).item())
    return np.array(logits)


def test_the_target_is_the_mean_logit_and_a_tenth_of_the_label(checkpoints, batch):
    paths = [str(checkpoints / name) for name in ("one", "two")]  # 64 and 96 pixels
    trainer = trainer_of(input={"size": 64}, teachers=paths)
    mean = np.mean([slow_logits(path, batch["image"]) for path in paths], axis=0)
    expected = 0.9 / (1 + np.exp(-mean)) + 0.1 * batch["label"].numpy()
    targets = trainer._targets(batch["image"], batch["label"])
    np.testing.assert_allclose(targets, expected, atol=1e-4)
    # reals and fakes are still balanced by their labels
    logits = torch.randn(4)
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    loss, fake, _ = balanced_loss(logits, batch["label"], targets)
    assert fake.item() == pytest.approx((losses[1] + losses[3]).item() / 2, rel=1e-5)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_student_comes_nearer_to_its_teachers_and_leaves_them_as_they_are(
    checkpoints, batch
):
    teacher = str(checkpoints / "one")
    trainer = trainer_of(
        input={"size": 64}, teachers=[teacher], soft_share=1.0, learning_rate=0.05
    )
    trainer.model.train()
    before = {
        key: value.clone() for key, value in trainer.teachers.state_dict().items()
    }
    answers = trainer.teachers(batch["image"])
    assert torch.equal(answers, trainer.teachers(batch["image"]))
    losses = [trainer.step([batch], number)[0] for number in range(25)]
    entropy = functional.binary_cross_entropy_with_logits(
        answers, torch.sigmoid(answers)
    ).item()
    assert losses[-1] - entropy < 0.5 * (losses[0] - entropy)
    assert all(
        torch.equal(value, before[key])
        for key, value in trainer.teachers.state_dict().items()
    )
    assert not any(key.startswith("teachers") for key in trainer.network.state_dict())


def test_teachers_of_clips_need_a_student_of_the_same_clips(tmp_path, checkpoints):
    clips = {"size": 64, "clip_frames": 3, "clip_spacing": 0.1}
    settings = Config(encoder=LITE0, pretrained="none", input=clips)
    torch.manual_seed(0)
    state = make_classifier(settings).state_dict()
    path = tmp_path / "clip"
    save_checkpoint(path, state_dict=state, config=settings.model_dump(mode="json"))
    with pytest.raises(UserError, match="sees clips of 3 frames 0.1 s apart"):
        Teachers([str(path)], InputSettings(size=64))
    teachers = Teachers([str(path), str(checkpoints / "one")], InputSettings(**clips))
    images = torch.from_numpy(portrait_crops(6, 64)).view(2, 3, 64, 64, 3)
    model, own = load_classifier(path)
    with torch.inference_mode():
        clip = model(Normalize(own.mean, own.std)(images)).numpy()
    frames = slow_logits(checkpoints / "one", images.flatten(0, 1))
    expected = (clip + frames.reshape(2, 3).mean(1)) / 2
    np.testing.assert_allclose(teachers(images), expected, atol=1e-4)
    with pytest.raises(UserError, match="no such"):
        Teachers([str(tmp_path / "none")], InputSettings())
