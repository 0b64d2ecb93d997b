"""A main job runs every unfinished stage once, and leaves no process running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ernie_vilg.config.main_job import JobConfig, StageConfig, StageOverrides
from launch.jobs.run_job import StageFailedError, run_job

_TIMEOUT_SECONDS = 20.0


def no_settings(command: Sequence[str]) -> dict[str, Any] | None:
    return None


def python_stage(name: str, code: str, **changes: Any) -> StageConfig:
    """A stage that runs a line of Python and leaves the file `job/<name>.txt`."""
    settings: dict[str, Any] = {"outputs": (f"job/{name}.txt",), **changes}
    return StageConfig(name=name, command=("python", "-c", code), **settings)


def appends(name: str, what: str = "x") -> str:
    """Return code that appends `what` to the output, so that runs can be counted."""
    return f"open('job/{name}.txt', 'a').write({what!r})"


def job_of(*stages: StageConfig, **changes: Any) -> JobConfig:
    return JobConfig(name="test", output_dir="job", stages=stages, **changes)


def run(job: JobConfig, root: Path, *, force: bool = False) -> None:
    run_job(job, force=force, root=root, settings=no_settings)


def state_of(root: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / f"job/stages/{name}.json").read_text())
    return content


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def two_stages() -> JobConfig:
    return job_of(
        python_stage("first", appends("first")),
        python_stage("second", appends("second"), inputs=("job/first.txt",)),
    )


def test_second_run_skips_finished_stages_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(two_stages(), tmp_path)
    capsys.readouterr()

    run(two_stages(), tmp_path)

    assert (tmp_path / "job/first.txt").read_text() == "x"
    printed = capsys.readouterr().out
    assert "[1/2] first: unchanged since it finished" in printed
    assert "[2/2] second: unchanged since it finished" in printed


def test_metrics_hold_seconds_and_memory_of_every_stage(tmp_path: Path) -> None:
    allocates = "import time; block = bytearray(64 * 2**20); time.sleep(1.3); "
    run(job_of(python_stage("only", allocates + appends("only"))), tmp_path)

    metrics = json.loads((tmp_path / "job/metrics.json").read_text())
    assert 1.3 < metrics["stages"]["only"]["seconds"] < 10
    assert 64 * 2**20 < metrics["stages"]["only"]["peak_memory_bytes"] < 2**30
    assert metrics["seconds"] == metrics["stages"]["only"]["seconds"]
    assert metrics["peak_memory_bytes"] == metrics["stages"]["only"]["peak_memory_bytes"]


def test_changed_stage_runs_again_with_those_that_read_it_and_no_other(tmp_path: Path) -> None:
    def job(what: str) -> JobConfig:
        return job_of(
            python_stage("first", appends("first", what)),
            python_stage("second", appends("second"), inputs=("job/first.txt",)),
            python_stage("apart", appends("apart")),
        )

    run(job("x"), tmp_path)
    second, apart = state_of(tmp_path, "second"), state_of(tmp_path, "apart")
    run(job("y"), tmp_path)

    assert (tmp_path / "job/first.txt").read_text() == "y"  # the old output was removed first
    assert state_of(tmp_path, "second")["fingerprint"] != second["fingerprint"]
    assert state_of(tmp_path, "second")["attempts"] == 1  # a new fingerprint counts from one
    assert state_of(tmp_path, "apart") == apart


def test_changed_settings_of_a_program_run_its_stage_again(tmp_path: Path) -> None:
    job = job_of(python_stage("only", appends("only")))
    runs = []
    for steps in (8, 8, 9):
        run_job(job, force=False, root=tmp_path, settings=lambda _, n=steps: {"steps": n})
        runs.append(state_of(tmp_path, "only")["fingerprint"])

    assert runs[0] == runs[1] != runs[2]


def test_changed_external_input_runs_its_stage_again(tmp_path: Path) -> None:
    job = job_of(python_stage("only", appends("only"), inputs=("given",)))
    (tmp_path / "given").mkdir()
    (tmp_path / "given/a.txt").write_text("a")
    run(job, tmp_path)
    before = state_of(tmp_path, "only")["fingerprint"]

    (tmp_path / "given/a.txt").write_text("b")
    run(job, tmp_path)

    assert state_of(tmp_path, "only")["fingerprint"] != before


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_damaged_output_runs_its_stage_again(tmp_path: Path, damage: str) -> None:
    run(two_stages(), tmp_path)
    output = tmp_path / "job/first.txt"
    if damage == "changed":
        output.write_text("something else")
    else:
        output.unlink()

    run(two_stages(), tmp_path)

    assert output.read_text() == "x"


def test_force_starts_over(tmp_path: Path) -> None:
    run(two_stages(), tmp_path)
    (tmp_path / "job/left_behind.txt").write_text("")

    run(two_stages(), tmp_path, force=True)

    assert not (tmp_path / "job/left_behind.txt").exists()
    assert (tmp_path / "job/first.txt").read_text() == "x"
    assert state_of(tmp_path, "first")["attempts"] == 1


def test_folder_of_somebody_else_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/thesis.txt").write_text("precious")

    with pytest.raises(ValueError, match="holds files that are not those of job test"):
        run(two_stages(), tmp_path, force=True)

    assert (tmp_path / "job/thesis.txt").read_text() == "precious"


def test_missing_external_input_stops_before_anything_runs(tmp_path: Path) -> None:
    job = job_of(
        python_stage("first", appends("first")),
        python_stage("second", appends("second"), inputs=("nowhere",)),
    )

    with pytest.raises(ValueError, match="stage second reads nowhere, which does not exist"):
        run(job, tmp_path)

    assert not (tmp_path / "job").exists()


def test_failing_stage_shows_the_end_of_its_log(tmp_path: Path) -> None:
    lines = "print('\\n'.join(f'line {n}' for n in range(100))); raise SystemExit(3)"

    with pytest.raises(StageFailedError) as caught:
        run(job_of(python_stage("only", lines)), tmp_path)

    message = str(caught.value)
    assert "stage only failed (exit code 3)" in message
    assert "line 99" in message
    assert "line 70" in message
    assert "line 69" not in message
    assert "job/logs/only.log" in message
    assert state_of(tmp_path, "only")["status"] == "failed"


def test_stage_that_leaves_its_output_out_fails(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match=r"it did not write job/only\.txt"):
        run(job_of(python_stage("only", "pass")), tmp_path)


def test_unknown_program_fails_with_its_name(tmp_path: Path) -> None:
    stage = StageConfig(name="only", command=("no-such-program",), outputs=("job/only.txt",))

    with pytest.raises(StageFailedError, match="no-such-program: no such program"):
        run(job_of(stage), tmp_path)


@pytest.mark.parametrize(
    ("resumes", "left"),
    [
        pytest.param(True, "xx", id="goes on from what the first attempt left"),
        pytest.param(False, "x", id="its outputs are removed first"),
    ],
)
def test_failed_stage_runs_again(tmp_path: Path, resumes: bool, left: str) -> None:
    code = appends("only") + "; import os; assert os.path.exists('mended')"
    job = job_of(python_stage("only", code, resumes=resumes))
    with pytest.raises(StageFailedError):
        run(job, tmp_path)
    first_seconds = state_of(tmp_path, "only")["seconds"]

    (tmp_path / "mended").touch()
    run(job, tmp_path)

    assert (tmp_path / "job/only.txt").read_text() == left
    state = state_of(tmp_path, "only")
    assert state["attempts"] == 2
    assert state["seconds"] > first_seconds  # both attempts count


def test_resuming_stage_with_changed_settings_starts_over(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError):
        run(job_of(python_stage("only", appends("only") + "; 1 / 0", resumes=True)), tmp_path)

    run(job_of(python_stage("only", appends("only"), resumes=True)), tmp_path)

    assert (tmp_path / "job/only.txt").read_text() == "x"


def test_overrides_stand_behind_the_command(tmp_path: Path) -> None:
    code = "import sys; open('job/pretrain.txt', 'w').write(' '.join(sys.argv[1:]))"
    overrides = StageOverrides(pretrain=("training.steps=8", "{free_port}"))
    run(job_of(python_stage("pretrain", code), overrides=overrides), tmp_path)

    steps, port = (tmp_path / "job/pretrain.txt").read_text().split()
    assert steps == "training.steps=8"
    assert 1024 <= int(port) < 65536


def test_stage_gets_its_environment_and_our_programs_first(tmp_path: Path) -> None:
    code = (
        "import os, shutil; open('job/only.txt', 'w').write("
        "os.environ['OMP_NUM_THREADS'] + ' ' + shutil.which('python'))"
    )
    run(job_of(python_stage("only", code, environment={"OMP_NUM_THREADS": "1"})), tmp_path)

    threads, python = (tmp_path / "job/only.txt").read_text().split()
    assert threads == "1"
    assert Path(python).parent == Path(sys.executable).parent


# Starts a job whose only stage starts a grandchild; both write their process ids and sleep.
_DRIVER = """
import signal
from pathlib import Path
from ernie_vilg.config.main_job import JobConfig, StageConfig
from launch import main_job

