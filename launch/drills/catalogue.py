"""Every drill: a fault, and the assertions that must hold afterwards.

Most drills compare a faulted run, resumed by the same command, with an undisturbed one: the losses
of all steps and every tensor of the last checkpoint must be equal, bit for bit.

Source: the faults that large runs report (OPT-175B's logbook, BLOOM's chronicles, Llama 3,
arXiv:2407.21783, section 3.3.4).
"""

import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.skipped_updates import read_skips
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder, step_name
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.drills.faults import Fault
from launch.drills.runs import DrilledRun, LaunchResult
from launch.drills.test_bed import SAVE_EVERY, STEPS, TestBed

_LOSS_TOLERANCE = 1e-6
_LATE_STEP = SAVE_EVERY + 2


class DrillFailedError(Exception):
    """An assertion of a drill failed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of a passed drill."""

    recovery_seconds: float | None
    """Seconds from the fault to the next step; None if no work was lost."""
    held: str
    """Assertions that held, in words."""


Drill = Callable[[TestBed, str], Finding]
"""Function of the test bed and the drill's name."""


def build_reference(folder: Path, config: PretrainConfig, num_ranks: int) -> DrilledRun:
    """Train the undisturbed run.

    Raises:
        DrillFailedError: the run fails without any fault.
    """
    config = replace(config, run_dir=str(folder / "run"))
    run = DrilledRun(folder=folder, config=config, num_ranks=num_ranks)
    _finishes(run.launch())
    _require(sorted(run.losses()) == list(range(1, STEPS + 1)), "every step has a loss")
    return run


def catalogue() -> dict[str, Drill]:
    """Return every drill by name, in order."""
    last = partial(Fault, rank=1)
    return {
        "sigterm_warm_up": partial(_stopped, fault=_sigterm(Phase.START)),
        "sigterm_step": partial(_stopped, fault=_sigterm(Phase.STEP, step=_LATE_STEP)),
        "sigterm_evaluation": partial(_stopped, fault=_sigterm(Phase.DRAW, step=1)),
        "sigterm_save": partial(_stopped, fault=_sigterm(Phase.SAVE, step=SAVE_EVERY)),
        "sigkill_rank": partial(
            _killed, fault=last(kind="signal", phase=Phase.STEP, step=6, signal_name="SIGKILL")
        ),
        "sigkill_launcher": partial(
            _killed,
            fault=Fault(
                kind="signal",
                rank=0,
                phase=Phase.STEP,
                step=_LATE_STEP,
                signal_name="SIGKILL",
                target="parents",
            ),
        ),
        "sigkill_in_save": partial(
            _killed,
            fault=Fault(
                kind="signal", rank=0, point="save: before rename", step=8, signal_name="SIGKILL"
            ),
        ),
        "sigstop_rank": _frozen,
        "slow_rank": _slow,
        "nan_gradient": _nan,
        "one_ulp": _one_ulp,
        "truncated_shard": _truncated_shard,
        "half_written_checkpoint": _half_written,
        "flipped_bit": _flipped_bit,
        "disk_full": _disk_full,
        "wandb_black_hole": _black_hole,
        "other_tensor_parallel_size": partial(_resharded, tensor=2, pipeline=1),
        "other_pipeline_parallel_size": partial(_resharded, tensor=1, pipeline=2),
        "other_data_parallel_size": partial(_resharded, tensor=1, pipeline=1, num_ranks=1),
    }


def _sigterm(phase: Phase, step: int = 0) -> Fault:
    return Fault(
        kind="signal", rank=0, phase=phase, step=step, signal_name="SIGTERM", target="launcher"
    )


def _stopped(bed: TestBed, name: str, fault: Fault) -> Finding:
    """After a SIGTERM to the launcher, all ranks stop at the same step, with a checkpoint."""
    run = bed.run(name)
    launch = run.launch(fault)
    _require(launch.injected_at is not None, "the signal was sent", launch)
    _require(launch.return_code != 0, "the exit code says that steps are left", launch)
    stopped = run.stopped()
    _require("reason" in stopped, "stopped.json says why it stopped", launch)
    step = run.newest_step()
    _require(stopped["step"] == step, "the checkpoint is of the step it stopped at", launch)
    _require(launch.num_orphans == 0, "no process is left", launch)
    recovery = _resumes_bit_for_bit(bed, run, launch)
    return Finding(
        recovery_seconds=recovery, held=f"saved at step {step}, resumed bit for bit, none left"
    )


