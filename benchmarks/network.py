"""Time the forward pass of a network over face crops that are already in memory.

    python -m benchmarks.network [--encoder tf_efficientnet_b7.ns_jft_in1k]
        [--size 380] [--device cuda]

Variants: plain  NCHW, all faces of a video in one batch, PyTorch's defaults (float16 on
                 a GPU); each further row adds one change
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
    model = DeepFakeClassifier(encoder).eval()
    images = torch.randn(faces, 3, size, size)
    return (
        model.to(device, precision, memory_format=layout),
        images.to(device, precision, memory_format=layout),
    )


@cache
def thread_pool():
    """A pool of threads, in each of which PyTorch's operators are single-threaded."""
    return ThreadPoolExecutor(
        torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1)
    )


def forward(
    encoder,
    size,
    faces,
    device,
    batch,
    channels_last=False,
    keep_memory=False,
    parallel=False,
):
    """Run the network over all faces.

    Args:
        batch: faces a forward pass.
        keep_memory: let malloc keep freed memory, as inference does.
        parallel: run the batches in a thread pool, each on one thread.
    """
    if keep_memory:
        tune_malloc()
    model, images = network_and_faces(encoder, size, faces, device, channels_last)
    with torch.inference_mode():
        map_batches = thread_pool().map if parallel else map
        for _ in map_batches(torch.inference_mode()(model), images.split(batch)):
            pass
    synchronize(device)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--encoder",
        default="tf_efficientnet_b7.ns_jft_in1k",
        help="name of a timm encoder",
    )
    parser.add_argument(
        "--size", type=positive_int, default=380, help="input size, pixels a side"
    )
    parser.add_argument(
        "--faces", type=positive_int, default=32, help="number of faces"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--rounds", type=positive_int, default=2, help="timed runs of each variant"
    )
    options = parser.parse_args(argv)
    on_cpu = options.device == "cpu"
    small = CPU_BATCH if on_cpu else GPU_BATCH
    run = partial(forward, options.encoder, options.size, options.faces, options.device)
    variants = {
        "plain": partial(run, options.faces),
        f"batches of {small}": partial(run, small),
    }
    if on_cpu:
        variants["+ memory kept"] = partial(run, small, keep_memory=True)
    variants["+ channels last"] = partial(
        run, small, channels_last=True, keep_memory=on_cpu
    )
    if on_cpu:
        batch = max(1, CPU_BATCH_PIXELS // options.size**2)
        variants[f"+ a thread for each {batch} = ours"] = partial(
            run, batch, channels_last=True, keep_memory=True, parallel=True
        )
    seconds = side_by_side(variants, options.rounds)
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
