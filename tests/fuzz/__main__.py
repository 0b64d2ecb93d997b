"""`python -m tests.fuzz`: fuzz every kind of file that is read, or replay one finding."""

import argparse
import shutil
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.runner import (
    TARGETS,
    Fuzzer,
    findings_text,
    keep,
    prepare,
    report,
    table,
    write_report,
)

_ENDLESS = 10**9
_FAST_SECONDS = 200
_OUTPUT = Path("outputs/fuzz")


def main() -> int:
    """Read the command line, fuzz, and return 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--target", help="one alone, as the table names it")
    parser.add_argument("--fast", action="store_true", help="the suite's share of each")
    parser.add_argument("--replay", type=int, metavar="CASE", help="run one case of --target here")
    words = parser.parse_args()
    targets = [target for target in TARGETS if words.target in (None, target.name)]
    if not targets:
        parser.error(f"--target: choose one of {', '.join(target.name for target in TARGETS)}")
    # Targets use each other's files.
    prepare(TARGETS)
    if words.replay is not None:
        return _replay(words.target, words.seed, words.replay)
    findings = _OUTPUT / "findings"
    shutil.rmtree(findings, ignore_errors=True)
    started = time.monotonic()
    fuzzer = Fuzzer(targets, words.seed, findings)
    if words.fast:
        fuzzer.run(seconds=_FAST_SECONDS, workers=words.workers, slice_seconds=60)
        short = [t.name for t in targets if fuzzer.rows[t.name].mutations != t.quick]
        if short:
            _say(f"too few cases of {', '.join(short)} in {_FAST_SECONDS} s")
            return 1
    else:
        seconds = 60 * words.minutes
        fuzzer.run(seconds=seconds, cases=_ENDLESS, workers=words.workers, slice_seconds=5.0)
    _say(table([*fuzzer.rows.values()]))
    if fuzzer.findings:
        _say(f"\nfindings, kept under {findings}:\n{findings_text(fuzzer)}")
    write_report(_OUTPUT / "fuzz.json", report(fuzzer, time.monotonic() - started, words.seed))
    return 1 if fuzzer.findings else 0


def _replay(name: str | None, seed: int, index: int) -> int:
    if name is None:
        raise SystemExit("--replay: name the case's --target")
    (target,) = [target for target in TARGETS if target.name == name]
    folder = _OUTPUT / "replay"
    target.start()
    keep(target, seed, index, folder)
    _say(f"the files are in {folder}; now they are read")
    try:
        _say(target.run(folder, target.case(seed, index)))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
