"""What runs the networks: PyTorch, or on a CPU OpenVINO where it is installed.

OpenVINO runs the same network with fused layers. A network is converted once (seconds)
and kept in a folder `.openvino` beside its checkpoint, named by the checkpoint's hash.

Each call runs in one thread, so that a score does not depend on their number.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.members import Engine
from runtime.cli import MachineError
from runtime.files import atomic_folder
from training.config import InputSettings
from training.model import DeepFakeClassifier, Normalize, to_channels_last

CACHE = ".openvino"
FORM = 1  # of the converted networks; another one is converted anew
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
        raise MachineError("--engine openvino: pip install openvino, or give torch")
    if precision == "auto":
        precision = "float16" if on_gpu else "float32"
    if precision == "float16" and not on_gpu:
        raise MachineError("--precision float16 needs a GPU; give float32")
    if precision == "bfloat16" and not on_gpu and not _has_bfloat16():
        raise MachineError(
            "--precision bfloat16: this processor has neither AMX nor AVX512-BF16 and "
            "would be slower; give float32"
        )
    return Engine(name, precision)


def _has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


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
        return self.model(self.normalize(images))


def input_shape(settings: InputSettings, count: int) -> list[int]:
    """The shape of `count` images or clips of a network."""
    clip = [settings.clip_frames] if settings.clip_frames else []
    return [count, *clip, settings.size, settings.size, 3]


class OpenVinoNetwork:
    """A network in OpenVINO; safe to call from several threads.

    Args:
        checkpoint: of the model.
        threads: how many call it at a time.
    """

    def __init__(
        self,
        model: DeepFakeClassifier,
        settings: InputSettings,
        checkpoint: Path,
        precision: str,
        threads: int,
    ):
        import openvino

        path = _converted(model, settings, checkpoint)
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[
                precision
            ],
        }
        network = openvino.Core().read_model(path)
        self._compiled = openvino.compile_model(network, "CPU", hints)
        self._own = threading.local()

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (N,) of images (N, S, S, 3) or clips (N, T, S, S, 3) uint8 RGB."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        (logits,) = self._own.request.infer([images.numpy()]).values()
        return torch.from_numpy(logits.copy())


def _converted(
    model: DeepFakeClassifier, settings: InputSettings, checkpoint: Path
) -> Path:
    """The converted network on disk, made if there is none or it is damaged."""
    import openvino

    version = openvino.__version__.partition("-")[0]
    name = f"{_hash(checkpoint)[:16]}_{version}_{FORM}"
    for place in (checkpoint.parent / CACHE, _user_cache()):
        folder = place / name
        if _is_whole(folder):
            return folder / "network.xml"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                _convert(model, settings, temporary)
        except (OSError, MachineError):  # a read-only or full disk: the next place
            pass
        if _is_whole(folder):  # perhaps by another process
            return folder / "network.xml"
    raise MachineError(
        f"{checkpoint.parent / CACHE}: cannot be written, nor {_user_cache()}; free some "
        "space, or give --engine torch"
    )


def _convert(model: DeepFakeClassifier, settings: InputSettings, folder: Path) -> None:
    import openvino

    packed = PackedNetwork(model, settings).eval()
    example = torch.zeros(input_shape(settings, 2), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, OpenVINO uses it
        network = openvino.convert_model(packed, example_input=example)
    network.reshape(input_shape(settings, -1))
    openvino.save_model(network, folder / "network.xml", compress_to_fp16=False)
    sums = {path.name: _hash(path) for path in folder.iterdir()}
    (folder / "sums.json").write_text(json.dumps(sums))


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "sums.json").read_text())
        return all(_hash(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "dfdc", "openvino")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
