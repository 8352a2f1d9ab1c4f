"""Network, checkpoints and safetensors: recorded logits, old formats, hostile files."""

import json
import os
import pickle
import runpy
import zlib
from subprocess import getoutput

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms import Normalize as TorchvisionNormalize

from runtime.cli import UserError
from training.checkpoint import (
    load_checkpoint,
    load_classifier,
    run_name,
    save_checkpoint,
)
from training.config import Config, InputSettings
from training.model import DeepFakeClassifier, Normalize

B0 = "tf_efficientnet_b0.ns_jft_in1k"

# Logits of `made_images` by networks with `made_weights`, recorded with timm 0.4.12
# (docs/fidelity.md has the command). A version of timm that changes them would change
# the scores of the published networks, too.
RECORDED_LOGITS = {
    "tf_efficientnet_b0_ns": [0.099157363, 0.093736216, 0.1135029, 0.11142063],
    "tf_efficientnet_b2_ns": [2.9985647, 4.4932494, 5.3299079, 2.8340058],
}


def made_weights(state):
    """Draw weights that do not depend on the versions of PyTorch and NumPy.

    Each entry has a seed from its name, and a scale that keeps activations bounded.
    """
    weights = {}
    for key, value in state.items():
        rng = np.random.RandomState(zlib.crc32(key.encode()))
        shape = tuple(value.shape)
        if key.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif key.endswith(("running_mean", "bias")):
            values = rng.normal(0, 0.1, shape)
        elif len(shape) < 2:  # weight or num_batches_tracked of a batch norm
            values = rng.uniform(0.8, 1.2, shape)
        else:
            gain = 2 if len(shape) == 4 else 1
            values = rng.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
        weights[key] = torch.tensor(values, dtype=value.dtype)
    return weights


def made_fc(encoder):
    """Weights of the last layer for an encoder."""
    shape = (1, encoder.num_features)
    return made_weights({"fc.weight": torch.zeros(shape), "fc.bias": torch.zeros(1)})


def made_images():
    """Random images, (4, 3, 96, 96) float32, as after normalisation."""
    images = np.random.RandomState(0).normal(0, 1, (4, 3, 96, 96))
    return torch.tensor(images, dtype=torch.float32)


def made_logits(name):
    """Logits of a network built by hand around an encoder of the installed timm."""
    encoder = timm.create_model(name).eval()
    encoder.load_state_dict(made_weights(encoder.state_dict()))
    fc = made_fc(encoder)
    with torch.no_grad():
        pooled = encoder.forward_features(made_images()).mean(dim=(2, 3))
    return (pooled @ fc["fc.weight"][0] + fc["fc.bias"]).tolist()


@pytest.mark.parametrize(
    "encoder, features",
    [
        (B0, 1280),
        ("efficientnet_pytorch/efficientnet-b0", 1280),
        ("tf_efficientnet_b2.ns_jft_in1k", 1408),
    ],
)
def test_forward_is_pool_and_linear_by_hand(encoder, features):
    torch.manual_seed(0)
    model = DeepFakeClassifier(encoder, dropout=0.5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        if "/" in encoder:
            batch = model.encoder.extract_features(images)
        else:
            batch = model.encoder.forward_features(images)
        assert batch.shape[:2] == (2, features)
        weights, bias = model.fc.weight[0], model.fc.bias
        expected = [
            float(bias + sum(w * m.mean() for w, m in zip(weights, maps)))
            for maps in batch
        ]
        np.testing.assert_allclose(model(images).tolist(), expected, atol=1e-4)


def test_b7_has_the_published_entries():
    """A published B7 checkpoint has 1,202 entries and 66.66 million parameters.

    They include ImageNet's classifier.
    """
    with torch.device("meta"):
        state = DeepFakeClassifier("tf_efficientnet_b7.ns_jft_in1k").state_dict()
    assert len(state) == 1202
    assert sum(value.numel() for value in state.values()) == 66_661_404
    assert state["fc.weight"].shape == (1, 2560)
    assert state["encoder.classifier.weight"].shape == (1000, 2560)


def test_only_the_unused_classifier_gets_no_gradient():
    model = DeepFakeClassifier(B0)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    parameters = dict(model.named_parameters())
    unused = {"encoder.classifier.weight", "encoder.classifier.bias"}
    assert {name for name, each in parameters.items() if each.grad is None} == unused
    assert {
        name for name, each in parameters.items() if not each.requires_grad
    } == unused


def test_normalize_equals_torchvision():
    images = torch.randint(0, 256, (3, 5, 6, 3), dtype=torch.uint8)
    settings = InputSettings()
    reference = TorchvisionNormalize(settings.mean, settings.std)
    expected = torch.stack([reference(i.permute(2, 0, 1) / 255.0) for i in images])
    normalized = Normalize(settings.mean, settings.std)(images)
    torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-6)


