"""Damaged inputs end in a named error, in counted damage or in a right reading: a fast share.

`make fuzz` runs more cases of the same kind; the first ones are these.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(280)
def test_no_damaged_input_is_read_wrongly_or_breaks_a_reader(tmp_path: Path) -> None:
    # A program of its own: the fuzzer forks, and other tests leave threads in this process.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--fast"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
