"""What the speed benchmarks share: two ways side by side, a table, one JSON line, a made video.

A stage's ways run in a process each, started by spawn, once to warm up and then in turn, so that a machine whose speed drifts
slows all of them; whole programs run once, one after the other. Quote the ratios; seconds are those of this machine on this day.
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
    ways: dict[str, Callable[[], object]], rounds: int, threads: int | None = None
) -> dict[str, float]:
    """Median seconds of each way. A way is a module's function, or a `functools.partial` of one.

    Args:
        rounds: how often each is timed, after one run to warm up.
        threads: of OpenCV and PyTorch in each process; as they come if not given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                ProcessPoolExecutor(
                    1,
                    get_context("spawn"),
                    initializer=_set_threads,
                    initargs=(threads,),
                )
            )
            for name in ways
        }
        for number in range(rounds + 1):
            for name, way in ways.items():
                taken = pools[name].submit(timed, way).result()
                if number:
                    seconds[name].append(taken)
    return {name: median(each) for name, each in seconds.items()}


def one_after_the_other(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each way, run once in this process: for whole programs, whose start-up counts."""
    return {name: timed(way) for name, way in ways.items()}


def timed(way: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def in_a_new_process(work) -> tuple[object, float, float]:
    """What it returns, its seconds, and how many MiB it added to the process at most."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _measure(work, pipe) -> None:
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak begins anew, without that of the imports
    before, start = _status("VmRSS"), time.perf_counter()
    result = work()
    pipe.send((result, time.perf_counter() - start, _status("VmHWM") - before))


def _status(key: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def ratio_rows(seconds: dict[str, float], plain: str) -> list[dict]:
    """One row for each way, with its seconds and how many times faster than `plain` it is."""
    return [
        {
            "way": name,
            "seconds": round(each, 3),
            "times plain": round(seconds[plain] / each, 2),
        }
        for name, each in seconds.items()
    ]


def synchronize(device: str) -> None:
    """Wait until the GPU, if it is one, has finished."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def made_video(
    path: Path,
    width: int = 1920,
    height: int = 1080,
    seconds: float = 10,
    fake: bool = False,
) -> Path:
    """Write a clip of a public-domain portrait that moves before noise, in H.264 as DFDC's are; `fake` blurs the face."""
    import av
    import cv2
    import numpy as np
    import skimage.data

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
            "libx264", rate=30, options={"crf": "23", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(int(seconds * 30)):
            frame = np.ascontiguousarray(
                noise[:height, number % 400 : number % 400 + width]
            )
            left, top = (
                (width - side) * (number % 200) // 200,
                (height - side) * (number % 90) // 90,
            )
            frame[top : top + side, left : left + side] = portrait
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def made_checkpoints(folder: Path, encoders: Sequence[str], size: int) -> list[Path]:
    """Write untrained networks, which cost what trained ones do; their answers are spread over 0..1."""
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
    """`python -m MODULE ARGUMENTS` from the project's folder, without its output."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _set_threads(threads: int | None) -> None:
    if threads:
        import cv2
        import torch

        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
