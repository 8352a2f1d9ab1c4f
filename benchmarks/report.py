"""Size and loading time of the report, made-up answers for many videos, in Debian's Chromium.

    python -m benchmarks.report --videos 10 400 4000

Needs  Playwright (requirements.txt) and Chromium (apt install chromium)
Each video has two networks, 32 faces and the pictures of a real portrait. Loading is measured from the call to the first row of
the table, after a first page that warms the browser up; searching from the key to the rows that are left.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data

from inference.report import Report, page_id, thumbnail
from runtime.cli import UserError, make_parser, positive_int
from runtime.results import print_results as print_table


def made_entry(number: int, picture: np.ndarray) -> dict:
    """A journal's line with random scores."""
    scores = np.random.default_rng(number).uniform(0, 1, (2, 32)).round(6).tolist()
    return {
        "filename": f"{number:06}.mp4",
        "reason": "",
        "frames": [9 * each for each in range(32)],
        "times": [0.3 * each for each in range(32)],
        "boxes": [[100, 100, 300, 340]] * 32,
        "probabilities": {"one": scores[0], "two": scores[1]},
        "thumbnail": thumbnail(picture),
    }


def measure(page, folder: Path, count: int, picture: np.ndarray) -> dict:
    faces = np.stack([picture[:380, 70:450]] * 32)
    pages, entries = (
        Report(folder, "winner"),
        [made_entry(number, picture) for number in range(count)],
    )
    for entry in entries:
        pages.write_video(entry, faces, {"container": "QuickTime / MOV"})
    pages.write_index(entries)
    start = time.perf_counter()
    page.goto(f"file://{folder}/index.html")
    page.locator("tbody tr").first.wait_for()
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    page.get_by_label("Search").fill(f"{count - 1:06}")
    page.locator("#shown", has_text="1 of").wait_for()
    searched = time.perf_counter() - start
    start = time.perf_counter()
    page.goto(f"file://{folder}/videos/{page_id(entries[0]['filename'])}.html")
    return {
        "videos": count,
        "index in MB": round((folder / "index.html").stat().st_size / 1e6, 2),
        "a video's page in MB": round(
            (folder / "videos" / f"{page_id(entries[0]['filename'])}.html")
            .stat()
            .st_size
            / 1e6,
            3,
        ),
        "all in MB": round(
            sum(path.stat().st_size for path in folder.rglob("*.html")) / 1e6, 1
        ),
        "index loads in s": round(loaded, 2),
        "search in s": round(searched, 2),
        "a page loads in s": round(time.perf_counter() - start, 2),
    }


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--videos",
        type=positive_int,
        nargs="+",
        default=[10, 400, 4000],
        help="how many",
    )
    options = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise UserError("there is no Chromium here; apt install chromium")
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as start, tempfile.TemporaryDirectory() as name:
        browser = start.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto("about:blank")
        for count in options.videos:
            rows.append(
                measure(page, Path(name) / str(count), count, skimage.data.astronaut())
            )
        version = browser.version
        browser.close()
    print_table("report", rows, chromium=version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
