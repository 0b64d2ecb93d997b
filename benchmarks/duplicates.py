"""Deduplication of metadata with planted duplicates: seconds, memory, recall and false merges.

    python benchmarks/duplicates.py                 # 1 million rows: pictures, then captions
    python benchmarks/duplicates.py --rows 10000000 --only pictures
    python benchmarks/duplicates.py --pictures ../shared/data/noto-emoji   # alters them, too
    python benchmarks/duplicates.py --quick         # shows that it works

A hundredth of the rows are copies: a quarter have equal pixels, the others a hash at a Hamming
distance of 1 to 31, half of them of 31. Every search runs in a process of its own, whose peak
memory counts pages of mapped files too. The database has a limit of 2 GB. The first table says how
many pictures are hashed per second.

Prints the tables and writes outputs/benchmarks/duplicates.json.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.duplicates_parts.alterations import Altered, measure_alterations
from benchmarks.duplicates_parts.planted import Plan, compare, plan, write_rows
from benchmarks.support.results import OUTPUTS, Requirement, print_requirements, write_results
from benchmarks.support.tables import header, row
from data_pipelines.duplicates.find import find_duplicates
from data_pipelines.duplicates.pdq import pdq_hash
from ernie_vilg.config.curation import DeduplicationConfig
from ernie_vilg.storage.files import scratch_folder

SEARCHES = {
    "pictures": DeduplicationConfig(exact_pictures=True, near_pictures=31, memory="2GB"),
    "captions": DeduplicationConfig(max_pairs_per_text=1, near_texts=0.8, memory="2GB"),
}
_SIZES = ((128, 128), (640, 480), (2000, 1500))
_MOST_ALTERED = 1000
_REQUIRED_SECONDS = {1_000_000: 180.0, 10_000_000: 900.0}
_PARTS = {"pictures": ("exact", "at_threshold", "nearer"), "captions": ("texts",)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of rows")
    parser.add_argument("--only", choices=sorted(SEARCHES), help="one search alone")
    parser.add_argument("--pictures", type=Path, help="folder of pictures to alter")
    options = parser.parse_args()
    rows = 20_000 if options.quick else options.rows
    planned, folder = plan(rows), OUTPUTS / f"duplicates/rows-{rows}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder, planned)
    rates = _hash_rates()
    print(header(["picture", "hashes per second of a core"]))
    for name, rate in rates.items():
        print(row([name, f"{rate:,.0f}"]))
    altered = measure_alterations(options.pictures, _MOST_ALTERED) if options.pictures else {}
    _print_alterations(altered)
    names = [options.only] if options.only else list(SEARCHES)
    results = {name: _search(folder, planned, name) for name in names}
    _print_searches(rows, results)
    print_requirements(_requirements(rows, results), quick=options.quick or rows < 1_000_000)
    content = {"rows": rows, "searches": results, "hashes_per_second": rates}
    content["altered"] = {name: asdict(one) for name, one in altered.items()}
    write_results("duplicates", content, quick=options.quick)


def _search(folder: Path, planned: Plan, name: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool, scratch_folder(OUTPUTS, "duplicates") as scratch:
        output = scratch / "relations.parquet"
        measured = pool.apply(_find, (f"{folder}/part-*.parquet", name, output, scratch))
        return {**measured, **asdict(compare(output, planned))}


def _find(rows: str, name: str, output: Path, scratch: Path) -> dict[str, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    counts = find_duplicates(rows, SEARCHES[name], output=output, folder=scratch)
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "counts": dict(counts),
    }


def _print_searches(rows: int, results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{rows:,} rows, 1 % planted copies")
    names = ["search", "seconds", "of processors", "peak GB", "recall", "false merges"]
    print(header(names))
    for name, result in results.items():
        recall = ", ".join(f"{part} {result[part]:.4f}" for part in _PARTS[name])
        false = sum(result[f"false_{kind}"] for kind in ("exact", "near", "texts"))
        print(
            row(
                [
                    name,
                    *(f"{result[figure]:.1f}" for figure in ("wall", "processor", "peak_gb")),
                    recall,
                    str(false),
                ]
            )
        )


def _print_alterations(altered: dict[str, Altered]) -> None:
    if altered:
        print(f"\n{header(['alteration', 'median distance', 'at most 31', 'of these found'])}")
    for name, one in altered.items():
        shares = (f"{100 * share:.1f} %" for share in (one.near, one.found))
        print(row([name, f"{one.median_distance:.0f}", *shares]))


def _requirements(rows: int, results: dict[str, dict[str, Any]]) -> list[Requirement]:
    found = []
    seconds = _REQUIRED_SECONDS.get(rows, 180.0 * rows / 1e6)
    for name, result in results.items():
        found.append(
            Requirement(
                what=f"{name}, seconds",
                value=result["wall"],
                bound=seconds,
                unit="s",
                is_lower_better=True,
            )
        )
        found.append(
            Requirement(
                what=f"{name}, peak memory",
                value=result["peak_gb"],
                bound=4.0,
                unit="GB",
                is_lower_better=True,
            )
        )
        found.extend(
            Requirement(what=f"{name}, recall, {part}", value=result[part], bound=0.99, unit="")
            for part in _PARTS[name]
        )
    return found


def _hash_rates() -> dict[str, float]:
    """Return how many pictures of each size a second of processor time hashes: best of three."""
    generator = np.random.default_rng(0)
    rates = {}
    for width, height in _SIZES:
        pixels = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        pdq_hash(image)
        number = max(5, 20_000_000 // (width * height))
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            for _ in range(number):
                pdq_hash(image)
            best = min(best, (time.process_time() - start) / number)
        rates[f"{width} x {height}"] = 1 / best
    return rates


if __name__ == "__main__":
    main()
