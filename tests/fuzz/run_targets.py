"""Targets of the fuzzer in a run folder: checkpoints, and every file that a later start reads."""

import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ernie_vilg.checkpoint.folder import CHECKPOINT_PARTS, MANIFEST_NAME, newest_checkpoint, step_of
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.records.damage_log import DamageLog, read_damage
from ernie_vilg.data.records.ledger import Ledger, read_ledger, read_past_quarantine, read_step
from ernie_vilg.data.records.skipped_updates import SampleName, Skip, SkipLog, read_skips
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry, read_quarantine
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.evaluation.charts import curves, read_metrics
from ernie_vilg.evaluation.report import read_content, report_html
from ernie_vilg.planning.history import RunRecord, deciding_settings, read_record, write_record
from ernie_vilg.planning.past_runs import learn_from_runs
from ernie_vilg.runs import run_lock
from ernie_vilg.runs.recorded_settings import read_run, read_settings, write_run
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.storage.files import sha256_of_json, write_json
from ernie_vilg.tracking.tracker import keep_metrics_until
from launch.jobs.stages import StageState, read_state, write_state
from launch.support.composition import compose_program
from launch.support.supervisor import Supervisor
from tests.checkpoint.checkpoint_runs import FakeEngine, checkpoints_of, saved_run
from tests.data.token_shards import MODEL
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_json, mutate_lines, mutate_value
from tests.fuzz.target import Content, Files, Outcome, Special, Target, files_below, require

LEADER = Launch(rank=0, local_rank=0, world_size=1)
_NEWEST = "checkpoints/step_00000020/"
_QUARANTINE = Quarantine(entries=(QuarantineEntry(key="7", reason="asked for"),))
_SEQUENCE = TokenSequence(
    sources=(), mixture=(MixtureSegment(first_position=0, weights=(1.0,)),), seed=3,
    shuffle_block_shards=2, quarantine=_QUARANTINE, loader=LoaderConfig(), model=MODEL,
    with_pixels=False,
)  # fmt: skip
_FINDING = DamageFinding(
    data_set="main", shard="a.tar", index=3, key="3", num_samples=1, reason="shape", detail="d",
    position=9,
)  # fmt: skip


def made(write: Callable[[Path], object]) -> Callable[[], dict[str, bytes]]:
    """Return what a function writes into a folder."""

    def files() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            return files_below(Path(folder))

    return files


def one_process() -> None:
    """Let collectives work in this process alone."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def _save_run(folder: Path) -> None:
    one_process()
    saved_run(folder)


def _repair_checkpoint(rng: random.Random, files: Files) -> Files:
    """Plant files, and change a manifest so that its own hash holds."""
    files = dict(files)
    choice = rng.random()
    if choice < 0.1:
        planted: list[Content] = [b"x", *Special]
        files[f"{_NEWEST}{rng.choice(('state/', ''))}planted.pt"] = rng.choice(planted)
    elif choice < 0.5:
        name = f"checkpoints/step_000000{rng.choice((10, 20))}/{MANIFEST_NAME}"
        raw = files[name]
        try:
            content = mutate_value(rng, json.loads(raw)) if isinstance(raw, bytes) else None
            content.pop("sha256", None)
            content["sha256"] = sha256_of_json(content)
            with tempfile.TemporaryDirectory() as folder:
                write_json(Path(folder, "a"), content)
                files[name] = Path(folder, "a").read_bytes()
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
    return files


def _is_older_than_damage(files: Files, originals: dict[str, bytes], step: int) -> bool:
    """Return whether a step's checkpoint is as it was written."""
    start = f"checkpoints/step_{step:08d}/"
    names = {name for name in {*files, *originals} if name.startswith(start)}
    return all(files.get(name) == originals.get(name) for name in names)


def _read_checkpoints(folder: Path, files: Files) -> Outcome:
    newest = newest_checkpoint(folder, CHECKPOINT_PARTS)
    engine: Any = FakeEngine()
    step = checkpoints_of(folder).restore(engine)
    require(engine.state == step, f"resumed from step {step} with the state of {engine.state}")
    found = None if newest is None else step_of(newest)
    require(found == step, f"newest_checkpoint finds {found} where a start finds {step}")
    originals = dict(CHECKPOINTS.originals)
    untouched = [known for known in (0, 10, 20) if _is_older_than_damage(files, originals, known)]
    require(step >= max(untouched, default=0), f"step {step} where {untouched} are whole")
    return Outcome.VALID if step == 20 else Outcome.COUNTED


@cache
def _settings() -> PretrainConfig:
    config: PretrainConfig = compose_program("pretrain", ["experiment=quickstart"])
    return config


def _write_run(folder: Path) -> None:
    write_run(replace(_settings(), run_dir=str(folder)))


