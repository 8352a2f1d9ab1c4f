"""Measure the overhead of the executors: in-process, worker processes, Ray.

    python -m benchmarks.executors [--items 2000] [--ray-address HOST:PORT]

Each item does nothing. The time to the first item includes the start of the workers.
Without an address, Ray is started on this machine; without Ray its row is left out.
"""

import importlib.util
import os
import sys
import time

from runtime.cli import make_parser, positive_int
from runtime.executor import ExecutorOptions, map_items
from runtime.results import print_results


def nothing(item: int) -> int:
    return item


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--items", type=positive_int, default=2000, help="number of items"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="worker processes or actors",
    )
    parser.add_argument("--ray-address", help="address of a Ray cluster")
    options = parser.parse_args(argv)
    executors = {
        "this process": ExecutorOptions(0),
        "worker processes": ExecutorOptions(options.workers),
    }
    if importlib.util.find_spec("ray"):
        executors["Ray"] = ExecutorOptions(
            options.workers, executor="ray", address=options.ray_address
        )
    rows = []
    for name, executor in executors.items():
        start = time.perf_counter()
        outcomes = map_items(nothing, range(options.items), executor, name)
        next(outcomes)
        first = time.perf_counter()
        assert sum(1 for _ in outcomes) == options.items - 1
        each = (time.perf_counter() - first) / (options.items - 1)
        rows.append(
            {
                "where": name,
                "seconds to the first": round(first - start, 2),
                "ms an item": round(1000 * each, 3),
            }
        )
    print_results("executors", rows, items=options.items, workers=options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
