"""The whole way from raw pairs to shards, beside bare Pillow, and its memory.

    python benchmarks/data_pipelines.py           # ten minutes
    python benchmarks/data_pipelines.py --quick   # shows that it works
    python benchmarks/data_pipelines.py --all     # then also rules, encoding and 1 million rows

`launch/build_shards.py` with two processes against two processes that decode, resize and encode the
same pictures with Pillow and write nothing: drawn photographs of 640 x 480 pixels to 256 as PNG and
as JPEG, without curation, with all rules for captions, and with deduplication on top. The two take
turns. Rates are of whole commands, starts included; processor seconds are those of all processes
and decide, because other load on the machine changes them less.
Memory: the same command on 1,000 and on 20,000 emoji-sized pictures.

`--all` then runs benchmarks/curation.py (rules one by one), benchmarks/encoding.py (encoding beside
the encoder alone) and benchmarks/duplicates.py (1 million rows).

Prints the tables and writes outputs/benchmarks/data_pipelines.json.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.data_pipelines_parts.measured import Cost, run
from benchmarks.data_pipelines_parts.sources import make_photographs, make_small_pictures
from benchmarks.support.results import (
    OUTPUTS,
    ROOT,
    Requirement,
    median_requirement,
    print_requirements,
    write_results,
)
from benchmarks.support.tables import header, row
from benchmarks.support.timing import alternate

WORKERS = 2
MEGABYTE = 1 << 20
CAPTION_RULES = (
    "curation.rules.default.to_simplified=true",
    "curation.rules.default.special_characters=refuse",
    "curation.rules.default.min_han_share=0.1",
    "curation.rules.default.languages=[zh]",
    "curation.rules.default.max_words=100",
    "curation.rules.default.min_nouns=1",
)
PICTURE_RULES = (
    "curation.rules.default.min_side=64",
    "curation.rules.default.max_aspect_ratio=4",
    "curation.rules.default.min_contrast=2",
    "curation.deduplication.exact_pictures=true",
    "curation.deduplication.near_pictures=31",
)
VARIANTS: Mapping[str, Sequence[str]] = {
    "build_shards": (),
    "build_shards, rules for captions": CAPTION_RULES,
    "build_shards, all rules without models, deduplication": (*CAPTION_RULES, *PICTURE_RULES),
}
BARE = "bare Pillow"
OTHERS = ("curation.py", "encoding.py", "duplicates.py")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all sides")
    parser.add_argument("--all", action="store_true", help="the other benchmarks of data, too")
    options = parser.parse_args()
    folder = OUTPUTS / "data_pipelines"
    folder.mkdir(parents=True, exist_ok=True)
    count, repeats = (64, 1) if options.quick else (2_000, options.repeats)
    source = make_photographs(folder / f"photographs_{count}", count)
    results: dict[str, Any] = {}
    requirements = []
    for kind in ("png", "jpeg"):
        costs = rates(source, kind, folder, repeats)
        results[kind] = {name: [asdict(cost) for cost in each] for name, each in costs.items()}
        print_rates(kind, costs, count)
        requirements += rate_requirements(kind, costs)
    sizes = (50, 200) if options.quick else (1_000, 20_000)
    rows_per_part = 16 if options.quick else 256  # several parts, so that there are workers
    memory = {size: memory_of(size, folder, rows_per_part) for size in sizes}
    results["memory"] = {size: asdict(cost) for size, cost in memory.items()}
    requirements += memory_requirements(memory)
    write_results("data_pipelines", results, quick=options.quick)
    print_requirements(requirements, quick=options.quick)
    for other in OTHERS if options.all else ():
        words = [sys.executable, f"benchmarks/{other}", *(["--quick"] if options.quick else [])]
        print(f"\n{other}", flush=True)
        subprocess.run(words, cwd=ROOT, check=True)


def rates(source: Path, kind: str, folder: Path, repeats: int) -> dict[str, list[Cost]]:
    """Return what bare Pillow and each variant cost, by name."""
    log = folder / "log.txt"
    bare = ("-m", "benchmarks.data_pipelines_parts.bare", str(source), "256", kind.upper())
    runs = {BARE: lambda: run((*bare, str(WORKERS)), log)}
    for name, settings in VARIANTS.items():
        words = build_command(source, folder / "shards", kind, settings)
        runs[name] = lambda words=words: run(words, log)
    return alternate(runs, repeats)


def build_command(source: Path, output: Path, kind: str, settings: Sequence[str]) -> list[str]:
    """Return the command that builds shards of the pairs."""
    return [
        "launch/build_shards.py",
        f"source={source}",
        f"output_dir={output}",
        "overwrite=true",
        "image_size=256",
        f"image_format={kind}",
        "rows_per_part=256",
        f"num_workers={WORKERS}",
        *settings,
    ]


def print_rates(kind: str, costs: Mapping[str, Sequence[Cost]], count: int) -> None:
    """Print a table of rates."""
    bare = costs[BARE]
    print(f"\n{count} photographs, 640 x 480 to 256 as {kind}, {WORKERS} processes\n")
    print(header(["", "pairs/s", "of bare", "processor ms per pair", "of bare"]))
    for name, each in costs.items():
        wall, processor = (
            [getattr(cost, field) for cost in each] for field in ("wall", "processor")
        )
        cells = (
            f"{count / statistics.median(wall):,.0f}",
            f"{statistics.median(ratios(bare, each, 'wall')):.2f}",
            f"{1000 * statistics.median(processor) / count:.2f}",
            f"{statistics.median(ratios(bare, each, 'processor')):.2f}",
        )
        print(row([name, *cells]))


def ratios(bare: Sequence[Cost], other: Sequence[Cost], field: str) -> list[float]:
    """Return the rate of a run relative to the bare one before it, by repeat."""
    return [getattr(b, field) / getattr(o, field) for b, o in zip(bare, other, strict=True)]


def rate_requirements(kind: str, costs: Mapping[str, Sequence[Cost]]) -> list[Requirement]:
    """Return the requirements on rates: other load on the machine changes processor time less."""
    return [
        median_requirement(
            f"{name}, {kind}", ratios(costs[BARE], costs[name], "processor"), 0.7, "of bare"
        )
        for name in VARIANTS
    ]


def memory_of(size: int, folder: Path, rows_per_part: int) -> Cost:
    """Return what building of so many small pictures costs."""
    source = make_small_pictures(folder / f"small_{size}", size)
    settings = (*CAPTION_RULES, *PICTURE_RULES[-2:])
    words = build_command(source, folder / "small_shards", "png", settings)
    words = [word.replace("image_size=256", "image_size=64") for word in words]
    words = [word.replace("part=256", f"part={rows_per_part}") for word in words]
    return run(words, folder / "log.txt")


def memory_requirements(memory: Mapping[int, Cost]) -> list[Requirement]:
    """Return the requirements on memory, and print it."""
    print(f"\n{header(['pictures', 'driver, MB', 'largest worker, MB'])}")
    for size, cost in memory.items():
        print(
            row(
                [
                    f"{size:,}",
                    *(
                        f"{getattr(cost, f'{who}_bytes') / MEGABYTE:.0f}"
                        for who in ("driver", "worker")
                    ),
                ]
            )
        )
    few, many = memory.values()
    return [
        Requirement(
            what=f"memory of the {who}, {max(memory):,} pictures to {min(memory):,}",
            value=getattr(many, f"{who}_bytes") / getattr(few, f"{who}_bytes"),
            bound=1.2,
            unit="x",
            is_lower_better=True,
        )
        for who in ("driver", "worker")
    ]


if __name__ == "__main__":
    main()
