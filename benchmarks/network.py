"""A network's forward pass over face crops that are in memory already.

    python -m benchmarks.network [--encoder tf_efficientnet_b7.ns_jft_in1k] [--size 380] [--device cuda]

plain: NCHW, all faces of a video in one batch, PyTorch as it comes (float16 on a GPU). The other rows add one thing each.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch

from benchmarks.measure import ratio_rows, side_by_side, synchronize
from inference.ensemble import CPU_BATCH, CPU_BATCH_PIXELS, GPU_BATCH
from runtime.cli import make_parser, positive_int
from runtime.process import tune_malloc
from runtime.results import print_results
from training.model import DeepFakeClassifier


@cache
def network_and_faces(encoder, size, faces, device, channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    precision = torch.float32 if device == "cpu" else torch.float16
    model = (
        DeepFakeClassifier(encoder).eval().to(device, precision, memory_format=layout)
    )
    return model, torch.randn(faces, 3, size, size).to(
        device, precision, memory_format=layout
    )


@cache
def threads():
    return ThreadPoolExecutor(
        torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1)
    )


def forward(
    encoder, size, faces, device, batch, channels_last=False, keep=False, apart=False
):
    if keep:
        tune_malloc()
    model, images = network_and_faces(encoder, size, faces, device, channels_last)
    with torch.inference_mode():
        for _ in (threads().map if apart else map)(
            torch.inference_mode()(model), images.split(batch)
        ):
            pass
    synchronize(device)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--encoder", default="tf_efficientnet_b7.ns_jft_in1k", help="of timm"
    )
    parser.add_argument("--size", type=positive_int, default=380, help="pixels a side")
    parser.add_argument("--faces", type=positive_int, default=32, help="faces a run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--rounds", type=positive_int, default=2, help="timed runs of each"
    )
    options = parser.parse_args(argv)
    on_cpu = options.device == "cpu"
    small = CPU_BATCH if on_cpu else GPU_BATCH
    way = partial(forward, options.encoder, options.size, options.faces, options.device)
    ways = {
        "plain": partial(way, options.faces),
        f"batches of {small}": partial(way, small),
    }
    if on_cpu:
        ways["+ memory kept"] = partial(way, small, keep=True)
    ways["+ channels last"] = partial(way, small, channels_last=True, keep=on_cpu)
    if on_cpu:
        alone = max(1, CPU_BATCH_PIXELS // options.size**2)
        ways[f"+ a thread for each {alone} = ours"] = partial(
            way, alone, channels_last=True, keep=True, apart=True
        )
    seconds = side_by_side(ways, options.rounds)
    rows = [
        row | {"seconds a face": round(row["seconds"] / options.faces, 4)}
        for row in ratio_rows(seconds, "plain")
    ]
    print_results(
        "network",
        rows,
        encoder=options.encoder,
        size=options.size,
        faces=options.faces,
        device=options.device,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
