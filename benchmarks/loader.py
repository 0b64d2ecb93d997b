"""Cost of the loader, beside webdataset's own pipelines over the same files.

    python benchmarks/loader.py           # under 6 minutes; the first time one more for the data
    python benchmarks/loader.py --quick   # shows that it works; too short for the requirements

The files are in the page cache. Two processes on one core read what is compared, pairs in turn and
pictures at the same time, so that other load on the machine hits both. "Per core" uses the
processor time of all threads of the process, which is steadier on a shared machine than the wall
clock shown beside it. Our side reads a whole epoch with new readers: the time includes hashing and
indexing every shard, order, reads and decoding.

Prints the tables, writes outputs/benchmarks/loader.json and draws docs/images/loader.png.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.loader_parts import chart
from benchmarks.loader_parts.data_sets import QUICK, DataSettings, make_data
from benchmarks.loader_parts.figures import (
    MEMORY_MB,
    bars,
    figures,
    print_rates,
    print_rest,
    requirements,
)
from benchmarks.loader_parts.runs import MEMORY, image_runs, other_runs, run_all, token_runs
from benchmarks.support.results import OUTPUTS, picture_path, print_requirements, write_results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data, one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="runs of what is compared")
    parser.add_argument("--core", type=int, default=1, help="on which what is compared runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quick, repeats = options.quick, 1 if options.quick else options.repeats
    settings = QUICK if quick else DataSettings()
    folder = OUTPUTS / "loader" / ("data-quick" if quick else "data")
    make_data(folder, settings)
    results = run_all(
        [
            *token_runs(folder, settings, repeats, quick=quick),
            *image_runs(folder, repeats),
            *other_runs(folder, settings, quick=quick),
        ],
        options.core,
    )
    print_rates(results)
    print_rest(results)
    reached = requirements(results)
    print_requirements(reached, quick=quick)
    write_results("loader", figures(results, reached), quick=quick)
    picture = picture_path("loader", quick=quick)
    chart.draw(picture, bars(results), results[MEMORY][0], limit_mb=MEMORY_MB)


if __name__ == "__main__":
    main()
