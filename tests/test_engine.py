"""Engines and precisions: what is chosen where, OpenVINO beside PyTorch, its cache."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import engine as engines
from inference import predict
from inference.engine import OpenVinoNetwork, PackedNetwork, TorchNetwork, resolve
from inference.ensemble import Ensemble
from inference.extraction import VideoFaces
from inference.members import Engine, Member
from runtime.cli import MachineError
from tests.conftest import portrait_crops
from training.checkpoint import load_classifier, save_checkpoint
from training.config import Config
from training.networks import make_classifier

CPU = torch.device("cpu")


@pytest.fixture
def installed(monkeypatch):
    """A function that says whether OpenVINO and bfloat16 are there."""

    def set_machine(openvino: bool, bfloat16: bool) -> None:
        spec = object() if openvino else None
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(engines, "_has_bfloat16", lambda: bfloat16)

    return set_machine


@pytest.mark.parametrize(
    ("asked", "device", "openvino", "bfloat16", "expected"),
    [
        (("auto", "auto"), "cpu", True, True, ("openvino", "float32")),
        (("auto", "auto"), "cpu", False, True, ("torch", "float32")),
        (("auto", "auto"), "cuda", True, False, ("torch", "float16")),
        (("torch", "bfloat16"), "cpu", True, True, ("torch", "bfloat16")),
        (("torch", "bfloat16"), "cuda", True, False, ("torch", "bfloat16")),
        (("openvino", "auto"), "cpu", False, True, "pip install openvino"),
        (("openvino", "auto"), "cuda", True, True, "runs on CPUs"),
        (("auto", "float16"), "cpu", True, True, "needs a GPU"),
        (("auto", "bfloat16"), "cpu", True, False, "neither AMX nor AVX512-BF16"),
    ],
)
def test_what_is_chosen(installed, asked, device, openvino, bfloat16, expected):
    installed(openvino, bfloat16)
    if isinstance(expected, str):
        with pytest.raises(MachineError, match=expected):
            resolve(Engine(*asked), device)
    else:
        assert resolve(Engine(*asked), device) == expected


def test_a_packed_network_takes_pixels_and_gives_logits(checkpoints):
    model, settings = load_classifier(checkpoints / "one")
    images = torch.from_numpy(portrait_crops(3, 64))
    network = TorchNetwork(model, settings, CPU, "float32")
    with torch.inference_mode():
        packed = PackedNetwork(model, settings)(images)
        torch.testing.assert_close(packed, network(images))


def test_bfloat16_rounds_and_keeps_the_order_of_magnitude(checkpoints, installed):
    installed(openvino=False, bfloat16=True)
    images = portrait_crops(8, 64)
    faces = VideoFaces({64: images}, [*range(8)], [0.0] * 8, [(0, 0, 9, 9)] * 8)
    member = Member(checkpoint=str(checkpoints / "one"))
    ((exact,),) = Ensemble([member], "cpu")([faces])
    ((rounded,),) = Ensemble([member], "cpu", Engine("torch", "bfloat16"))([faces])
    assert 0 < np.abs(exact - rounded).max() < 0.05


@pytest.fixture(scope="module")
def weights(checkpoints, tmp_path_factory):
    """Checkpoints `one` of frames, `clip` of clips, `attention`, of a folder of their own."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(checkpoints / "one", folder)
    torch.manual_seed(0)
    for name, more in (
        ("clip", {"input": {"size": 64, "clip_frames": 3, "clip_spacing": 0.1}}),
        ("attention", {"input": {"size": 64}, "head": "attention", "srm": True}),
    ):
        config = Config(encoder="tf_efficientnet_lite0", pretrained="none", **more)
        model = make_classifier(config)
        for layer in model.modules():  # statistics of images, else logits are huge
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        images = torch.from_numpy(portrait_crops(30, 64))
        with torch.no_grad():
            model.train()(
                TorchNetwork(model, config.input, CPU, "float32").inputs(images)
            )
        saved = config.model_dump(mode="json")
        save_checkpoint(folder / name, state_dict=model.state_dict(), config=saved)
    return folder


def openvino_network(path, threads=1, precision="float32"):
    pytest.importorskip("openvino")
    return OpenVinoNetwork(*load_classifier(path), path, precision, threads)


@pytest.mark.parametrize("name", ["one", "clip", "attention"])
def test_openvino_beside_pytorch(weights, name):
    path = weights / name
    network = openvino_network(path)
    images = torch.from_numpy(portrait_crops(6, 64))
    if name == "clip":
        images = images.view(2, 3, 64, 64, 3)
    reference = TorchNetwork(*load_classifier(path), CPU, "float32")
    with torch.inference_mode():
        expected = reference(images)
    for count in (len(images), 1):  # any number of images
        ours = torch.sigmoid(network(images[:count]))
        theirs = torch.sigmoid(expected[:count])
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert expected.std() > 1e-3


def test_a_network_is_converted_once_and_again_where_the_copy_is_damaged(
    weights, tmp_path, monkeypatch
):
    path = Path(shutil.copy(weights / "one", tmp_path))
    images = torch.from_numpy(portrait_crops(2, 64))
    first = openvino_network(path)(images)
    calls = []

    def convert(*arguments, real=engines._convert):
        calls.append(arguments)
        real(*arguments)

    monkeypatch.setattr(engines, "_convert", convert)
    assert torch.equal(openvino_network(path)(images), first) and not calls
    (folder,) = (tmp_path / engines.CACHE).iterdir()
    data = (folder / "network.bin").read_bytes()
    (folder / "network.bin").write_bytes(data[:-8] + b"damaged!")
    assert torch.equal(openvino_network(path)(images), first) and len(calls) == 1
    # another checkpoint of the same name is another network
    shutil.copy(weights / "attention", path)
    assert not torch.equal(openvino_network(path)(images), first)
    assert len(calls) == 2


def test_weights_in_a_folder_that_cannot_be_written(weights, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    path = Path(shutil.copy(weights / "one", tmp_path))
    (tmp_path / engines.CACHE).write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    openvino_network(path)
    assert [*(tmp_path / "cache/dfdc/openvino").iterdir()]
    (tmp_path / "cache2").write_text("no folder either")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache2"))
    with pytest.raises(MachineError, match="cannot be written, nor .*--engine torch"):
        openvino_network(path)


def test_scores_do_not_depend_on_threads_and_are_those_of_pytorch(
    weights, dfdc, tmp_path
):
    pytest.importorskip("openvino")
    labels = {}
    video = next((dfdc / "dfdc_train_part_3").glob("*.mp4"))
    for name, threads, options in (
        ("torch", 2, ["--engine", "torch"]),
        ("one", 1, ["--engine", "openvino"]),
        ("two", 2, []),  # auto
    ):
        torch.set_num_threads(threads)
        output = tmp_path / f"{name}.csv"
        arguments = [
            *("--test-dir", video, "--weights-dir", weights, "--models", "one", "clip"),
            *("--output", output, "--workers", "0", "--device", "cpu", *options),
        ]
        assert predict.main([str(each) for each in arguments]) == 0
        with open(output) as file:
            (row,) = csv.DictReader(file)
        labels[name] = row["label"]
    assert labels["one"] == labels["two"] != labels["torch"]
    assert float(labels["one"]) == pytest.approx(float(labels["torch"]), abs=1e-5)