def test_encoder_weights_come_from_a_local_file(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model(B0)
    torch.save(source.state_dict(), tmp_path / "encoder.pth")
    model = DeepFakeClassifier(B0, pretrained=str(tmp_path / "encoder.pth"))
    torch.testing.assert_close(model.encoder.conv_head.weight, source.conv_head.weight)
    for bad, words in (
        (str(tmp_path / "none.pth"), "no such file"),
        ("resnet", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            DeepFakeClassifier(B0, pretrained=bad)
    with pytest.raises(UserError, match="not weights of this encoder"):
        DeepFakeClassifier(
            "tf_efficientnet_b1.ns_jft_in1k", pretrained=str(tmp_path / "encoder.pth")
        )
    for bad in ("resnet50", "tf_efficientnet_b9", "efficientnet_pytorch/b0"):
        with pytest.raises(UserError, match=bad):
            DeepFakeClassifier(bad)


def test_names_are_the_winners():
    name = run_name("111_", "tf_efficientnet_b7.ns_jft_in1k", 0)
    assert name == "111_DeepFakeClassifier_tf_efficientnet_b7_ns_0"


def test_own_checkpoint_brings_its_settings(tmp_path):
    config = Config(encoder=B0, input={"size": 96, "frames_per_video": 8})
    model = DeepFakeClassifier(B0).eval()
    save_checkpoint(
        tmp_path / "any_name",
        epoch=1,
        state_dict=model.state_dict(),
        bce_best=0.1,
        config=config.model_dump(),
    )
    loaded, settings = load_classifier(tmp_path / "any_name")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    assert settings == config.input and not loaded.training


def write_as_the_winner(path, weights):
    """Write a checkpoint as the winner's code did.

    The file format before PyTorch 1.6, the prefix `module.` of each key, a NumPy 1
    float, no settings.
    """
    entries = {
        "epoch": 37,
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
        "bce_best": np.float64(0.2),
    }
    torch.save(entries, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    # NumPy 2's module name; the winner's files have that of NumPy 1
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in data
    path.write_bytes(data.replace(new, old))


@pytest.mark.parametrize("short, recorded", RECORDED_LOGITS.items())
def test_a_checkpoint_in_the_winners_form_gives_the_answers_of_2020(
    tmp_path, short, recorded
):
    path = tmp_path / f"final_111_DeepFakeClassifier_{short}_0_36"
    encoder = timm.create_model(short.replace("_ns", ".ns_jft_in1k"))
    weights = made_weights(encoder.state_dict())
    prefixed = {f"encoder.{key}": value for key, value in weights.items()}
    write_as_the_winner(path, prefixed | made_fc(encoder))
    model, settings = load_classifier(path)
    assert settings == InputSettings() and load_checkpoint(path)["bce_best"] == 0.2
    with torch.no_grad():
        np.testing.assert_allclose(model(made_images()), recorded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"bn_eps": 1e-5}, {"pad_type": ""}])
def test_the_recorded_answers_tell_another_epsilon_or_padding_apart(
    change, monkeypatch
):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name: real(name, **change))
    recorded = RECORDED_LOGITS["tf_efficientnet_b0_ns"]
    assert np.abs(np.subtract(made_logits(B0), recorded)).max() > 10 * 1e-5


class Evil:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function, named",
    [
        (os.system, "posix.system"),
        (eval, "eval"),
        (getoutput, "getoutput"),
        (runpy.run_path, "runpy.run_path"),
        (__import__, "__import__"),
    ],
)
def test_a_checkpoint_that_would_run_code_is_refused_by_name(tmp_path, function, named):
    trace = tmp_path / "it was run"
    argument = f"open({str(trace)!r}, 'w')"
    if function in (os.system, getoutput):
        argument = f"touch '{trace}'"
    entries = {"state_dict": {}, "extra": Evil(function, argument)}
    torch.save(entries, tmp_path / "new")
    torch.save(entries, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "plain").write_bytes(pickle.dumps(entries, protocol=2))
    for name in ("new", "old", "plain"):
        with pytest.raises(
            UserError,
            match=f"{name}: refused: it asks for .*{named}, .*nothing of it was run",
        ):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="refused"):
        DeepFakeClassifier(B0, pretrained=str(tmp_path / "new"))
    (tmp_path / "protocol 5").write_bytes(pickle.dumps(entries, protocol=5))
    torch.save(torch.nn.ReLU(), tmp_path / "object")
    for name in ("protocol 5", "object"):
        with pytest.raises(
            UserError,
            match=f"{name}: (not a checkpoint that can be read safely|refused)",
        ):
            load_checkpoint(tmp_path / name)
    assert not trace.exists()


