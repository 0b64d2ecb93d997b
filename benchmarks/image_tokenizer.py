"""Encoding, decoding and a training step of image tokenizers, beside a plain VQGAN.

    python benchmarks/image_tokenizer.py           # ten minutes on a quiet CPU core, one on a GPU
    python benchmarks/image_tokenizer.py --quick   # shows that it works; the small networks alone

The plain VQGAN has the same layers and weights, written out: float32, channels first, eager, a
table of all distances (benchmarks/image_tokenizer_parts/plain.py). All sides take turns in one
process. On a CPU seconds are those of the processor, on one thread, so that other load counts
little; on a GPU they are seconds of the clock, and the share of the GPU's peak (MFU) is printed. A
training step is forward and backward pass with absolute and quantization error, without optimizer.

Prints a table, and writes outputs/benchmarks/image_tokenizer.json.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.image_tokenizer_parts.sides import Work, equal_codes, flops, shapes, works
from benchmarks.support.models import read_gpu
from benchmarks.support.results import Requirement, print_requirements, write_results
from benchmarks.support.tables import header, row
from benchmarks.support.timing import alternate
from benchmarks.train_step_parts.device import machine, median_seconds

LEAST_GAIN = 1.5
_GPUS = Path(__file__).resolve().parents[1] / "conf/gpu"
_COLUMNS = ("network", "work", "side", "ms per picture", "pictures/s", "to plain", "TFLOP/s", "MFU")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all sides")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = machine()
    peak = peak_flops(device)
    rows: list[dict[str, Any]] = []
    print(header(_COLUMNS))
    for name, shape in shapes(device, quick=options.quick).items():
        operations = flops(shape.config)
        for work, sides in works(shape, device).items():
            repeats = 1 if options.quick else options.repeats
            measured = seconds_per_picture(sides, repeats, shape.batch_size, device)
            rows += work_rows(name, work, measured, operations[work], peak)
            if work == "encode" and (equal := equal_codes(sides)) is not None:
                rows.append({"network": name, "work": "equal codes, fp32", "value": equal})
                print(f"{name}: {100 * equal:.2f} % of ours fp32's codes are the plain VQGAN's")
    print_requirements(requirements(rows), quick=options.quick)
    write_results(
        "image_tokenizer",
        rows,
        quick=options.quick,
        device=torch.cuda.get_device_name() if device == "cuda" else "",
    )


def seconds_per_picture(
    sides: dict[str, Work], repeats: int, batch_size: int, device: str
) -> dict[str, list[float]]:
    """Let the sides take turns; return the seconds per picture of each turn."""
    runs = {
        name: partial(median_seconds, lambda work=work: work(), 1, 1, device)
        for name, work in sides.items()
    }
    found = alternate(runs, repeats)
    return {name: [seconds / batch_size for seconds in turns] for name, turns in found.items()}


def work_rows(
    name: str, work: str, measured: dict[str, list[float]], operations: int, peak: float | None
) -> list[dict[str, Any]]:
    """Print a row per side and return the figures."""
    rows = []
    plain = measured.get("plain fp32")
    for side, turns in measured.items():
        seconds = statistics.median(turns)
        gains = [] if plain is None else [p / s for p, s in zip(plain, turns, strict=True)]
        rate = operations / seconds
        figures = {
            "network": name,
            "work": work,
            "side": side,
            "seconds": turns,
            "flops": operations,
            "gains": gains,
            "mfu": None if peak is None else rate / peak,
        }
        cells = (
            f"{1000 * seconds:.2f}",
            f"{1 / seconds:.2f}",
            f"{statistics.median(gains):.2f}" if gains else "-",
            f"{rate / 1e12:.3f}",
            f"{100 * rate / peak:.1f} %" if peak else "-",
        )
        print(row((name, work, side, *cells)), flush=True)
        rows.append(figures)
    return rows


def requirements(rows: list[dict[str, Any]]) -> list[Requirement]:
    """Return what encoding of the large network must reach; a quick run has none."""
    return [
        Requirement(
            what="vqgan_f8_8192: encoding in bf16 / plain fp32",
            value=statistics.median(each["gains"]),
            bound=LEAST_GAIN,
            unit="x",
            baseline="plain VQGAN, same run",
            spread=each["gains"],
        )
        for each in rows
        if (each["network"], each["work"]) == ("vqgan_f8_8192", "encode")
        and each["side"] == "ours bf16"
    ]


def peak_flops(device: str) -> float | None:
    """Return the GPU's 16-bit FLOP/s from conf/gpu; None on a CPU or an unknown GPU."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    for path in sorted(_GPUS.glob("*.yaml")):
        gpu = read_gpu(path.stem)
        if gpu.name == name:
            return gpu.peak_flops
    print(f"{name} is not in conf/gpu: no MFU")
    return None


if __name__ == "__main__":
    main()
