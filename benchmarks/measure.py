"""Helpers of the speed benchmarks: timing, memory, synthetic videos and checkpoints.

The variants of a stage run alternately, each in a spawned process of its own, after one
warm-up run: if the speed of the machine drifts, all variants are affected alike. Whole
programs run once, one after the other. Quote the ratios; the seconds depend on the
machine and the day.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from statistics import median


def side_by_side(
    variants: dict[str, Callable[[], object]], rounds: int, threads: int | None = None
) -> dict[str, float]:
    """Time several variants alternately.

    Args:
        variants: name → function of a module, or a `functools.partial` of one.
        rounds: timed runs of each, after one warm-up run.
        threads: of OpenCV and PyTorch in each process; their defaults if not given.

    Returns:
        Median seconds of each variant.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with ExitStack() as stack:
        pools = {}
        for name in variants:
            pool = ProcessPoolExecutor(
                1, get_context("spawn"), initializer=_set_threads, initargs=(threads,)
            )
            pools[name] = stack.enter_context(pool)
        for number in range(rounds + 1):
            for name, variant in variants.items():
                elapsed = pools[name].submit(timed, variant).result()
                if number:
                    seconds[name].append(elapsed)
    return {name: median(each) for name, each in seconds.items()}


def time_once(variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each variant, run once in this process.

    For whole programs, whose start-up counts.
    """
    return {name: timed(variant) for name, variant in variants.items()}


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_in_new_process(task) -> tuple[object, float, float]:
    """Run a task in a spawned process.

    Returns:
        The task's result, its seconds, and the peak memory in MiB that it added.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_measure, args=(task, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure(task, sender) -> None:
    # reset the peak, which includes that of the imports
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _memory("VmRSS"), time.perf_counter()
    result = task()
    sender.send((result, time.perf_counter() - start, _memory("VmHWM") - before))


def _memory(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def ratio_rows(seconds: dict[str, float], plain: str) -> list[dict]:
    """One row for each variant: its seconds, and its speed-up over `plain`."""
    return [
        {
            "way": name,
            "seconds": round(each, 3),
            "times plain": round(seconds[plain] / each, 2),
        }
        for name, each in seconds.items()
    ]


def synchronize(device: str) -> None:
    """Wait until the device has finished, if it is a GPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def make_video(
    path: Path,
    width: int = 1920,
    height: int = 1080,
    seconds: float = 10,
    fake: bool = False,
) -> Path:
    """Write a clip of a public-domain portrait that moves in front of noise.

    H.264, as DFDC's videos.

    Args:
        fake: blur the portrait.
    """
    import av
    import cv2
    import numpy as np
    import skimage.data

    from preprocessing.video import X264_OPTIONS

    portrait = cv2.resize(skimage.data.astronaut(), (height * 2 // 3, height * 2 // 3))
    if fake:
        portrait = cv2.GaussianBlur(portrait, (0, 0), 3)
    noise = np.random.default_rng(0).integers(
        90, 150, (height // 8 + 1, width // 8 + 60, 3), dtype=np.uint8
    )
    noise = cv2.resize(noise, None, fx=8, fy=8)
    side = len(portrait)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=30,
            options=X264_OPTIONS | {"crf": "23", "preset": "veryfast"},
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(int(seconds * 30)):
            frame = np.ascontiguousarray(
                noise[:height, number % 400 : number % 400 + width]
            )
            left = (width - side) * (number % 200) // 200
            top = (height - side) * (number % 90) // 90
            frame[top : top + side, left : left + side] = portrait
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def make_checkpoints(folder: Path, encoders: Sequence[str], size: int) -> list[Path]:
    """Write checkpoints of untrained networks, which cost as much as trained ones.

    The last layer is scaled up, so that the probabilities spread over 0..1.
    """
    import torch

    from training.checkpoint import save_checkpoint
    from training.config import Config
    from training.model import DeepFakeClassifier

    paths = []
    for number, encoder in enumerate(encoders):
        torch.manual_seed(number)
        config = Config(encoder=encoder, pretrained="none", input={"size": size})
        paths.append(folder / f"made_{number}_{encoder}")
        weights = DeepFakeClassifier(encoder).state_dict()
        weights["fc.weight"] *= 30
        save_checkpoint(
            paths[-1],
            epoch=1,
            state_dict=weights,
            bce_best=0.5,
            config=config.model_dump(),
        )
    return paths


def run_module(module: str, *arguments: object) -> None:
    """Run `python -m MODULE ARGUMENTS` in the project's folder, without its output."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def _set_threads(threads: int | None) -> None:
    if threads:
        import cv2
        import torch

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
