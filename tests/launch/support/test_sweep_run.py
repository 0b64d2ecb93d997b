"""A sweep runs its jobs one after another, and says how each ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from launch.drills.data_set import make_data_set
from launch.support.places import CONF_FOLDER
from launch.support.sweep import jobs_of
from launch.support.sweep_run import (
    PAGE_NAME,
    TABLE_NAME,
    Sweep,
    ending_in_words,
    last_losses,
    run_sweep,
)
from tests.launch.test_pretrain import settings

ROOT = CONF_FOLDER.parent

JOB = """
import json, pathlib, signal, sys, time
options = dict(option.split("=", 1) for option in sys.argv[1:])
run, code = pathlib.Path(options["run_dir"]), int(options["code"])
run.mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file:
    file.write("started")
entry = {"step": 4, "loss": code + 0.5, "loss_text_to_image": 1 / 3, "learning_rate": 1}
(run / "metrics.jsonl").write_text(json.dumps({"step": 2, "loss": 9}) + "\\n" + json.dumps(entry)
    + "\\n" + json.dumps({"step": 4, "samples/codebook_usage": 1}) + "\\n")
if "wait" in options:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    (run / "waits").touch()
    time.sleep(60)
sys.exit(code)
"""
"""A program that has a run folder and ends as it is told."""


def sweep_of(folder: Path, *options: str) -> Sweep:
    return Sweep([sys.executable, "-c", JOB], folder, jobs_of(options))


@pytest.fixture(autouse=True)
def started_by_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # an earlier test's engine may have set them
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def restored_handlers() -> object:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_job_runs_and_the_table_says_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = sweep_of(tmp_path / "sweep", "run_dir=elsewhere", "code=0,1,2").run()

    assert code == ExitCode.FAILED
    table = (tmp_path / "sweep" / TABLE_NAME).read_text().splitlines()
    assert [line.split("\t") for line in table] == [
        ["code", "ending", "step", "loss", "loss_text_to_image", "run folder"],
        ["0", "done", "4", "0.5", "0.333333", "code=0"],
        ["1", "failed", "4", "1.5", "0.333333", "code=1"],
        ["2", "refused", "4", "2.5", "0.333333", "code=2"],
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "0     done     4     0.5   0.333333            code=0"


def test_the_page_has_the_losses_over_the_values_and_the_table(tmp_path: Path) -> None:
    sweep_of(tmp_path / "sweep", "code=0,1,2").run()

    page = (tmp_path / "sweep" / PAGE_NAME).read_text()
    assert "code: training, weighted sum: the lowest of 3 is 0.5 at 0" in page
    assert page.count("<td>failed</td>") == 1
    assert f"runs=[{tmp_path}/sweep/*]" in page


def test_failures_are_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        sweep_of(tmp_path, "code=0,1,2").run()

    said = [record.getMessage() for record in caplog.records]
    assert said[-3:] == [
        f"3 jobs: 1 done, 1 failed, 1 refused; see {tmp_path / PAGE_NAME}",
        "code=1: failed",
        "code=2: refused",
    ]


def test_the_same_command_starts_every_job_again_which_resumes_itself(tmp_path: Path) -> None:
    assert sweep_of(tmp_path, "code=0,0.0").run() == ExitCode.FAILED  # int("0.0") fails
    assert sweep_of(tmp_path, "code=0,00").run() == ExitCode.DONE

    assert (tmp_path / "code=0" / "starts").read_text() == "started" * 2
    assert (tmp_path / "code=00" / "starts").read_text() == "started"


def test_a_stopped_job_is_no_failure(tmp_path: Path) -> None:
    assert sweep_of(tmp_path, "code=0,75").run() == ExitCode.STOPPED


def test_a_signal_stops_the_running_job_and_starts_no_other(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from tests.launch.support.test_sweep_run import sweep_of; "
        "sys.exit(sweep_of(Path(sys.argv[1]), 'wait=1', 'code=0,1').run())"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT) as sweep:
        while not (tmp_path / "code=0" / "waits").exists():
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(timeout=30) == ExitCode.STOPPED

    rows = [line.split("\t") for line in (tmp_path / TABLE_NAME).read_text().splitlines()]
    assert [row[1] for row in rows] == ["ending", "stopped", "not started"]
    assert not (tmp_path / "code=1").exists()


def test_the_words_of_endings() -> None:
    assert ending_in_words(-signal.SIGKILL) == "killed by SIGKILL"
    assert ending_in_words(3) == "failed"


def test_a_line_that_a_kill_cut_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')

    assert last_losses(RunFolder(tmp_path)) == {"step": 1, "loss": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            ["experiment=quickstart", "training.steps=2,x"],
            r"training\.steps=x: it refuses these settings",
            id="a wrong value of the last job",
        ),
        pytest.param(
            ["experiment=quickstart", "run_dir=a,b"], "run_dir has several values", id="folders"
        ),
        pytest.param(
            ["experiment=quickstart,emoji"], "the jobs have several run_dirs", id="two experiments"
        ),
        pytest.param(
            ["experiment=quickstart", "training.steps=1,2", "hydra.sweep.dir=x"],
            "a setting of Hydra",
            id="a setting of Hydra's own sweeps",
        ),
        pytest.param(
            ["experiment=quickstart", "training.steps=1,2", "--cfg", "job"],
            "--cfg: write settings as key=value",
            id="another option",
        ),
    ],
)
def test_a_wrong_sweep_is_refused_before_its_first_job(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_sweep("pretrain", PretrainConfig, options, has_ranks=True)


def test_a_runs_folder_is_no_sweeps_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()

    options = ["experiment=quickstart", "training.steps=1,2", f"run_dir={tmp_path}"]
    with pytest.raises(InputError, match="is a run's folder: name another one for the sweep"):
        run_sweep("pretrain", PretrainConfig, options, has_ranks=True)


def test_a_launcher_starts_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")

    with pytest.raises(InputError, match="a launcher started this program"):
        run_sweep("pretrain", PretrainConfig, ["training.steps=1,2"], has_ranks=True)


def test_a_program_without_runs_has_no_sweep() -> None:
    with pytest.raises(InputError, match="plan has no run folder"):
        run_sweep("plan", PlanConfig, ["num_gpus=8,16"], has_ranks=False)


@pytest.mark.slow
def test_two_learning_rates_are_trained_and_the_same_command_goes_on(tmp_path: Path) -> None:
    data_set = make_data_set(tmp_path / "data")
    command = settings(data_set, tmp_path / "sweep", "samples.every=0", "--multirun")
    command += ["tracking.wandb_mode=disabled", "optimizer.learning_rate=1e-3,3e-4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start() -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stderr

    start()
    table = (tmp_path / "sweep" / TABLE_NAME).read_text()
    rows = [line.split("\t") for line in table.splitlines()]
    assert rows[0][:4] == ["optimizer.learning_rate", "ending", "step", "loss"]
    assert [row[:3] for row in rows[1:]] == [["1e-3", "done", "4"], ["3e-4", "done", "4"]]
    for row in rows[1:]:
        run = json.loads((tmp_path / "sweep" / row[-1] / "run.json").read_text())
        assert f"{run['settings']['optimizer']['learning_rate']:g}" == f"{float(row[0]):g}"

    assert len(re.findall("all 4 steps are done", start())) == 2
    assert (tmp_path / "sweep" / TABLE_NAME).read_text() == table
