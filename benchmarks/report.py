"""Measure the size and loading time of the HTML report in Debian's Chromium.

    python -m benchmarks.report --videos 10 400 4000

Needs  Playwright (requirements.txt) and Chromium (apt install chromium)

Method: random scores of two networks for 32 faces a video, with images of a portrait.
        Loading is timed from the call to the first row of the table, after a blank page
        as warm-up; searching from the input to the filtered rows.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data

from inference.aggregate import Aggregation
from inference.report import Report, page_id, thumbnail
from runtime.cli import UserError, make_parser, positive_int
from runtime.results import print_results


def make_entry(number: int, image: np.ndarray) -> dict:
    """A journal entry with random scores."""
    scores = np.random.default_rng(number).uniform(0, 1, (2, 32)).round(6).tolist()
    return {
        "filename": f"{number:06}.mp4",
        "reason": "",
        "frames": [9 * n for n in range(32)],
        "times": [0.3 * n for n in range(32)],
        "boxes": [[100, 100, 300, 340]] * 32,
        "probabilities": {"one": scores[0], "two": scores[1]},
        "thumbnail": thumbnail(image),
    }


def measure(page, folder: Path, count: int, image: np.ndarray) -> dict:
    """Write a report of `count` videos and load it. Returns a row of the table."""
    report = Report(folder, Aggregation())
    faces = np.stack([image[:380, 70:450]] * 32)
    entries = [make_entry(number, image) for number in range(count)]
    for entry in entries:
        report.write_video(entry, faces, {"container": "QuickTime / MOV"})
    report.write_index(entries)
    index = folder / "index.html"
    video = folder / "videos" / f"{page_id(entries[0]['filename'])}.html"
    start = time.perf_counter()
    page.goto(f"file://{index}")
    page.locator("tbody tr").first.wait_for()
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    page.get_by_label("Search").fill(f"{count - 1:06}")
    page.locator("#shown", has_text="1 of").wait_for()
    searched = time.perf_counter() - start
    start = time.perf_counter()
    page.goto(f"file://{video}")
    video_loaded = time.perf_counter() - start
    total = sum(path.stat().st_size for path in folder.rglob("*.html"))
    return {
        "videos": count,
        "index in MB": round(index.stat().st_size / 1e6, 2),
        "a video's page in MB": round(video.stat().st_size / 1e6, 3),
        "all in MB": round(total / 1e6, 1),
        "index loads in s": round(loaded, 2),
        "search in s": round(searched, 2),
        "a page loads in s": round(video_loaded, 2),
    }


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--videos",
        type=positive_int,
        nargs="+",
        action="extend",
        default=[10, 400, 4000],
        help="numbers of videos",
    )
    options = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise UserError("Chromium is not installed: apt install chromium")
    from playwright.sync_api import sync_playwright

    rows, portrait = [], skimage.data.astronaut()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as name:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto("about:blank")
        for count in options.videos:
            rows.append(measure(page, Path(name) / str(count), count, portrait))
        version = browser.version
        browser.close()
    print_results("report", rows, chromium=version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
