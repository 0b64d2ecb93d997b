"""The program that writes pages of runs, and the settings of its two pages."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.evaluation import ReportConfig
from ernie_vilg.errors import InputError
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.evaluation.run_report.recorded_runs import write_run_folder

MAIN_JOB: dict[str, Any] = {
    "title": "t",
    "pretrain_run": "p",
    "tokenizer_run": "t",
    "evaluation": "e",
    "stages": "s",
    "command": "c",
}


def test_a_pattern_of_a_sweeps_jobs_becomes_one_page(tmp_path: Path) -> None:
    for rate in ("1e-3", "3e-4"):
        write_run_folder(tmp_path / f"rates/optimizer.learning_rate={rate}")
    program = str(CONF_FOLDER.parent / "launch/report.py")

    done = subprocess.run(
        [sys.executable, program, "runs=[rates/*]", "output=page.html", "title=Rates"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == "page.html: open it in a browser\n"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>Rates</h1>" in page
    assert "</span>optimizer.learning_rate=3e-4</span>" in page


def test_a_main_jobs_page_needs_all_its_settings() -> None:
    assert ReportConfig(output="o", **MAIN_JOB).examples == 12
    with pytest.raises(InputError, match=r"runs is empty, and stages not set: name the run folder"):
        ReportConfig(output="o", **{**MAIN_JOB, "stages": None})


@pytest.mark.parametrize("name", ["pretrain_run", "command", "trained_on", "examples"])
def test_a_page_of_runs_refuses_settings_of_a_main_jobs(name: str) -> None:
    value = {"trained_on": "true", "examples": "3"}.get(name, "x")

    assert compose_program("report", ["runs=[a,b]", "output=o", "title=t"]).runs == ("a", "b")
    with pytest.raises(InputError, match=f"with {name}: these are of a main job's page"):
        compose_program("report", ["runs=[a,b]", "output=o", f"{name}={value}"])
