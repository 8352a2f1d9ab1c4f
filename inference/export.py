"""Export a checkpoint as an ONNX file, which runs without this project and PyTorch.

    python -m inference.export --model weights/CHECKPOINT --output model.onnx

Reads  --model: a checkpoint of `training.train` or of the winner
Writes the network: `images` (N, S, S, 3) uint8 RGB, or (N, T, S, S, 3) of a clip network,
       for any N; the normalisation inside; `logit` (N,) float32, whose sigmoid is the
       probability of FAKE. All input settings are in its metadata, so that
       `inference.predict --models model.onnx` cuts faces as for the checkpoint.
Method: torch.onnx, opset 18. Before the file gets its name, ONNX Runtime and PyTorch see
       the same seeded images: a probability of 0.5 may change by 1e-4, in float16 by
       5e-3. float16 is also tried in PyTorch, since ONNX Runtime on a CPU rounds only
       the weights.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from inference.engine import (
    INPUT_KEY,
    INSTALL_ONNX,
    ONNX,
    SUM_KEY,
    PackedNetwork,
    graph_sum,
    input_shape,
    onnx_network,
)
from runtime.cli import MachineError, UserError, make_parser, one_line, run_main
from runtime.files import atomic_file, file_size
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.model import DeepFakeClassifier

OPSET = 18
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}  # of a probability
CHECKED = 8  # images


def export(
    model: DeepFakeClassifier, settings: InputSettings, path: Path, precision: str
) -> float:
    """Write a network as an ONNX file, once it is seen to give PyTorch's answers.

    Args:
        model: in eval mode, float32, on the CPU.
        precision: of `TOLERANCE`; the model's weights are changed to it.

    Returns:
        the largest change of a probability of 0.5.

    Raises:
        MachineError: a package is missing.
        UserError: the network cannot be exported, or its answers differ.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MachineError(f"{error.name} is not installed; {INSTALL_ONNX}") from error
    images = seeded_images(settings)
    packed = PackedNetwork(model, settings).eval()
    with torch.inference_mode():
        expected = packed(images)
        model.to(getattr(torch, precision))
        answers = [packed(images)]
    exported = _to_onnx(packed, images[:2])
    exported.metadata_props.add(key=INPUT_KEY, value=settings.model_dump_json())
    exported.metadata_props.add(key=SUM_KEY, value=graph_sum(exported))
    with atomic_file(path) as temporary:
        onnx.save(exported, temporary)
        network = onnx_network(temporary, torch.device("cpu"))
        answers += [network(images), network(images[:1])]  # any number of images
        difference = max(
            change_of_half(each, expected[: len(each)]) for each in answers
        )
        if not difference <= TOLERANCE[precision]:  # NaN neither
            remedy = "leave it out" if precision == "float16" else "use the checkpoint"
            raise UserError(
                f"{path}: not written, since its answers differ from PyTorch's in float32 "
                f"by {difference:.1g}, more than the {TOLERANCE[precision]:g} of "
                f"--precision {precision}; {remedy}"
            )
    return difference


def change_of_half(logits: Tensor, expected: Tensor) -> float:
    """By how much logits change a probability of 0.5, at most.

    The probabilities themselves would hide a difference where they are near 0 or 1. Of a
    logit beyond 1 the relative difference counts.
    """
    change = (logits - expected).abs() / expected.abs().clamp(min=1)
    return change.max().item() / 4  # the sigmoid's slope at 0.5


def seeded_images(settings: InputSettings) -> Tensor:
    """Images or clips (8, …, S, S, 3) uint8 RGB: colours that change smoothly over the
    image, from slowly to fast, the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    _, *clip, side, _, _ = input_shape(settings, CHECKED)
    images = []
    for number in range(CHECKED):
        cells = 2 + 2 * number
        colours = torch.rand([*(clip or [1]), 3, cells, cells], generator=generator)
        image = functional.interpolate(colours, (side, side), mode="bilinear")
        images.append(image if clip else image[0])
    return (255 * torch.stack(images).movedim(-3, -1)).to(torch.uint8).contiguous()


def _to_onnx(packed: PackedNetwork, images: Tensor) -> Any:
    shapes = {"images": {0: torch.export.Dim("N")}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                packed,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logit"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"torch.onnx cannot export this network ({one_line(error)}); use the "
            "checkpoint, or an encoder of timm"
        ) from error
    assert program is not None
    return program.model_proto


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint")
    parser.add_argument(
        "--output", type=Path, required=True, help=f"the ONNX file, *{ONNX}"
    )
    parser.add_argument(
        "--precision",
        choices=TOLERANCE,
        default="float32",
        help="of the weights and the arithmetic; float16 is half as large",
    )
    options = parser.parse_args(argv)
    if options.output.suffix != ONNX:
        raise UserError(f"--output {options.output}: must end in {ONNX}")
    if options.model.suffix == ONNX:
        raise UserError(f"--model {options.model}: is an ONNX file; give a checkpoint")
    loaded = load_classifier(options.model)
    difference = export(*loaded, options.output, options.precision)
    print(
        f"{options.output}: {file_size(options.output) / 1e6:.1f} MB; probabilities "
        f"within {difference:.1g} of PyTorch's in float32 on {CHECKED} images"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
