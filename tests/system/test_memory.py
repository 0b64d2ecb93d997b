"""Freed memory stays with the process."""

import subprocess
import sys

COMMAND = """
import resource
from ernie_vilg.system.memory import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(8 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def test_the_second_block_of_eight_megabytes_costs_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64  # 2,048 pages otherwise