def _killed(bed: TestBed, name: str, fault: Fault) -> Finding:
    """After a SIGKILL the other ranks end, and the same command resumes the last checkpoint."""
    run = bed.run(name)
    launch = run.launch(fault)
    _require(launch.injected_at is not None, "the signal was sent", launch)
    _require(launch.num_orphans == 0, "no process is left", launch)
    recovery = _resumes_bit_for_bit(bed, run, launch)
    return Finding(recovery_seconds=recovery, held="resumed bit for bit, none left")


def _frozen(bed: TestBed, name: str) -> Finding:
    """After a SIGSTOP the watchdog of the other ranks names the rank and ends the run."""
    run = bed.run(name)
    launch = run.launch(
        Fault(kind="signal", rank=1, phase=Phase.STEP, step=_LATE_STEP, signal_name="SIGSTOP")
    )
    report = run.report("hang")
    _require("rank 1" in report, "the report names rank 1", launch)
    _require("stopped by a signal" in report, "the report names the cause", launch)
    recovery = _resumes_bit_for_bit(bed, run, launch)
    return Finding(recovery_seconds=recovery, held="rank 1 named, resumed bit for bit")


def _slow(bed: TestBed, name: str) -> Finding:
    """A slow rank is named, and the run stays equal."""
    run = bed.run(name)
    launch = run.launch(Fault(kind="sleep", rank=1, phase=Phase.STEP, step=2, seconds=0.7))
    _finishes(launch)
    _require(
        "rank 1" in _lines_with(launch.log, "all others wait for it"),
        "the log names rank 1",
        launch,
    )
    _equals(bed, run, launch)
    return Finding(recovery_seconds=None, held="rank 1 named, the run equal bit for bit")


def _nan(bed: TestBed, name: str) -> Finding:
    """After a NaN in one rank's gradient all ranks skip the update and record its samples."""
    run = bed.run(name)
    launch = run.launch(Fault(kind="nan_gradient", rank=1, phase=Phase.STEP, step=_LATE_STEP))
    _finishes(launch)
    skips = read_skips(RunFolder(run.run_dir).ledger)
    _require(
        any(skip.step == _LATE_STEP and skip.samples for skip in skips),
        "the ledger names the step and its samples",
        launch,
    )
    losses, reference = run.losses(), bed.reference.losses()
    before = range(1, _LATE_STEP)
    _require(
        all(losses[step] == reference[step] for step in before), "steps before are equal", launch
    )
    _require(losses[STEPS] != reference[STEPS], "the update was skipped", launch)
    _require(losses[STEPS] is not None, "the loss is a number again", launch)
    return Finding(recovery_seconds=None, held="the update skipped by all, its samples recorded")


def _one_ulp(bed: TestBed, name: str) -> Finding:
    """A flipped bit of a weight on one rank is found, the rank named, and the run rolled back."""
    run = bed.run(name)
    launch = run.launch(Fault(kind="one_ulp", rank=1, phase=Phase.CHECK, step=_LATE_STEP))
    _finishes(launch)
    _require("rank 1" in _lines_with(launch.log, "differ"), "the log names the rank", launch)
    _equals(bed, run, launch)
    recovery = _recovery(run, launch)
    return Finding(recovery_seconds=recovery, held="found at once, rank named, equal bit for bit")


def _truncated_shard(bed: TestBed, name: str) -> Finding:
    """A truncated shard stops the run, which names it; with the shard restored the run resumes."""
    run = bed.run(name)
    shards = run.folder / "token_shards"
    shutil.copytree(bed.data.token_shards, shards)
    run.config = replace(run.config, data=replace(run.config.data, token_shards=str(shards)))
    damaged = shards / read_manifest(shards, "token").shards[0].file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    launch = run.launch()
    _require(launch.return_code != 0, "the run stops", launch)
    _require(damaged.name in launch.log, f"the log names {damaged.name}", launch)
    damaged.write_bytes(whole)
    _finishes(run.launch())
    _equals(bed, run, run.launches[-1])
    return Finding(recovery_seconds=None, held=f"{damaged.name} named, then equal bit for bit")


