"""One rank of a drilled run: a training rank into which faults are injected.

    python launch/drills/rank.py SETTINGS.json [FAULT.json ...]

`launch/drill.py` starts it through the real launcher. The settings are those of
`launch/pretrain.py` as JSON; there is no other difference.
"""

import logging
import sys
from pathlib import Path

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.storage.json_files import read_json
from launch.support.environment import read_launch


def main(arguments: list[str]) -> int:
    """Train with faults.

    Args:
        arguments: of the command line; those that launchers add are ignored.

    Returns:
        the exit code.
    """
    settings, *fault_files = [Path(each) for each in arguments if not each.startswith("--local")]
    launch = read_launch()
    logging.basicConfig(
        level=logging.INFO if launch.rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s",
    )
    # Imported here, as in launch/pretrain.py, after everything that can fail fast.
    from ernie_vilg.config.schema import from_json
    from ernie_vilg.runs.phases import Phases
    from launch.drills.faults import FaultyPhases, read_fault, record_of
    from launch.pretrain import start

    faults = {record_of(file): read_fault(file) for file in fault_files}
    mine = {record: fault for record, fault in faults.items() if fault.rank == launch.rank}
    phases = FaultyPhases(mine) if mine else Phases()
    return start(from_json(read_json(settings), PretrainConfig, str(settings)), launch, phases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
