"""What it costs to hand work out: items that do nothing, in this process, in worker processes, on Ray.

    python -m benchmarks.executors [--items 2000] [--ray-address HOST:PORT]

The first item waits for the start of the workers, all others only for each other. Ray on this machine alone if no address
is given; without Ray its row is left out.
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
        "--items", type=positive_int, default=2000, help="items of work"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="worker processes or actors",
    )
    parser.add_argument("--ray-address", help="of a cluster")
    options = parser.parse_args(argv)
    places = {
        "this process": ExecutorOptions(0),
        "worker processes": ExecutorOptions(options.workers),
    }
    if importlib.util.find_spec("ray"):
        places["Ray"] = ExecutorOptions(
            options.workers, executor="ray", address=options.ray_address
        )
    rows = []
    for name, where in places.items():
        begin = time.perf_counter()
        outcomes = map_items(nothing, range(options.items), where, name)
        next(outcomes)
        first = time.perf_counter()
        assert sum(1 for _ in outcomes) == options.items - 1
        each = (time.perf_counter() - first) / (options.items - 1)
        rows.append(
            {
                "where": name,
                "seconds to the first": round(first - begin, 2),
                "ms an item": round(1000 * each, 3),
            }
        )
    print_results("executors", rows, items=options.items, workers=options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
