"""The doctor says in one call what a machine can do, and fails for what every program needs."""

import json
from pathlib import Path

import pytest

from ernie_vilg.system.machine import Finding
from launch import doctor
from tests.launch.test_output_places import run

NAMES = {
    "Python", "packages", "torch", "processor", "cores", "memory", "GPUs", "collectives",
    "shared memory", "outputs", "open files", "compiler", "Slurm", "W&B",
}  # fmt: skip


def test_this_machine_has_a_finding_of_every_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("doctor", f"output_dir={tmp_path}/new", "json=true")

    findings = json.loads(capsys.readouterr().out)
    assert {finding["name"] for finding in findings} >= NAMES
    for finding in findings:
        assert finding["found"]
        assert bool(finding["advice"]) == (finding["status"] != "ok"), finding
    assert not (tmp_path / "new").exists()


def test_outputs_that_cannot_be_written_end_it_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SystemExit) as ended:
        run("doctor", f"output_dir={tmp_path}/file")

    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "missing and required: outputs"
    (advice,) = [line for line in lines if "-> required; " in line]
    assert "cannot be written" in advice


def test_a_line_has_status_name_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding(name="a", status="ok", found="all"),
        Finding(name="longer", status="missing", found="none", advice="get it"),
    ]

    assert list(doctor.lines_of(findings)) == [
        "ok       a       all",
        "missing  longer  none",
        "                 -> get it",
        "",
        "nothing required is missing",
    ]


def test_without_torch_the_other_lines_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Finding(name="torch", status="missing", found="", advice="x", is_required=True)
    monkeypatch.setattr(doctor.installation, "check_torch", lambda: lost)

    names = {finding.name for finding in doctor.examine(Path("outputs"))}

    assert names >= NAMES - {"GPUs", "collectives"}
    assert not names & {"GPUs", "collectives"}


def test_a_driver_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "_DRIVER_SECONDS", 0.1)

    assert {finding.name: finding.found for finding in doctor.examine(tmp_path)}["GPUs"] == (
        "the driver does not answer"
    )
