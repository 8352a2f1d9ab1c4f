"""What runs the networks: PyTorch, or on a CPU OpenVINO where it is installed.

OpenVINO runs the same network with fused layers. A network is converted once (seconds)
and kept in a folder `.openvino` beside its checkpoint, named by the checkpoint's hash.

An ONNX file of `inference.export` is run by OpenVINO too where it is the engine, else by
ONNX Runtime.

Each call runs in one thread, so that a score does not depend on their number.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from inference.members import Engine
from runtime.cli import MachineError, UserError, one_line
from runtime.files import atomic_folder
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.model import DeepFakeClassifier, Normalize, to_channels_last

CACHE = ".openvino"
FORM = 2  # of the converted networks; another one is converted anew
ONNX = ".onnx"
# An ONNX file's metadata: the input settings as JSON, the SHA-256 of the graph.
INPUT_KEY, SUM_KEY = "dfdc.input", "dfdc.sha256"
INSTALL_ONNX = "pip install -r requirements-onnx.txt -c constraints.txt"
INSTALL_OPENVINO = "pip install -r requirements-openvino.txt -c constraints.txt"
Network = Callable[[Tensor], Tensor]


def resolve(engine: Engine, device: str) -> Engine:
    """The engine and precision that are used on a device.

    Raises:
        MachineError: they do not exist here.
    """
    on_gpu = device.startswith("cuda")
    name, precision = engine
    installed = importlib.util.find_spec("openvino") is not None
    if name == "auto":
        name = "openvino" if installed and not on_gpu else "torch"
    if name == "openvino" and on_gpu:
        raise MachineError(
            "--engine openvino runs on CPUs; give --device cpu, or torch"
        )
    if name == "openvino" and not installed:
        raise MachineError(f"--engine openvino: {INSTALL_OPENVINO}, or give torch")
    if precision == "auto":
        precision = "float16" if on_gpu else "float32"
    if precision == "float16" and not on_gpu:
        raise MachineError(
            "--precision float16 needs a GPU; give float32, or bfloat16 where the "
            "processor has it"
        )
    if precision == "bfloat16" and not on_gpu and not _has_bfloat16():
        raise MachineError(
            "--precision bfloat16: this processor has neither AMX nor AVX512-BF16, or "
            "ONEDNN_MAX_CPU_ISA hides them; give float32"
        )
    return Engine(name, precision)


def _has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    has_flag = "avx512_bf16" in flags or "amx_bf16" in flags
    # false where ONEDNN_MAX_CPU_ISA forbids them; OpenVINO would end with SIGSEGV
    return has_flag and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def load_network(
    path: Path, device: torch.device, engine: Engine, threads: int
) -> tuple[Network, InputSettings]:
    """Load a checkpoint or ONNX file for an engine that `resolve` has given.

    Args:
        threads: how many call the network at a time.

    Returns:
        the network, from images (N, S, S, 3) or clips (N, T, S, S, 3) uint8 RGB to
        logits (N,), and its input settings.

    Raises:
        UserError: the file is no network of this project.
        MachineError: it cannot be run here.
    """
    if path.suffix == ONNX:
        settings = read_onnx(path)
        if engine.name == "openvino":
            return openvino_network(path, engine.precision, threads), settings
        if engine.precision == "bfloat16":
            raise MachineError(
                f"{path}: ONNX Runtime has the file's own precision; leave --precision "
                "out"
            )
        return onnx_network(path, device), settings
    if engine.name == "openvino":
        folder, settings = _converted(path)
        network = openvino_network(folder / "network.xml", engine.precision, threads)
        return network, settings
    model, settings = load_classifier(path)
    return TorchNetwork(model, settings, device, engine.precision), settings


class TorchNetwork:
    """A network in PyTorch.

    Args:
        model: in eval mode.
    """

    def __init__(
        self,
        model: DeepFakeClassifier,
        settings: InputSettings,
        device: torch.device,
        precision: str,
    ):
        self.device, self.dtype = device, getattr(torch, precision)
        self.model = to_channels_last(model.to(device, self.dtype))
        self._normalize = Normalize(settings.mean, settings.std).to(device)

    def inputs(self, images: Tensor) -> Tensor:
        """Images (N, S, S, 3) or clips (N, T, S, S, 3) uint8 RGB as the model's input."""
        return self._normalize(images.to(self.device)).to(self.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (N,) of such images."""
        return self.model(self.inputs(images))


class PackedNetwork(nn.Module):
    """A network with its normalisation: from images (N, S, S, 3) or clips (N, T, S, S, 3)
    uint8 RGB to logits (N,) float32.
    """

    def __init__(self, model: DeepFakeClassifier, settings: InputSettings):
        super().__init__()
        self.model = model
        self.normalize = Normalize(settings.mean, settings.std)

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return self.model(self.normalize(images).to(dtype)).float()


def input_shape(settings: InputSettings, count: int) -> list[int]:
    """The shape of `count` images or clips of a network."""
    clip = [settings.clip_frames] if settings.clip_frames else []
    return [count, *clip, settings.size, settings.size, 3]


def openvino_network(path: Path, precision: str, threads: int) -> Network:
    """A network in OpenVINO; safe to call from several threads.

    Args:
        path: an ONNX file, or the .xml file of a converted network.
    """
    import openvino

    # Its first use of NumPy by two threads at a time can wait for ever (2026.4.1).
    openvino.Tensor(np.zeros(1, np.uint8))
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    try:
        compiled = openvino.compile_model(path, "CPU", hints)
    except RuntimeError as error:
        raise UserError(
            f"{path}: OpenVINO cannot run it ({one_line(error)}); give --engine torch"
        ) from error
    own = threading.local()

    def run(images: Tensor) -> Tensor:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        (logits,) = own.request.infer([images.numpy()]).values()
        return torch.from_numpy(logits.copy())

    return run


def read_onnx(path: Path) -> InputSettings:
    """Check an ONNX file, which may come from a stranger, and read its input settings.

    Raises:
        UserError: it is no file of `inference.export`.
        MachineError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise MachineError(
            f"{path}: an ONNX file needs onnx; {INSTALL_ONNX}"
        ) from error
    remedy = "export it by `python -m inference.export`"
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # its errors have no common class
        raise UserError(f"{path}: is no ONNX file; {remedy}") from error
    if _has_external_data(model):
        raise UserError(f"{path}: asks for data from other files, which is refused")
    metadata = {each.key: each.value for each in model.metadata_props}
    try:
        settings = InputSettings.model_validate_json(metadata.get(INPUT_KEY, ""))
    except ValidationError as error:
        raise UserError(
            f"{path}: holds no input settings of this version; {remedy}"
        ) from error
    types = onnx.TensorProto
    found = [_describe(each) for each in (*model.graph.input, *model.graph.output)]
    expected = [(types.UINT8, input_shape(settings, -1)), (types.FLOAT, [-1])]
    if found != expected:
        raise UserError(f"{path}: has other inputs or outputs; {remedy}")
    if graph_sum(model) != metadata.get(SUM_KEY):
        raise UserError(f"{path}: is damaged; {remedy}")
    return settings


def graph_sum(model: Any) -> str:
    """The SHA-256 of an ONNX model's graph, its weights included."""
    data = model.graph.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()


def _describe(value: Any) -> tuple[int, list[int]]:
    """Type and shape of an onnx.ValueInfoProto; -1 for any number."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [each.dim_value or -1 for each in tensor.shape.dim]


def _has_external_data(message: Any) -> bool:
    """Whether a tensor of a protocol buffer lies in another file, of any path."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            return True
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(_has_external_data(part) for part in parts):
                return True
    return False


def onnx_network(path: Path, device: torch.device) -> Network:
    """An ONNX file in ONNX Runtime; safe to call from several threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError(
            f"{path}: an ONNX file needs OpenVINO or ONNX Runtime; {INSTALL_ONNX}"
        ) from error
    on_gpu = device.type == "cuda"
    providers: list = ["CPUExecutionProvider"]
    if on_gpu:
        # the exhaustive search, its default, may choose differently from run to run
        choices = {
            "device_id": device.index or 0,
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        providers.insert(0, ("CUDAExecutionProvider", choices))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its errors have no common class
        raise UserError(
            f"{path}: ONNX Runtime cannot run it ({one_line(error)}); export it again"
        ) from error
    if on_gpu and "CUDAExecutionProvider" not in session.get_providers():
        raise MachineError(
            f"{path}: ONNX Runtime finds no GPU; give the checkpoint, or --device cpu, or "
            "uninstall onnxruntime and install an onnxruntime-gpu for this CUDA"
        )
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        try:
            (logits,) = session.run(None, {name: images.numpy()})
        except Exception as error:
            raise MachineError(
                f"{path}: ONNX Runtime failed on {device} ({one_line(error)}); give the "
                "checkpoint in its place"
            ) from error
        return torch.from_numpy(logits)

    return run


def _converted(checkpoint: Path) -> tuple[Path, InputSettings]:
    """The folder of the converted network, made if there is none or it is damaged, and
    the input settings. Where it cannot be kept it is made for this process alone.

    Raises:
        UserError: as `load_classifier`.
        MachineError: it cannot be written anywhere.
    """
    import openvino

    version = openvino.__version__.partition("-")[0]
    defaults = hashlib.sha256(InputSettings().model_dump_json().encode()).hexdigest()
    name = f"{_hash(checkpoint)[:16]}_{version}_{FORM}_{defaults[:8]}"
    places = [checkpoint.parent / CACHE / name, _user_cache() / name]
    for folder in places:
        if settings := _read_whole(folder):
            return folder, settings
    loaded = load_classifier(checkpoint)
    print(f"{checkpoint}: converting it for OpenVINO", file=sys.stderr)
    for folder in places:
        if settings := _keep(*loaded, folder):
            return folder, settings
    print(
        f"{places[0].parent}: cannot be written, nor {places[1].parent} (of "
        "XDG_CACHE_HOME): each run will convert it",
        file=sys.stderr,
    )
    try:
        _temporary.append(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    except OSError:
        reason = "no folder for temporary files can be written"
    else:
        folder = Path(_temporary[-1].name, name)
        if settings := _keep(*loaded, folder):
            return folder, settings
        reason = (
            f"{folder.parent}: the converted network cannot be written there either"
        )
    raise MachineError(f"{reason}; free some space, or give --engine torch")


def _keep(
    model: DeepFakeClassifier, settings: InputSettings, folder: Path
) -> InputSettings | None:
    """Convert into a folder, in place of what is there. Returns: as `_read_whole`."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            _convert(model, settings, temporary)
    except (OSError, MachineError):  # a read-only or full disk
        pass
    return _read_whole(folder)  # perhaps by another process


_temporary: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def _convert(model: DeepFakeClassifier, settings: InputSettings, folder: Path) -> None:
    import openvino

    packed = PackedNetwork(model, settings).eval()
    example = torch.zeros(input_shape(settings, 2), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, OpenVINO uses it
        network = openvino.convert_model(packed, example_input=example)
    network.reshape(input_shape(settings, -1))
    try:
        openvino.save_model(network, folder / "network.xml", compress_to_fp16=False)
    except RuntimeError as error:  # a full disk
        raise OSError(one_line(error)) from error
    (folder / "settings.json").write_text(settings.model_dump_json())
    sums = {path.name: _hash(path) for path in folder.iterdir()}
    (folder / "sums.json").write_text(json.dumps(sums))


def _read_whole(folder: Path) -> InputSettings | None:
    """The input settings of a converted network; None if it is missing or damaged."""
    try:
        sums = json.loads((folder / "sums.json").read_text())
        if any(_hash(folder / name) != value for name, value in sums.items()):
            return None
        text = (folder / "settings.json").read_text()
        return InputSettings.model_validate_json(text)
    except (OSError, ValueError):
        return None


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "dfdc", "openvino")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
