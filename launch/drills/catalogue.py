"""Every drill: a fault, and what must hold afterwards.

Most hold a run that was struck, and started again by the same command, against one that never was:
the losses of all steps and every tensor of the last checkpoint must be equal, bit for bit.

Source: ours; the faults are those that large runs report (OPT-175B's logbook, BLOOM's chronicles,
Llama 3, arXiv:2407.21783, section 3.3.4).
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

from ernie_vilg.checkpoint.folder import committed_checkpoints
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.skipped_updates import read_skips
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder, step_name
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.drills.faults import Fault
from launch.drills.grounds import SAVE_EVERY, STEPS, Data
from launch.drills.runs import DrilledRun, Launch

_LOSS_TOLERANCE = 1e-6
_LATE_STEP = SAVE_EVERY + 2


class DrillFailedError(Exception):
    """What should have held did not."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a passed drill found."""

    recovery_seconds: float | None
    """From the fault to the first step after it; None where nothing was lost."""
    held: str
    """What was asserted, in words."""


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """Where the drills happen."""

    folder: Path
    """Of all drills."""
    config: PretrainConfig
    """The scaled-down run."""
    data: Data
    """What it reads."""
    num_ranks: int
    """Of every launch."""
    reference: DrilledRun
    """The run that nothing happens to."""

    def run(self, name: str, **changes: object) -> DrilledRun:
        """Return a fresh run, with other settings where given."""
        folder = self.folder / name
        config = replace(self.config, run_dir=str(folder / "run"), **changes)  # type: ignore[arg-type]
        return DrilledRun(folder=folder, config=config, num_ranks=self.num_ranks)

    def copy(self, name: str, last_step: int, **changes: object) -> DrilledRun:
        """Return the undisturbed run as it was when a checkpoint was its newest."""
        run = self.run(name, **changes)
        shutil.copytree(self.reference.run_dir, run.run_dir)
        last = RunFolder(run.run_dir).checkpoint(last_step)
        for checkpoint in committed_checkpoints(run.run_dir):
            if checkpoint > last:  # names end in the step, with zeros before it
                shutil.rmtree(checkpoint)
        return run


Drill = Callable[[Grounds, str], Finding]
"""(the grounds, the drill's name) to what was found."""


def build_reference(folder: Path, config: PretrainConfig, num_ranks: int) -> DrilledRun:
    """Train the run that nothing happens to.

    Raises:
        DrillFailedError: it does not even train undisturbed.
    """
    config = replace(config, run_dir=str(folder / "run"))
    run = DrilledRun(folder=folder, config=config, num_ranks=num_ranks)
    _finishes(run.launch())
    _require(sorted(run.losses()) == list(range(1, STEPS + 1)), "every step has a loss")
    return run