def _half_written(bed: TestBed, name: str) -> Finding:
    """A checkpoint with half a file is not loaded."""
    return _damaged_checkpoint(bed, name, lambda content: content[: len(content) // 2])


def _flipped_bit(bed: TestBed, name: str) -> Finding:
    """A checkpoint with a flipped bit is not loaded."""

    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[random.Random(0).randrange(len(content))] ^= 1
        return bytes(changed)

    return _damaged_checkpoint(bed, name, flip)


def _damaged_checkpoint(bed: TestBed, name: str, damage: Callable[[bytes], bytes]) -> Finding:
    run = bed.copy(name, last_step=2 * SAVE_EVERY)
    file = next(path for path in sorted(run.newest().rglob("*.pt")) if "optim" in path.name)
    file.write_bytes(damage(file.read_bytes()))
    launch = run.launch()
    _finishes(launch)
    _require(file.name in launch.log, f"the log names {file.name}", launch)
    _require(
        step_name(SAVE_EVERY) in _lines_with(launch.log, "resumed"),
        "it resumes the checkpoint before",
        launch,
    )
    _equals(bed, run, launch)
    return Finding(recovery_seconds=None, held=f"{file.name} refused, the one before it used")


def _disk_full(bed: TestBed, name: str) -> Finding:
    """After a save without disk space the last checkpoint is intact, and training continues."""
    run = bed.run(name)
    fault = Fault(kind="file_limit", rank=0, phase=Phase.SAVE, step=SAVE_EVERY, limit_bytes=1 << 16)
    launch = run.launch(fault)
    _finishes(launch)
    _require("File too large" in launch.log, "the log says why a save failed", launch)
    missing = RunFolder(run.run_dir).checkpoint(SAVE_EVERY)
    _require(not missing.exists(), "no checkpoint has its name", launch)
    _equals(bed, run, launch)
    return Finding(recovery_seconds=None, held="the save refused, the run equal bit for bit")


def _black_hole(bed: TestBed, name: str) -> Finding:
    """A W&B server that accepts connections and never answers does not disturb the run."""
    run = bed.run(
        name, tracking=replace(bed.config.tracking, wandb_mode="online", finish_seconds=2.0)
    )
    with _silent_server() as address:
        launch = run.launch(environment={"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40})
    _finishes(launch)
    _equals(bed, run, launch)
    return Finding(recovery_seconds=None, held="every metric written, the run equal bit for bit")


def _resharded(
    bed: TestBed, name: str, tensor: int, pipeline: int, num_ranks: int | None = None
) -> Finding:
    """Another layout resumes with equal weights, moments and samples, and nearly equal losses."""
    layout = replace(
        bed.config.parallelism,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        zero_stage=1 if pipeline > 1 else bed.config.parallelism.zero_stage,
        sequence_parallel=False,
        micro_batch_size=2,
    )
    run = bed.copy(name, last_step=2 * SAVE_EVERY, parallelism=layout)
    launch = run.launch(num_ranks=num_ranks)
    _finishes(launch)
    _require(
        "as they were, bit for bit" in launch.log,
        "weights and moments were compared with the checkpoint",
        launch,
    )
    reference = bed.reference
    _require(run.positions() == reference.positions(), "every step has the same samples", launch)
    first = 2 * SAVE_EVERY + 1
    loss, expected = run.losses()[first], reference.losses()[first]
    difference = abs(loss - expected) / abs(expected)
    _require(difference <= _LOSS_TOLERANCE, f"the next loss differs by {difference:.1e}", launch)
    return Finding(
        recovery_seconds=None,
        held=f"weights and moments equal bit for bit, next loss to {difference:.0e}",
    )


def _resumes_bit_for_bit(bed: TestBed, run: DrilledRun, faulted: LaunchResult) -> float:
    """Resume the run and compare it; return the seconds from the fault to the next step."""
    _finishes(run.launch())
    _equals(bed, run, run.launches[-1])
    return _recovery(run, faulted)


def _recovery(run: DrilledRun, faulted: LaunchResult) -> float:
    assert faulted.injected_at is not None, "a recovery needs a fault"
    # A launcher may be gone before its ranks: steps that they still make are no recovery.
    since = run.launches[-1].started_at if len(run.launches) > 1 else faulted.injected_at
    return run.first_step_after(since) - faulted.injected_at


def _equals(bed: TestBed, run: DrilledRun, launch: LaunchResult) -> None:
    reference = bed.reference
    _require(run.losses() == reference.losses(), "the losses of all steps are equal", launch)
    _require(run.positions() == reference.positions(), "every sample is used once", launch)
    _require(
        run.state_digest() == reference.state_digest(), "every tensor at the end is equal", launch
    )


def _finishes(launch: LaunchResult) -> None:
    _require(launch.return_code == 0, f"the run ends with 0, not {launch.return_code}", launch)


def _require(holds: bool, claim: str, launch: LaunchResult | None = None) -> None:
    if not holds:
        end = f"\n{launch.log[-3000:]}" if launch is not None else ""
        raise DrillFailedError(f"not true: {claim}{end}")


def _lines_with(log: str, text: str) -> str:
    return "\n".join(line for line in log.splitlines() if text in line)


@contextmanager
def _silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return  # closed

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()
