"""A stopped job goes back into the queue unless a person cancelled it; `scontrol` is a stand-in."""

from pathlib import Path

import pytest

from ernie_vilg.resilience.requeue import requeue_job


def write_scontrol(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, state: str, reason: str, refusal: str = ""
) -> Path:
    """Put an `scontrol` on the PATH that knows one job; return the file of what it was told."""
    asked = folder / "asked"
    program = folder / "scontrol"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {asked}
case $1 in
  show) echo "JobId=7 JobName=a JobState={state} Reason={reason} Dependency=(null)" ;;
  requeue) [ -z "{refusal}" ] || {{ echo "{refusal}" >&2; exit 1; }} ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return asked


@pytest.mark.parametrize(
    ("state", "reason", "is_requeued"),
    [
        pytest.param("RUNNING", "None", True, id="a warning signal"),
        pytest.param("COMPLETING", "TimeLimit", True, id="its time is over"),
        pytest.param("COMPLETING", "None", False, id="cancelled by a person"),
        pytest.param("CANCELLED", "None", False, id="cancelled, controller is quick"),
    ],
)
def test_who_ends_the_job_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, reason: str, is_requeued: bool
) -> None:
    asked = write_scontrol(tmp_path, monkeypatch, state=state, reason=reason)

    assert requeue_job("7") is is_requeued
    assert asked.read_text().splitlines() == (
        ["show job --oneliner 7", "requeue 7"] if is_requeued else ["show job --oneliner 7"]
    )


def test_a_refusal_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_scontrol(
        tmp_path, monkeypatch, state="RUNNING", reason="None", refusal="Requested operation denied"
    )

    assert not requeue_job("7")
    assert "Requested operation denied" in caplog.text


def test_without_slurm_it_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert not requeue_job("7")
    assert "submit it again" in caplog.text
