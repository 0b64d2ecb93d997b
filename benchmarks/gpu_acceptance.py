"""The acceptance run on one GPU: does everything run, is it right, and how fast is it.

    make gpu-acceptance PART=1      # programs, engine modes, GPU tests: under 6 minutes
    make gpu-acceptance PART=2      # step, drawing, memory, and what part 1 had no time for
    make gpu-acceptance GPU=0       # every stage at toy size on a CPU, under 10 minutes
    make gpu-acceptance-inputs      # on a machine with network: wheels and inputs to carry

Runs under any Python with torch, without a virtual environment. Each stage ends with its figures;
stages that passed are not repeated by the next call, one that was cut is. Stages run by their
value; one for which no time is left is skipped and says so. Files to take home, at most 8, go to
$OUT, or to outputs/gpu_acceptance/. Exits with 0 only if every stage of the part passed and every
goal is reached.
"""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this folder is not installed

SECONDS_OF_A_HALF = 345.0
"""Time budget of a half on a GPU."""
SECONDS_OF_A_REHEARSAL = 580.0
"""Time budget of a rehearsal of both halves."""


def main() -> int:
    """Run a part; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=int, choices=(1, 2), help="a half; both without")
    parser.add_argument("--gpu", type=int, choices=(0, 1), default=1, help="0 rehearses on a CPU")
    parser.add_argument("--seconds", type=float, help="time budget")
    parser.add_argument("--fresh", action="store_true", help="forget earlier calls")
    parser.add_argument("--inputs", action="store_true", help="make .gpu_acceptance/ and stop")
    options = parser.parse_args()
    if options.inputs:
        from benchmarks.gpu_acceptance_parts.inputs import carry

        carry()
        return 0
    return _run(options, time.monotonic())


def _run(options: argparse.Namespace, started: float) -> int:
    name = "gpu_acceptance" if options.gpu else "gpu_acceptance_rehearsal"
    work = ROOT / f"outputs/{name}_work"
    results = Path(os.environ.get("OUT") or ROOT / f"outputs/{name}").resolve()
    card = card_in_words() if options.gpu else "no GPU: a rehearsal at toy size"
    part = f"part {options.part}" if options.part else "both parts"
    print(f"GPU acceptance, {part}: Python {platform.python_version()}, {card}", flush=True)
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before any process imports torch
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a process more takes seconds to start
    if options.fresh or not (options.gpu or options.part):
        shutil.rmtree(work, ignore_errors=True)
    prepare_packages(work / "site")
    # From here on the packages of the carried wheels are there.
    from benchmarks.gpu_acceptance_parts.run import run

    halves = 1 if options.part else 2
    usual = SECONDS_OF_A_HALF * halves if options.gpu else SECONDS_OF_A_REHEARSAL
    budget = (options.seconds or usual) - (time.monotonic() - started)
    return run(
        work,
        results,
        half=options.part,
        seconds=budget,
        needs_card=bool(options.gpu),
        is_fresh=options.fresh,
    )


def card_in_words() -> str:
    """Return the cards, drivers and memory that nvidia-smi names."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        return "no nvidia-smi"
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return "; ".join((done.stdout.strip() or done.stderr.strip()).splitlines())


def prepare_packages(site: Path) -> None:
    """Make the packages of the carried wheels importable here and in all processes started later.

    Raises:
        SystemExit: DeepSpeed is neither installed nor carried.
    """
    from benchmarks.gpu_acceptance_parts.inputs import install_wheels

    if importlib.util.find_spec("deepspeed") is None:
        site.parent.mkdir(parents=True, exist_ok=True)
        install_wheels(site)
        known = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(known)
        sys.path.insert(1, str(site))
        importlib.invalidate_caches()
    if importlib.util.find_spec("deepspeed") is None:
        print(
            "DeepSpeed is not installed and .gpu_acceptance/wheels is missing: run "
            "`make gpu-acceptance-inputs` on a machine with network and carry the folder here",
            file=sys.stderr,
        )
        raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