code = '''
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pids.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(60)
'''
stage = StageConfig(name="only", command=("python", "-c", code), outputs=("job/only.txt",))
job = JobConfig(name="test", output_dir="job", stages=(stage,))
signal.signal(signal.SIGTERM, main_job._interrupt)
try:
    main_job.run_job(job, force=False, root=Path("."), settings=lambda _: None)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.mark.parametrize(
    "signal_number",
    [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
    ids=lambda signal_number: signal_number.name,
)
def test_nothing_outlives_the_main_job(tmp_path: Path, signal_number: signal.Signals) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        # A shell's background process ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until((tmp_path / "pids").exists)
    processes = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]

    os.kill(driver.pid, signal_number)
    return_code = driver.wait(timeout=_TIMEOUT_SECONDS)

    psutil.wait_procs(processes, timeout=_TIMEOUT_SECONDS)
    assert not any(process.is_running() for process in processes)
    expected = -signal.SIGKILL if signal_number == signal.SIGKILL else 130
    assert return_code == expected
    status = "running" if signal_number == signal.SIGKILL else "stopped"
    assert state_of(tmp_path, "only")["status"] == status


def test_second_job_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.jobs.run_job.GRACE_SECONDS", -2.0)  # do not wait for the first
    stage = python_stage("only", "import time; time.sleep(60)")
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    try:
        wait_until((tmp_path / "pids").exists)
        with pytest.raises(ValueError, match="another main job is running"):
            run(job_of(stage), tmp_path)
    finally:
        driver.terminate()
        driver.wait(timeout=_TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param("elsewhere/file", id="another folder"),
        pytest.param("job", id="the job's folder itself"),
        pytest.param("job/../other", id="climbs out"),
        pytest.param("job/stages/only.json", id="the state"),
        pytest.param("job/logs", id="the logs"),
    ],
)
def test_output_that_must_not_be_removed_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="an output must be in"):
        job_of(StageConfig(name="only", command=("true",), outputs=(output,)))


def test_override_of_a_stage_that_the_job_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"job\.overrides\.pretrain: job test has no such stage"):
        job_of(python_stage("only", ""), overrides=StageOverrides(pretrain=("a=1",)))
