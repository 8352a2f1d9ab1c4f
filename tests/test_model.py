"""Network, checkpoints and safetensors: recorded logits, old formats, hostile files."""

import json
import os
import pickle
import runpy
import tarfile
import zipfile
import zlib
from subprocess import getoutput

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms import Normalize as TorchvisionNormalize

from runtime.cli import UserError, one_line
from training.checkpoint import (
    load_checkpoint,
    load_classifier,
    run_name,
    save_checkpoint,
)
from training.config import Config, InputSettings
from training.model import DeepFakeClassifier, Normalize
from training.weights_file import read_weights

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
    for bad in (
        "resnet5",
        "tf_efficientnet_b9",
        "efficientnet_pytorch/b0",
        "hf-hub:a/b",
    ):
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
    (tmp_path / "bad.safetensors").write_bytes(data[:8] + b"x" + data[9:])
    for name, words in (("cut", "is cut off"), ("bad", "not a safetensors file")):
        with pytest.raises(UserError, match=f"{name}.safetensors: {words}"):
            load_classifier(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"state_dict": {"fc.weight": "text"}}, "not weights of"),
        ({"state_dict": {1: 2}}, "not weights of"),
        ({"config": {"input": {"size": 10**9}}}, "less than or equal to 2048"),
        ({"config": [1]}, "another version"),
        ({"config": {"encoder": "../../etc"}}, "give a network of timm"),
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
        ("text", "is a text, not weights .it begins: no checkpoint"),
        ("other", "no `state_dict`.*but weights"),
        ("nameless", "name it as"),
        (empty, "not weights of tf_efficientnet_b0"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{words}"):
            load_classifier(tmp_path / name)


NAMED = "DeepFakeClassifier_tf_efficientnet_b0_ns_0_1"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 266910617\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.mark.parametrize(
    "contents, words",
    [
        (POINTER.encode(), "is a Git LFS pointer.* run `git lfs pull`"),
        (POINTER.replace("\n", "\r\n").encode("utf-8-sig"), "is a Git LFS pointer"),
        (PAGE.encode(), "is a web page.* download the file itself"),
        (b'\n <?xml version="1.0"?><Error>AccessDenied</Error>', "is a web page"),
        (b'{"error": "Repository not found"}', "is a text, not weights .*not found"),
        (b"", "is an empty file; download or copy it again"),
        (bytes(5000), "begins with zeros, as a download that did not end"),
        (b"\x1f\x8b\x08" + bytes(100), "is packed with gzip; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is a file of another format, HDF5"),
        (b"\x00\x01\x02\x03 noise", "not a checkpoint that can be read safely"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_what_stands_in_place_of_weights_is_named(tmp_path, contents, suffix, words):
    path = tmp_path / f"{NAMED}{suffix}"
    path.write_bytes(contents)
    if suffix and "noise" in str(contents):
        words = "not a safetensors file that can be read"
    with pytest.raises(UserError, match=f"{path.name}: {words}") as error:
        load_classifier(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=words):
        DeepFakeClassifier(B0, pretrained=str(path))


def test_archives_and_files_that_are_cut_off_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("models/readme.txt", "hello")
    (tmp_path / "part").write_bytes((tmp_path / "zip").read_bytes()[:40])
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "zip", "weights.pth")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "script")
    weights = {"fc.weight": torch.ones(1, 500), "fc.bias": torch.ones(1)}
    torch.save(weights, tmp_path / "new")
    torch.save(weights, tmp_path / "old", _use_new_zipfile_serialization=False)
    expected = {
        "zip": "is a zip archive of 1 files, the first models/readme.txt, not weights",
        "part": "is cut off or damaged .40 bytes are there",
        "tar": "is a tar archive; unpack it",
        "script": "is a TorchScript program.*state_dict",
    }
    for name in ("new", "old"):
        data = (tmp_path / name).read_bytes()
        for size in (20, len(data) // 4, len(data) // 2, len(data) - 1):
            (tmp_path / f"{name} {size}").write_bytes(data[:size])
            expected[f"{name} {size}"] = "is cut off or damaged"
    (tmp_path / "folder").mkdir()
    expected["folder"] = "is a folder; give the file"
    (tmp_path / "link").symlink_to("elsewhere")
    expected["link"] = "links to elsewhere, which does not exist"
    for name, words in expected.items():
        with pytest.raises(UserError, match=f"{name}: {words}") as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_format_is_told_by_the_contents_not_by_the_name(tmp_path):
    weights = {"fc.weight": torch.arange(3.0)}
    save_file(weights, tmp_path / "no suffix")
    torch.save(weights, tmp_path / "wrong.safetensors")
    for name in ("no suffix", "wrong.safetensors"):
        found = load_checkpoint(tmp_path / name)["state_dict"]
        torch.testing.assert_close(found, weights, rtol=0, atol=0)


def prefixed(prefix):
    return lambda weights: {f"{prefix}{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    "change",
    [
        dict,
        prefixed("module."),
        prefixed("module.module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module.model."),
        lambda weights: {
            key.replace("encoder.", "encoder._orig_mod."): value
            for key, value in weights.items()
        },
        lambda weights: {"model": weights},
        lambda weights: {"epoch": 3, "model_state_dict": prefixed("module.")(weights)},
        lambda weights: {"state_dict": {"model": prefixed("_orig_mod.")(weights)}},
        lambda weights: {"model": {"state_dict": weights, "step": 1}, "epoch": 3},
    ],
)
def test_weights_in_other_wrappers_serve_too(tmp_path, change):
    model = DeepFakeClassifier(B0)
    torch.save(change(model.state_dict()), tmp_path / NAMED)
    loaded, settings = load_classifier(tmp_path / NAMED)
    assert settings == InputSettings() and not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, expected[key])


def test_weights_alone_need_a_name_or_settings_that_give_the_encoder(tmp_path):
    weights = DeepFakeClassifier(B0).state_dict()
    config = Config(encoder=B0, input={"size": 96})
    torch.save({"model": weights, "config": config.model_dump()}, tmp_path / "any")
    assert load_classifier(tmp_path / "any")[1] == config.input
    torch.save(weights, tmp_path / "nameless")
    with pytest.raises(UserError, match="nameless: .*does not give the encoder"):
        load_classifier(tmp_path / "nameless")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda weights: weights.pop("fc.bias"),
            "1 of 362 entries are missing .fc.bias.;",
        ),
        (
            lambda weights: weights.update(extra=torch.ones(1)),
            "1 have no place in it .extra.;",
        ),
        (
            lambda weights: weights.update({"fc.bias": torch.ones(7)}),
            "1 are no tensors of its shape .fc.bias.;",
        ),
        (
            lambda weights: [weights.pop(key) for key in [*weights][:5]],
            "5 of 362 entries are missing .encoder.conv_stem.weight, .*, ….;",
        ),
        (
            lambda weights: weights.update({"module.fc.bias": torch.ones(1)}),
            "holds two networks .fc.bias is there twice",
        ),
        (
            lambda weights: weights.update({"state_dict": weights.copy()} | {"a": 1}),
            None,  # the entries beside `state_dict` are not the network's
        ),
        (
            lambda weights: weights.update({"a\nb\x1b[31m" * 99: torch.ones(1)}),
            r"1 have no place in it .a b\?\[31ma",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, words):
    weights = dict(DeepFakeClassifier(B0).state_dict())
    change(weights)
    torch.save(weights, tmp_path / NAMED)
    if words is None:
        load_classifier(tmp_path / NAMED)
        return
    with pytest.raises(UserError, match=words) as error:
        load_classifier(tmp_path / NAMED)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


def test_a_file_that_contains_itself_is_no_checkpoint(tmp_path):
    entries: dict = {}
    entries["model"] = entries
    torch.save(entries, tmp_path / NAMED)
    with pytest.raises(UserError, match="no `state_dict`"):
        load_classifier(tmp_path / NAMED)


def test_messages_are_cut_between_words():
    text = "word-with-hyphens " * 50
    short = one_line(text)
    assert len(short) <= 200 and short.endswith("hyphens …")
    assert one_line("a\n  b") == "a b" and one_line("a" * 200) == "a" * 200
    assert one_line("a" * 201) == "a" * 199 + "…"
