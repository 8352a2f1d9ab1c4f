"""Engines and precisions: what is chosen where; OpenVINO and ONNX files beside PyTorch."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import engine as engines
from inference import export, predict
from inference.engine import PackedNetwork, TorchNetwork, load_network, resolve
from inference.ensemble import Ensemble
from inference.extraction import VideoFaces
from inference.members import Engine, Member
from runtime.cli import MachineError, UserError
from tests.conftest import portrait_crops
from training.checkpoint import load_classifier, save_checkpoint
from training.config import Config
from training.networks import make_classifier

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


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
        (("openvino", "auto"), "cpu", False, True, "requirements-openvino.txt"),
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


@pytest.mark.parametrize(
    ("flags", "allowed", "expected"),
    [("avx2", True, False), ("avx512_bf16", True, True), ("avx512_bf16", False, False)],
)
def test_where_there_is_bfloat16(monkeypatch, flags, allowed, expected):
    """The processor's flag, and oneDNN, which ONEDNN_MAX_CPU_ISA may hold back."""
    monkeypatch.setattr(engines.Path, "read_text", lambda path: flags)
    name = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: allowed, raising=False)
    assert engines._has_bfloat16() == expected


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
    network, settings = load_network(path, CPU, Engine("openvino", precision), threads)
    assert path.suffix == ".onnx" or settings == load_classifier(path)[1]
    return network


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


