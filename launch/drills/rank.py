"""One rank of a drilled run: a training rank with a fault in wait for it.

    python launch/drills/rank.py SETTINGS.json [FAULT.json ...]

Started by `launch/drill.py` through the real launcher. The settings are those of a
`launch/pretrain.py` run as JSON; nothing else differs from it.
"""

import logging
import sys
from pathlib import Path

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.storage.json_files import read_json
from launch.support.environment import read_launch


def main(words: list[str]) -> int:
    """Train, and be struck.

    Args:
        words: of the command line; what launchers add is left out.

    Returns:
        the exit code.
    """
    settings, *fault_files = [Path(word) for word in words if not word.startswith("--local")]
    launch = read_launch()
    logging.basicConfig(
        level=logging.INFO if launch.rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s",
    )
    # Imported here, as launch/pretrain.py does, after what can fail fast.
    from ernie_vilg.config.schema import from_json
    from ernie_vilg.runs.phases import Phases
    from launch.drills.faults import FaultyPhases, read_fault
    from launch.pretrain import start

    faults = {file.with_suffix(".struck"): read_fault(file) for file in fault_files}
    mine = {record: fault for record, fault in faults.items() if fault.rank == launch.rank}
    phases = FaultyPhases(mine) if mine else Phases()
    return start(from_json(read_json(settings), PretrainConfig, str(settings)), launch, phases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
