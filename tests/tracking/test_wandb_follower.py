"""W&B gets every line once, and no failure of it stops or blocks a run."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.tracking.tracker import RunTracker, keep_metrics_until
from ernie_vilg.tracking.wandb_follower import Follower, SentMark, described, wandb_mode
from ernie_vilg.tracking.wandb_process import Orders, WandbProcess
from tests.tracking.wandb_file import (
    logged_config,
    logged_history,
    logged_run,
    num_system_samples,
)
from tests.tracking.wandb_servers import black_hole, failing_server
from tests.training.runs import tiny_run

METRICS = {"loss": 2.5}
TIMEOUT_SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def config_with(folder: Path, mode: str, finish_seconds: float = TIMEOUT_SECONDS) -> PretrainConfig:
    (folder / "run").mkdir(exist_ok=True)
    tracking = TrackingConfig(wandb_mode=mode, finish_seconds=finish_seconds)
    return replace(tiny_run(folder, steps=2), tracking=tracking)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def offline_files(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_lines_without_metrics_are_skipped_with_one_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    good = {"step": 1, "caption": "a\u2028b\x85c"}
    bad = ["null", "5", "[1]", "[" * 100_000, '{"step": "2"}', '{"step": 3, "a": "\\ud83d"}']
    lines = "\n".join([json.dumps(good, ensure_ascii=False), *bad, '{"step": 4}', ""])
    path.write_text(lines, encoding="utf-8")

    with Follower(path) as follower:
        assert follower.new_lines() == [good, {"step": 4}]

    said = capfd.readouterr()
    assert (said.out + said.err).count("has lines without metrics") == 1


@pytest.mark.parametrize("step", ["Infinity", "null", "[1]", "[" * 10_000 + "]" * 10_000])
def test_a_damaged_record_of_the_last_step_is_ignored(tmp_path: Path, step: str) -> None:
    (tmp_path / "wandb_sent.json").write_text(f'{{"run_id": "me", "step": {step}}}')

    assert SentMark(tmp_path, "me").step == -1


def test_a_follower_reads_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with Follower(path) as follower, path.open("a") as writer:
        first = follower.new_lines()
        writer.write('ep": 2}\n')
        writer.flush()
        second = follower.new_lines()
        third = follower.new_lines()

    assert (first, second, third) == ([{"step": 1}], [{"step": 2}], [])


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    with Follower(path) as follower:
        follower.new_lines()
        keep_metrics_until(path, 1)
        was_replaced = follower.was_replaced(), follower.was_replaced()
        lines = follower.new_lines()

    assert was_replaced == (True, False)
    assert lines == [{"step": 1}]


def test_the_last_step_belongs_to_one_run_folder_and_never_decreases(tmp_path: Path) -> None:
    mark = SentMark(tmp_path, "a")
    mark.move(20)
    mark.move(10)

    assert SentMark(tmp_path, "a").step == 20
    assert SentMark(tmp_path, "the folder was copied").step == -1


def test_an_offline_run_holds_what_was_logged_and_a_restart_sends_nothing_twice(
    tmp_path: Path,
) -> None:
    config = config_with(tmp_path, "auto")
    (tmp_path / "run" / "samples").mkdir()
    picture = tmp_path / "run" / "samples" / "step_00000010.png"
    Image.new("RGB", (8, 8)).save(picture)
    tracker = RunTracker(config, step=0)
    tracker.log(10, {"loss": 2.5, "loss_by_image_row": [1.0, None, 3.0]})
    tracker.log_pictures(10, {"samples": picture}, {"samples": "a | b"})
    tracker.log(20, {"loss": 2.0})
    tracker.close()

    tracker = RunTracker(config, step=10)  # as after a crash: step 20 is made again
    tracker.log(20, {"loss": 2.0})
    tracker.log(30, {"loss": 1.5})
    tracker.close()

    histories = [
        [
            {name: value for name, value in entry.items() if name not in ("_timestamp", "_runtime")}
            for entry in logged_history(path)
        ]
        for path in offline_files(tmp_path)
    ]
    drawn = histories[0][0].pop("samples")
    assert histories == [
        [
            {"_step": 10, "loss": 2.5, "loss_by_image_row/0": 1.0, "loss_by_image_row/2": 3.0},
            {"_step": 20, "loss": 2.0},
        ],
        [{"_step": 30, "loss": 1.5}],
    ]
    assert (drawn["caption"], drawn["width"]) == ("a | b", 8)
    assert logged_config(offline_files(tmp_path)[0])["model"]["hidden_size"] == 16
    assert len({path.name for path in offline_files(tmp_path)}) == 1  # the same run


@pytest.mark.parametrize("system_statistics", [False, True])
def test_the_run_carries_its_labels_and_the_machine_only_by_choice(
    tmp_path: Path, system_statistics: bool
) -> None:
    config = config_with(tmp_path, "offline")
    tracking = replace(
        config.tracking,
        experiment="quickstart",
        job_type="ablation",
        tags=("wide", "红"),
        notes="two\nlines",
        system_statistics=system_statistics,
    )
    tracker = RunTracker(replace(config, tracking=tracking), step=0)
    tracker.log(10, METRICS)
    tracker.close()

    (path,) = offline_files(tmp_path)
    assert logged_run(path) == {
        "name": "quickstart-run",
        "group": "quickstart",
        "job_type": "ablation",
        "tags": ["wide", "红"],
        "notes": "two\nlines",
    }
    assert bool(num_system_samples(path)) == system_statistics


def test_an_unreachable_wandb_costs_nothing_and_the_run_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server takes connections and never answers."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    config = config_with(tmp_path, "online")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text('{"step": 10, "loss": 2.5}\n')
    with black_hole() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        process = WandbProcess(orders(config, init_seconds=1.0))
        wait_for(lambda: (tmp_path / "run" / "wandb_sent.json").exists(), "the line is not taken")
        process.check()
        process.close()

    assert "W&B cannot be reached, the run is kept in wandb/" in caplog.text
    (path,) = offline_files(tmp_path)
    assert [entry["loss"] for entry in logged_history(path)] == [2.5]


def test_a_hanging_wandb_neither_slows_a_step_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server answers 500 to every request, and W&B's client retries."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    before = set(psutil.Process().children(recursive=True))
    with failing_server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        tracker = RunTracker(config_with(tmp_path, "online", finish_seconds=1.0), step=0)
        started = time.monotonic()
        for step in range(200):
            tracker.log(step, METRICS)
        seconds_per_call = (time.monotonic() - started) / 200
        started = time.monotonic()
        tracker.close()
        seconds_to_close = time.monotonic() - started

    assert len(lines_of(tmp_path)) == 200
    assert seconds_per_call < 0.005
    assert seconds_to_close < 15  # 1, and 2 before it is killed, on a busy machine
    assert set(psutil.Process().children(recursive=True)) <= before
    assert "`wandb sync` sends" in caplog.text


def test_a_stopped_wandb_is_killed_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(psutil.Process().children())
    tracker = RunTracker(config_with(tmp_path, "offline", finish_seconds=0.1), step=0)
    (follower,) = set(psutil.Process().children()) - before
    follower.send_signal(signal.SIGSTOP)
    tracker.log(10, METRICS)
    tracker.close()

    assert not follower.is_running()
    assert "W&B hung and was ended" in caplog.text
    assert lines_of(tmp_path) == [{"step": 10, "loss": 2.5}]


def test_a_run_goes_on_without_a_wandb_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python here"))
    tracker = RunTracker(config_with(tmp_path, "online"), step=0)
    tracker.log(10, METRICS)
    tracker.close()

    assert "W&B could not start, the run goes on without it" in caplog.text
    assert lines_of(tmp_path) == [{"step": 10, "loss": 2.5}]


def test_the_end_of_wandb_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(psutil.Process().children())
    tracker = RunTracker(config_with(tmp_path, "offline"), step=0)
    (follower,) = set(psutil.Process().children()) - before
    follower.kill()
    wait_for(lambda: follower.status() == psutil.STATUS_ZOMBIE, "it lives")
    for step in range(3):
        tracker.log(step, METRICS)
    tracker.close()

    assert caplog.text.count("W&B has ended, the run goes on without it") == 1
    assert len(lines_of(tmp_path)) == 3


def test_signals_to_the_whole_job_do_not_end_wandb_and_the_end_of_training_does(
    tmp_path: Path,
) -> None:
    """A killed rank leaves no process behind, and W&B gets the lines written before."""
    run_dir = tmp_path / "run"
    training, follower = start_training(tmp_path, orders(config_with(tmp_path, "offline")))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        follower.send_signal(number)
    (run_dir / "metrics.jsonl").write_text('{"step": 10, "loss": 2.5}\n')
    wait_for(lambda: (run_dir / "wandb_sent.json").exists(), "a signal ended it")
    family = [follower, *follower.children(recursive=True)]
    training.kill()
    training.wait()

    _, alive = psutil.wait_procs(family, timeout=TIMEOUT_SECONDS)
    assert alive == []
    (path,) = offline_files(tmp_path)
    assert [entry["loss"] for entry in logged_history(path)] == [2.5]


@pytest.mark.slow
def test_a_wandb_that_waits_for_its_server_ends_soon_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server never answers, and no process of W&B outlives a killed rank."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with black_hole() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        waiting = orders(config_with(tmp_path, "online"), init_seconds=600.0)
        training, follower = start_training(tmp_path, waiting)
        wait_for(lambda: bool(follower.children()), "W&B's service does not start")
        family = [follower, *follower.children(recursive=True)]
        training.kill()
        training.wait()
        _, alive = psutil.wait_procs(family, timeout=TIMEOUT_SECONDS)

    assert alive == []


def test_an_error_is_described_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-key")
    error = RuntimeError("POST https://me:canary-in-the-url@host/x: bad key canary-in-the-key\n")

    assert described(error) == "RuntimeError: POST https://host/x: bad key ***"


@pytest.mark.parametrize(
    ("environment", "netrc_host", "mode"),
    [
        pytest.param({}, None, "offline", id="no login"),
        pytest.param({"WANDB_API_KEY": "x"}, None, "online", id="key"),
        pytest.param({}, "api.wandb.ai", "online", id="netrc"),
        pytest.param({}, "else.where", "offline", id="netrc of another host"),
        pytest.param(
            {"WANDB_BASE_URL": "https://wandb.here"}, "wandb.here", "online", id="own server"
        ),
    ],
)
def test_auto_is_online_only_with_a_login(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    netrc_host: str | None,
    mode: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc_host:
        path = tmp_path / ".netrc"
        path.write_text(f"machine {netrc_host} login user password x\n")
        path.chmod(0o600)

    assert wandb_mode("auto") == mode


def start_training(folder: Path, said: Orders) -> tuple["subprocess.Popen[bytes]", psutil.Process]:
    """Start a process that has W&B follow an empty file; return both, once W&B's has begun."""
    program = (
        "import json, sys, time; from pathlib import Path;"
        "from ernie_vilg.tracking.wandb_process import Orders, WandbProcess;"
        "process = WandbProcess(Orders(**json.loads(Path(sys.argv[1]).read_text())));"
        "time.sleep(600)"
    )
    (folder / "orders.json").write_text(json.dumps(asdict(said)))
    (folder / "run" / "metrics.jsonl").write_text("")
    training = subprocess.Popen([sys.executable, "-c", program, str(folder / "orders.json")])
    lock = folder / "run" / ".wandb_follower.lock"
    wait_for(lock.exists, "W&B's process does not start")
    (follower,) = psutil.Process(training.pid).children()
    return training, follower


def orders(config: PretrainConfig, init_seconds: float = 30.0) -> Orders:
    return Orders(
        run_dir=config.run_dir,
        metrics="metrics.jsonl",
        mode=config.tracking.wandb_mode,
        project="test",
        name="test",
        init_seconds=init_seconds,
        finish_seconds=config.tracking.finish_seconds,
        settings={},
    )