def test_safetensors_serve_too(tmp_path):
    """With our settings in the metadata, or named as the winner's files.

    The error for a damaged file contains its name.
    """
    config = Config(encoder=B0, input={"size": 96})
    model = DeepFakeClassifier(B0).eval()
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    entries = {"epoch": "3", "config": json.dumps(config.model_dump())}
    save_file(weights, tmp_path / "ours.safetensors", entries)
    name = "final_1_DeepFakeClassifier_tf_efficientnet_b0_ns_0_2.safetensors"
    save_file(weights, tmp_path / name)
    images = torch.randn(1, 3, 64, 64)
    for path in tmp_path.iterdir():
        loaded, found = load_classifier(path)
        settings = config.input if path.stem == "ours" else InputSettings()
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
        assert found == settings
    assert load_checkpoint(tmp_path / "ours.safetensors")["epoch"] == 3
    save_file(model.encoder.state_dict(), tmp_path / "encoder.safetensors")
    other = DeepFakeClassifier(B0, pretrained=str(tmp_path / "encoder.safetensors"))
    torch.testing.assert_close(
        other.encoder.conv_head.weight, model.encoder.conv_head.weight, rtol=0, atol=0
    )
    data = (tmp_path / "ours.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:5000])
    with pytest.raises(UserError, match="cut.safetensors: not a safetensors file"):
        load_classifier(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"state_dict": {"fc.weight": "text"}}, "not weights of"),
        ({"state_dict": {1: 2}}, "not weights of"),
        ({"config": {"input": {"size": 10**9}}}, "less than or equal to 2048"),
        ({"config": [1]}, "another version"),
        ({"config": {"encoder": "../../etc"}}, "give an EfficientNet"),
        ({"state_dict": 5}, "no `state_dict`"),
    ],
)
def test_a_strangers_entries_are_checked(tmp_path, change, words):
    config = Config(encoder=B0).model_dump()
    entries = {"state_dict": {}, "config": config} | change
    if isinstance(entries["config"], dict):
        entries["config"] = config | entries["config"]
    torch.save(entries, tmp_path / "bad")
    with pytest.raises(UserError, match=f"{words}"):
        load_classifier(tmp_path / "bad")


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "text").write_text("no checkpoint")
    torch.save({"weights": 1}, tmp_path / "other")
    torch.save({"state_dict": {}}, tmp_path / "nameless")
    empty = "DeepFakeClassifier_tf_efficientnet_b0_ns_0_1"
    torch.save({"state_dict": {}}, tmp_path / empty)
    for name, words in (
        ("none", "no such"),
        ("text", "read safely"),
        ("other", "no `state_dict`"),
        ("nameless", "name it as"),
        (empty, "not weights of tf_efficientnet_b0"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{words}"):
            load_classifier(tmp_path / name)
