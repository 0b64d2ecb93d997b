"""Restart a training run when it fails: `python -m launch.supervise --run-dir DIR -- COMMAND`.

    python -m launch.supervise --run-dir outputs/a -- deepspeed launch/pretrain.py run_dir=outputs/a

It is for machines without a scheduler that restarts jobs. It does not restart a run that is done,
has a wrong setting, was stopped by a person, reached its time limit, or made no new checkpoint in
several starts in a row. It passes signals on to the run. No process of one start is left when the
next begins, or when this program ends, even by SIGKILL.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.support.supervisor import Supervisor


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, by default that of this process, and supervise the run."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.supervise", description="Restart a training run when it fails."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="the run's run_dir")
    parser.add_argument(
        "--max-failures",
        type=int,
        default=5,
        help="most starts in a row without a new checkpoint",
    )
    parser.add_argument(
        "--pause-seconds",
        type=float,
        default=5.0,
        help="before the next start; doubles after each start without a new checkpoint",
    )
    parser.add_argument("command", nargs="+", help="command that starts the run, after --")
    settings = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s supervise: %(message)s")
    return Supervisor(
        settings.command,
        settings.run_dir,
        max_failures=settings.max_failures,
        pause_seconds=settings.pause_seconds,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
