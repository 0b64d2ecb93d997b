"""Run a main job, stage by stage: `python launch/main_job.py job=quickstart`.

Every stage is a command that a person could type. The job prints it, writes its output to
`<output_dir>/logs/<stage>.log`, and measures its seconds and memory. It skips finished stages while
their inputs are unchanged, and continues a stopped one.
"""

import signal
import sys
from pathlib import Path
from types import FrameType

from ernie_vilg.config.main_job import MainJobConfig
from launch.jobs.run_job import StageFailedError, run_job
from launch.support.program import program


@program("main_job", MainJobConfig)
def main(config: MainJobConfig) -> None:
    """Run the job; exit with 1 if a stage fails, and with 130 if interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_job(config.job, force=config.force, root=Path.cwd())
    except StageFailedError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
