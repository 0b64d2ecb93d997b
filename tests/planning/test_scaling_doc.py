"""The tables in the documentation are the planner's current predictions."""

from pathlib import Path

import pytest

from benchmarks.peers.runs import peer_runs
from benchmarks.plan_peers import compare, table
from benchmarks.plan_steps import measured_table, table_to_come
from ernie_vilg.planning.calibration import Correction
from ernie_vilg.planning.plan import plan
from ernie_vilg.planning.report import scaling_table
from launch.support.composition import compose_program

_DOCS = Path(__file__).parents[2] / "docs"
_DOC = _DOCS / "scaling.md"


def test_the_comparison_with_peers_is_current() -> None:
    assert "\n".join(table(compare(peer_runs()))) in _DOC.read_text()


def test_the_tables_of_measured_and_predicted_steps_are_current() -> None:
    assert "\n".join(measured_table()) in (_DOCS / "planning.md").read_text()
    assert "\n".join(table_to_come()) in (_DOCS / "benchmarks.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100-80gb", "h200-141gb"])
def test_the_tables_of_the_10b_are_current(gpu: str) -> None:
    words = ["experiment=ernie_vilg_10b", f"gpu={gpu}", "num_gpus=64"]
    config = compose_program("plan", words)

    best = {
        num_gpus: plan(config, Correction(), num_gpus=num_gpus, top=1).best[0]
        for num_gpus in (8, 64, 256, 1024)
    }

    assert "\n".join(scaling_table(best)) in _DOC.read_text()