def test_weights_in_a_folder_that_cannot_be_written(
    weights, tmp_path, monkeypatch, capsys
):
    openvino = pytest.importorskip("openvino")

    def fail(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")  # a full disk

    path = Path(shutil.copy(weights / "one", tmp_path))
    (tmp_path / engines.CACHE).write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    openvino_network(path)
    assert [*(tmp_path / "cache/dfdc/openvino").iterdir()]
    (tmp_path / "cache2").write_text("no folder either")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache2"))
    openvino_network(path)
    assert "cannot be written, nor" in capsys.readouterr().err
    monkeypatch.setattr(openvino, "save_model", fail)
    with pytest.raises(MachineError, match="cannot be written .*--engine torch"):
        openvino_network(path)


@pytest.mark.slow
@pytest.mark.parametrize("run", [1, 2])
def test_the_first_faces_of_two_threads_do_not_wait_for_each_other(weights, run):
    """OpenVINO's first use of NumPy by two threads hung in a third of such runs."""
    pytest.importorskip("openvino")
    openvino_network(weights / "one")  # which converts it, in this process
    code = (
        "import sys, threading, openvino, torch\n"
        "from pathlib import Path\n"
        "from inference.engine import Engine, load_network\n"
        "path, engine = Path(sys.argv[1]), Engine('openvino', 'float32')\n"
        "network, settings = load_network(path, torch.device('cpu'), engine, 2)\n"
        "images = torch.zeros(1, settings.size, settings.size, 3, dtype=torch.uint8)\n"
        "barrier, infer = threading.Barrier(2), openvino.InferRequest.infer\n"
        "def at_once(*arguments):\n"
        "    barrier.wait()\n"
        "    return infer(*arguments)\n"
        "openvino.InferRequest.infer = at_once\n"
        "sys.setswitchinterval(1e-6)\n"
        "threads = [threading.Thread(target=network, args=[images]) for _ in '12']\n"
        "[each.start() for each in threads]\n"
        "[each.join() for each in threads]\n"
    )
    arguments = [sys.executable, "-c", code, weights / "one"]
    subprocess.run(arguments, check=True, timeout=60, cwd=ROOT)


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


@pytest.fixture(scope="module")
def exported(weights):
    """A function that exports a checkpoint once, and gives the ONNX file beside it."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)

    def export_once(name, precision="float32"):
        output = weights / f"{name}_{precision}.onnx"
        if not output.exists():
            arguments = ["--model", weights / name, "--output", output]
            arguments += ["--precision", precision]
            assert export.main([str(each) for each in arguments]) == 0
        return output

    return export_once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [("one", "float32"), ("clip", "float16")]
)
def test_an_onnx_file_gives_the_answers_of_its_checkpoint(
    weights, exported, name, precision
):
    path = exported(name, precision)
    network, settings = load_network(path, CPU, Engine("torch", "float32"), threads=1)
    model, expected_settings = load_classifier(weights / name)
    assert settings == expected_settings
    images = torch.from_numpy(portrait_crops(6, 64))
    if name == "clip":
        images = images.view(2, 3, 64, 64, 3)
    with torch.inference_mode():
        expected = TorchNetwork(model, settings, CPU, "float32")(images)
    tolerance = 1e-5 if precision == "float32" else 5e-3
    assert expected.std() > 1e-3
    for count in (len(images), 1):  # any number of images
        ours = torch.sigmoid(network(images[:count]))
        theirs = torch.sigmoid(expected[:count])
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_openvino_reads_an_onnx_file_too(weights, exported):
    images = torch.from_numpy(portrait_crops(6, 64))
    expected = openvino_network(weights / "one")(images)
    ours = openvino_network(exported("one"))(images)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_an_onnx_file_that_would_differ_is_not_written(weights, tmp_path, exported):
    packed = export._to_onnx

    def damaged(network, images):
        with torch.no_grad():
            network.model.fc.bias += 0.01
        return packed(network, images)

    model, settings = load_classifier(weights / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_to_onnx", damaged)
        with pytest.raises(UserError, match="in float32 by 0.00.*use the checkpoint"):
            export.export(model, settings, tmp_path / "model.onnx", "float32")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_prediction_with_an_onnx_file(weights, exported, dfdc, tmp_path, capsys):
    """Beside a checkpoint: the same faces and, nearly, scores; no heatmaps."""
    path = exported("one")
    video = next((dfdc / "dfdc_train_part_3").glob("*.mp4"))
    arguments = [
        *(
            "--test-dir",
            video,
            "--weights-dir",
            weights,
            "--output",
            tmp_path / "s.csv",
        ),
        *("--workers", "0", "--device", "cpu", "--faces-csv", tmp_path / "faces.csv"),
    ]
    arguments = [str(each) for each in arguments]
    assert predict.main([*arguments, "--models", path.name, "one"]) == 0
    with open(tmp_path / "faces.csv") as file:
        rows = [*csv.DictReader(file)]
    scores = {
        model: [float(row["probability"]) for row in rows if row["model"] == model]
        for model in (path.name, "one")
    }
    assert len(scores["one"]) == len(rows) / 2 > 0
    assert scores[path.name] == pytest.approx(scores["one"], abs=1e-5)
    report = ["--report", str(tmp_path / "report"), "--grad-cam", "1"]
    capsys.readouterr()
    with pytest.raises(MachineError, match="one_float32.onnx is an ONNX file; put a "):
        predict.main([*arguments, "--models", path.name, *report])
    assert "predict:" not in capsys.readouterr().err  # before any video


def test_files_that_are_no_exported_networks(tmp_path, exported):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"

    def load(precision="float32"):
        return load_network(path, CPU, Engine("torch", precision), threads=1)

    path.write_bytes(b"no network")
    with pytest.raises(UserError, match="model.onnx: is no ONNX file; export it"):
        load()
    for changed, message in (
        (lambda model: model.metadata_props.pop(0), "holds no input settings"),
        (lambda model: model.graph.output.pop(), "has other inputs or outputs"),
        (damage, "is damaged; export it"),
        (lambda model: set_outside(onnx, model), "data from other files, which is ref"),
    ):
        model = onnx.load(exported("one"))
        changed(model)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=message):
            load()
    path = exported("one")
    with pytest.raises(MachineError, match="the file's own precision"):
        load("bfloat16")


def damage(model):
    """Change one of the weights."""
    weights = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    weights.raw_data = weights.raw_data[:-4] + b"\x00\x00\x00\x40"


def set_outside(onnx, model):
    """Give the last weights' place as a file outside."""
    weights = model.graph.initializer[-1]
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")


def test_half_is_changed_most_where_the_logit_changes_most():
    expected = torch.tensor([0.0, -9.0, 4.0])
    logits = torch.tensor([0.004, -9.0, 4.32])
    assert export.change_of_half(logits, expected) == pytest.approx(0.02)


def test_packages_that_are_not_there_are_named(weights, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError, match="pip install -r requirements-onnx.txt"):
        export.export(*load_classifier(weights / "one"), tmp_path / "m.onnx", "float32")
    with pytest.raises(MachineError, match="needs onnx; pip install -r"):
        load_network(tmp_path / "m.onnx", CPU, Engine("torch", "float32"), threads=1)
    arguments = ["--model", str(weights / "one"), "--output", str(tmp_path / "model")]
    with pytest.raises(UserError, match="must end in .onnx"):
        export.main(arguments)