def _read_run(folder: Path, files: Files) -> Outcome:
    require(isinstance(read_run(folder), dict), "run.json is no object")
    require(isinstance(read_settings(folder, PretrainConfig), PretrainConfig), "no settings")
    return Outcome.VALID


def _write_metrics(folder: Path) -> None:
    lines = [
        json.dumps({"step": step, "loss": 2.0 / step, "loss_by_image_row": [1.0, None],
                    "pictures": {"samples": {"file": "a.png", "caption": "\u4e2d"}}},
                   ensure_ascii=False) + "\n"
        for step in range(1, 8)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def _read_metrics(folder: Path, files: Files) -> Outcome:
    path = folder / "metrics.jsonl"
    entries = read_metrics(path)
    curves(entries, {"loss": "loss"})
    require(all(isinstance(entry["step"], (int, float)) for entry in entries), "odd steps")
    keep_metrics_until(path, 5)
    kept = read_metrics(path)
    require(all(entry["step"] <= 5 for entry in kept), "later steps are kept")
    before = [entry for entry in entries if entry["step"] <= 5]
    require(len(kept) == len(before), f"{len(kept)} of {len(before)} steps are kept")
    return Outcome.VALID if len(entries) == 7 else Outcome.COUNTED


def _keep_metrics(folder: Path, files: Files) -> Outcome:
    """Do what a start does, whatever the report's reader thinks of the file."""
    keep_metrics_until(folder / "metrics.jsonl", 5)
    return Outcome.VALID


def _write_damage(folder: Path) -> None:
    DamageLog(folder, 0).write([replace(_FINDING, index=index) for index in range(4)])
    DamageLog(folder, 1).write([replace(_FINDING, index=None, num_samples=20)])


def _read_damage(folder: Path, files: Files) -> Outcome:
    before = read_damage(folder)
    require(before.num_samples == sum(before.num_samples_by_reason.values()), "sums differ")
    DamageLog(folder, 0).write([replace(_FINDING, shard="new.tar", index=1)])
    after = read_damage(folder)
    require("new.tar" in {finding.shard for finding in after.findings}, "a new finding is lost")
    return Outcome.COUNTED if before.num_unreadable_lines else Outcome.VALID


_SKIP = Skip(
    step=3, reason="spike", loss=9.0, limit=4.0, gradient_norm=None, ranks=(0,), first_position=16,
    num_positions=8, samples=(SampleName(data_set="main", shard="a.tar", index=1, key="1"),),
)  # fmt: skip


def _write_skips(folder: Path) -> None:
    for step in (3, 5):
        SkipLog(folder, 0).write(replace(_SKIP, step=step))


def _read_skips(folder: Path, files: Files) -> Outcome:
    before = read_skips(folder)
    SkipLog(folder, 0).write(replace(_SKIP, step=999_999))
    require(999_999 in {skip.step for skip in read_skips(folder)}, "a new line is lost")
    return Outcome.VALID if len(before) == 2 else Outcome.COUNTED


def _write_quarantine(folder: Path) -> None:
    lines = [{"key": "7"}, {"key": "8", "shard": "a.tar", "data_set": "main", "reason": "\u4e2d"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "quarantine.jsonl").write_text(text, encoding="utf-8")


def _read_quarantine(folder: Path, files: Files) -> Outcome:
    quarantine = read_quarantine(folder / "quarantine.jsonl")
    quarantine.digest()
    require(all(isinstance(entry.key, str) for entry in quarantine.entries), "odd keys")
    quarantine.holds("main", "a.tar", "8")
    return Outcome.VALID


def _open_ledger(folder: Path) -> Ledger:
    return Ledger(folder, _SEQUENCE, data_parallel_size=2, micro_batch_size=4)


def _write_ledger(folder: Path) -> None:
    ledger = _open_ledger(folder)
    for step in range(1, 6):
        ledger.append(step, (step - 1) * 8, 8)
    ledger.close()


def _read_ledger(folder: Path, files: Files) -> Outcome:
    lines, num_unreadable = read_ledger(folder)
    for line in lines:
        record = read_step(folder, line.last_step).record
        quarantine = read_past_quarantine(folder, record.quarantine)
        require(quarantine.digest() == _QUARANTINE.digest(), "another quarantine")
    ledger = _open_ledger(folder)
    ledger.append(77, 0, 8)
    ledger.close()
    require(bool(read_step(folder, 77).record), "a new record is lost")
    return Outcome.COUNTED if num_unreadable else Outcome.VALID


def _open_ledger_again(folder: Path, files: Files) -> Outcome:
    """Do what a start does, whatever the reader of the records thinks of them."""
    ledger = _open_ledger(folder)
    ledger.append(77, 0, 8)
    ledger.close()
    require(bool(read_step(folder, 77).record), "a new record is lost")
    return Outcome.COUNTED if read_ledger(folder)[1] else Outcome.VALID


def _write_lock(folder: Path) -> None:
    holder = run_lock.Holder(
        launch_id="another", host="elsewhere", machine="another", process_id=1, start_ticks=1,
        job=None, job_restarts=0, beat=3,
    )  # fmt: skip
    write_json(folder / "lock.json", asdict(holder))


def _read_lock(folder: Path, files: Files) -> Outcome:
    with RunLock(folder, LEADER, beat_seconds=60, stale_seconds=0.0) as lock:
        require(not lock.is_lost, "the lock is lost")
    return Outcome.VALID


def _start_lock() -> None:
    run_lock._POLL_SECONDS = 0.001


def _write_stopped(folder: Path) -> None:
    marker = {"reason": "terminated", "by_person": False, "step": 3, "requeued": False}
    write_json(folder / "stopped.json", marker)


def _read_stopped(folder: Path, files: Files) -> Outcome:
    supervisor = Supervisor(["true"], folder, max_failures=1, pause_seconds=0.0)
    require(isinstance(supervisor.run(), int), "no exit code")
    return Outcome.VALID


def _write_measured(folder: Path) -> None:
    record = RunRecord(
        hardware="NVIDIA H100 80GB HBM3", world_size=1,
        settings=deciding_settings(_settings(), "bfloat16"), peak_memory_bytes=10**9,
        seconds_per_step=0.5, parts={"data": 0.1, "forward": 0.4},
    )  # fmt: skip
    write_record(folder, record)


@cache
def _plan() -> Any:
    return compose_program("plan", ["experiment=quickstart", "num_gpus=1", "gpu=h100-80gb"])


def _read_measured(folder: Path, files: Files) -> Outcome:
    record = read_record(folder)
    correction, _ = learn_from_runs(replace(_plan(), history=(str(folder),)))
    for factor in (correction.rates, correction.memory):
        require(math.isfinite(factor) and factor > 0, f"an odd factor is learned: {factor}")
    return Outcome.REFUSED if record is None else Outcome.VALID


def _write_state(folder: Path) -> None:
    state = StageState(
        fingerprint="a" * 64, status="finished", command="c", number=1, seconds=1.5, attempts=1
    )
    (folder / "stages").mkdir()
    write_state(folder, "build", state)


def _read_state(folder: Path, files: Files) -> Outcome:
    state = read_state(folder, "build")
    return Outcome.REFUSED if state is None else Outcome.VALID


def _write_evaluation(folder: Path) -> None:
    write_json(folder / "evaluation.json", {"text_to_image": 0.5})
    (folder / "pairs.jsonl").write_text("")
    _write_metrics(folder)


def _read_evaluation(folder: Path, files: Files) -> Outcome:
    content = read_content(
        title="t", command="c", versions={}, pretrain=folder, image_tokenizer=folder,
        evaluation=folder, stages={}, trained_on=False, examples=3,
    )  # fmt: skip
    require("<html" in report_html(content), "no page")
    return Outcome.VALID


CHECKPOINTS = Target(
    name="checkpoints",
    files=made(_save_run),
    mutate={MANIFEST_NAME: mutate_json, ".json": mutate_json, ".pt": mutate_bytes},
    repair=_repair_checkpoint,
    read=_read_checkpoints,
    start=one_process,
)
_JSON = {".json": mutate_json}
_LINES = {".jsonl": mutate_lines}
TARGETS = [
    CHECKPOINTS,
    Target(name="run.json", files=made(_write_run), mutate=_JSON, read=_read_run),
    Target(name="metrics", files=made(_write_metrics), mutate=_LINES, read=_read_metrics),
    Target(name="metrics at start", files=made(_write_metrics), mutate=_LINES, read=_keep_metrics),
    Target(name="damage", files=made(_write_damage), mutate=_LINES, read=_read_damage),
    Target(name="skips", files=made(_write_skips), mutate=_LINES, read=_read_skips),
    Target(name="quarantine", files=made(_write_quarantine), mutate=_LINES, read=_read_quarantine),
    Target(name="ledger", files=made(_write_ledger), read=_read_ledger,
           mutate=_LINES),
    Target(name="ledger at start", files=made(_write_ledger), read=_open_ledger_again,
           mutate=_LINES),
    Target(name="lock", files=made(_write_lock), mutate=_JSON, read=_read_lock, start=_start_lock),
    Target(name="stopped.json", files=made(_write_stopped), mutate=_JSON, read=_read_stopped,
           quick=30),
    Target(name="measured.json", files=made(_write_measured), mutate=_JSON, read=_read_measured),
    Target(name="stage states", files=made(_write_state), mutate=_JSON, read=_read_state),
]  # fmt: skip
