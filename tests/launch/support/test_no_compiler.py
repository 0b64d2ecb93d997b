"""The planner does not load torch's compiler, which still loads when it is used."""

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import sys
from launch.support.no_compiler import leave_compiler_unloaded
leave_compiler_unloaded()
import torch
torch.empty(3, device="meta").normal_()
assert "torch._dynamo.symbolic_convert" not in sys.modules, "loaded"
assert torch._dynamo.config.recompile_limit > 0
assert "torch._dynamo.symbolic_convert" in sys.modules
assert sys.modules["torch._dynamo"].__file__
leave_compiler_unloaded()
assert sys.modules["torch._dynamo"].__file__, "put out of place again"
"""


def test_the_compiler_is_loaded_when_it_is_asked_for_and_not_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )

    assert done.returncode == 0, done.stderr
