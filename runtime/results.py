"""Printed results: a Markdown table, and one JSON line with hardware and versions."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "torch",
    "timm",
    "facenet-pytorch",
    "opencv-python-headless",
    "av",
    "numpy",
)


def print_results(name: str, rows: Sequence[dict], **facts: object) -> None:
    """Print rows as a Markdown table, then everything as one JSON line."""
    print(f"\n{markdown_table(rows)}\n")
    for key, fact in facts.items():
        print(f"{key}: {fact}")
    result = {
        "benchmark": name,
        **facts,
        "rows": rows,
        "hardware": hardware(),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(result))


def markdown_table(rows: Sequence[dict]) -> str:
    """A Markdown table; the keys of the first row are its header."""
    header = list(rows[0])
    lines = [header, *([_cell(row[key]) for key in header] for row in rows)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, f"|{'---|' * len(header)}", *others])


def hardware() -> str:
    """Processor, cores and graphics card."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    parts = [f"{names[0] if names else platform.processor()} ({cores} cores)"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def versions() -> dict[str, str]:
    """Of Python and of the packages that the time is spent in."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | found


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"