def catalogue() -> dict[str, Drill]:
    """Return every drill by its name, in order."""
    last = partial(Fault, rank=1)
    return {
        "sigterm_warm_up": partial(_stopped, fault=_sigterm(Phase.START)),
        "sigterm_step": partial(_stopped, fault=_sigterm(Phase.STEP, step=_LATE_STEP)),
        "sigterm_evaluation": partial(_stopped, fault=_sigterm(Phase.DRAW)),
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


def _stopped(grounds: Grounds, name: str, fault: Fault) -> Finding:
    """A SIGTERM to the launcher: every rank stops at the same step, with a checkpoint."""
    run = grounds.run(name)
    launch = run.launch(fault)
    _require(launch.struck_at is not None, "the signal was sent", launch)
    _require(launch.return_code != 0, "the exit code says that it is not done", launch)
    stopped = run.stopped()
    _require("reason" in stopped, "stopped.json says why it stopped", launch)
    step = run.newest_step()
    _require(stopped["step"] == step, "the checkpoint is of the step it stopped at", launch)
    _require(launch.num_orphans == 0, "no process is left", launch)
    recovery = _goes_on_as_if_nothing_had_happened(grounds, run, launch)
    return Finding(
        recovery_seconds=recovery, held=f"saved at step {step}, resumed bit for bit, none left"
    )


def _killed(grounds: Grounds, name: str, fault: Fault) -> Finding:
    """A SIGKILL: the others end, and the same command goes on from the last checkpoint."""
    run = grounds.run(name)
    launch = run.launch(fault)
    _require(launch.struck_at is not None, "the signal was sent", launch)
    _require(launch.num_orphans == 0, "no process is left", launch)
    recovery = _goes_on_as_if_nothing_had_happened(grounds, run, launch)
    return Finding(recovery_seconds=recovery, held="resumed bit for bit, none left")


def _frozen(grounds: Grounds, name: str) -> Finding:
    """A SIGSTOP: the watchdog of the others says who it is, and ends the run."""
    run = grounds.run(name)
    launch = run.launch(
        Fault(kind="signal", rank=1, phase=Phase.STEP, step=_LATE_STEP, signal_name="SIGSTOP")
    )
    report = run.report("hang")
    _require("rank 1" in report, "the report names rank 1", launch)
    _require("stopped by a signal" in report, "the report says what it is", launch)
    recovery = _goes_on_as_if_nothing_had_happened(grounds, run, launch)
    return Finding(recovery_seconds=recovery, held="rank 1 named, resumed bit for bit")


def _slow(grounds: Grounds, name: str) -> Finding:
    """A rank that takes longer is named, and changes nothing else."""
    run = grounds.run(name)
    launch = run.launch(Fault(kind="sleep", rank=1, phase=Phase.STEP, step=2, seconds=0.7))
    _finishes(launch)
    _require(
        "rank 1" in _lines_with(launch.log, "all others wait for it"),
        "the log names rank 1",
        launch,
    )
    _equals(grounds, run, launch)
    return Finding(recovery_seconds=None, held="rank 1 named, the run equal bit for bit")


def _nan(grounds: Grounds, name: str) -> Finding:
    """A NaN in a gradient of one rank: all skip the update, and write down its samples."""
    run = grounds.run(name)
    launch = run.launch(Fault(kind="nan_gradient", rank=1, phase=Phase.STEP, step=_LATE_STEP))
    _finishes(launch)
    skips = read_skips(run.run_dir)
    _require(
        any(skip.step == _LATE_STEP + 1 and skip.samples for skip in skips),
        "the ledger names the step and its samples",
        launch,
    )
    losses, reference = run.losses(), grounds.reference.losses()
    before = range(1, _LATE_STEP + 1)
    _require(
        all(losses[step] == reference[step] for step in before), "steps before are equal", launch
    )
    _require(losses[STEPS] != reference[STEPS], "the update was left out", launch)
    _require(losses[STEPS] is not None, "the loss is a number again", launch)
    return Finding(recovery_seconds=None, held="the update skipped by all, its samples recorded")


def _one_ulp(grounds: Grounds, name: str) -> Finding:
    """One bit of one weight on one rank: found, named, and taken back."""
    run = grounds.run(name)
    launch = run.launch(Fault(kind="one_ulp", rank=1, phase=Phase.CHECK, step=_LATE_STEP))
    _finishes(launch)
    _require("rank 1" in _lines_with(launch.log, "differ"), "the log names the rank", launch)
    _equals(grounds, run, launch)
    recovery = _recovery(run, launch)
    return Finding(recovery_seconds=recovery, held="found at once, rank named, equal bit for bit")


def _truncated_shard(grounds: Grounds, name: str) -> Finding:
    """A shard that lost its end: the run stops and names it; mended, it goes on."""
    run = grounds.run(name)
    shards = run.folder / "token_shards"
    shutil.copytree(grounds.data.token_shards, shards)
    run.config = replace(run.config, data=replace(run.config.data, token_shards=str(shards)))
    damaged = shards / read_manifest(shards, "token").shards[0].file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    launch = run.launch()
    _require(launch.return_code != 0, "the run stops", launch)
    _require(damaged.name in launch.log, f"the log names {damaged.name}", launch)
    damaged.write_bytes(whole)
    _finishes(run.launch())
    _equals(grounds, run, run.launches[-1])
    return Finding(recovery_seconds=None, held=f"{damaged.name} named, then equal bit for bit")


def _half_written(grounds: Grounds, name: str) -> Finding:
    """A checkpoint of which only the first half of a file is there is not loaded."""
    return _damaged_checkpoint(grounds, name, lambda content: content[: len(content) // 2])


def _flipped_bit(grounds: Grounds, name: str) -> Finding:
    """A checkpoint in which one bit is another is not loaded."""

    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[random.Random(0).randrange(len(content))] ^= 1
        return bytes(changed)

    return _damaged_checkpoint(grounds, name, flip)


def _damaged_checkpoint(grounds: Grounds, name: str, damage: Callable[[bytes], bytes]) -> Finding:
    run = grounds.copy(name, last_step=2 * SAVE_EVERY)
    file = next(path for path in sorted(run.newest().rglob("*.pt")) if "optim" in path.name)
    file.write_bytes(damage(file.read_bytes()))
    launch = run.launch()
    _finishes(launch)
    _require(file.name in launch.log, f"the log names {file.name}", launch)
    _require(
        step_name(SAVE_EVERY) in _lines_with(launch.log, "resumed"),
        "it goes on from the checkpoint before",
        launch,
    )
    _equals(grounds, run, launch)
    return Finding(recovery_seconds=None, held=f"{file.name} refused, the one before it used")


def _disk_full(grounds: Grounds, name: str) -> Finding:
    """A save that finds no room: the last checkpoint stands, and training goes on."""
    run = grounds.run(name)
    fault = Fault(kind="file_limit", rank=0, phase=Phase.SAVE, step=SAVE_EVERY, limit_bytes=1 << 16)
    launch = run.launch(fault)
    _finishes(launch)
    _require("File too large" in launch.log, "the log says why a save failed", launch)
    missing = RunFolder(run.run_dir).checkpoint(SAVE_EVERY)
    _require(not missing.exists(), "nothing of it has a checkpoint's name", launch)
    _equals(grounds, run, launch)
    return Finding(recovery_seconds=None, held="the save refused, the run equal bit for bit")


def _black_hole(grounds: Grounds, name: str) -> Finding:
    """A W&B server that takes connections and never answers."""
    run = grounds.run(
        name, tracking=replace(grounds.config.tracking, wandb_mode="online", finish_seconds=2.0)
    )
    with _silent_server() as address:
        launch = run.launch(environment={"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40})
    _finishes(launch)
    _equals(grounds, run, launch)
    return Finding(recovery_seconds=None, held="every metric written, the run equal bit for bit")


def _resharded(
    grounds: Grounds, name: str, tensor: int, pipeline: int, num_ranks: int | None = None
) -> Finding:
    """Another layout: weights and moments the same bits, samples the same, losses nearly."""
    layout = replace(
        grounds.config.parallelism,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        zero_stage=1 if pipeline > 1 else grounds.config.parallelism.zero_stage,
        sequence_parallel=False,
        micro_batch_size=2,
    )
    run = grounds.copy(name, last_step=2 * SAVE_EVERY, parallelism=layout)
    launch = run.launch(num_ranks=num_ranks)
    _finishes(launch)
    _require(
        "as they were, bit for bit" in launch.log,
        "weights and moments were held against the checkpoint",
        launch,
    )
    reference = grounds.reference
    _require(run.positions() == reference.positions(), "every step has the same samples", launch)
    first = 2 * SAVE_EVERY + 1
    loss, expected = run.losses()[first], reference.losses()[first]
    difference = abs(loss - expected) / abs(expected)
    _require(difference <= _LOSS_TOLERANCE, f"the next loss differs by {difference:.1e}", launch)
    return Finding(
        recovery_seconds=None,
        held=f"weights and moments equal bit for bit, next loss to {difference:.0e}",
    )


def _goes_on_as_if_nothing_had_happened(grounds: Grounds, run: DrilledRun, struck: Launch) -> float:
    """Start the run again; return the seconds from the fault to the next step."""
    _finishes(run.launch())
    _equals(grounds, run, run.launches[-1])
    return _recovery(run, struck)


def _recovery(run: DrilledRun, struck: Launch) -> float:
    assert struck.struck_at is not None, "only faults are recovered from"
    # A launcher may be gone before its ranks: what they still do is no recovery.
    since = run.launches[-1].started_at if len(run.launches) > 1 else struck.struck_at
    return run.first_step_after(since) - struck.struck_at


def _equals(grounds: Grounds, run: DrilledRun, launch: Launch) -> None:
    reference = grounds.reference
    _require(run.losses() == reference.losses(), "the losses of all steps are equal", launch)
    _require(run.positions() == reference.positions(), "every sample is used once", launch)
    _require(
        run.state_digest() == reference.state_digest(), "every tensor at the end is equal", launch
    )


def _finishes(launch: Launch) -> None:
    _require(launch.return_code == 0, f"the run ends with 0, not {launch.return_code}", launch)


def _require(holds: bool, claim: str, launch: Launch | None = None) -> None:
    if not holds:
        end = f"\n{launch.log[-3000:]}" if launch is not None else ""
        raise DrillFailedError(f"it does not hold that {claim}{end}")


def _lines_with(log: str, word: str) -> str:
    return "\n".join(line for line in log.splitlines() if word in line)


@contextmanager
def _silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and says nothing."""
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
