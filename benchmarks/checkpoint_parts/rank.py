"""One rank that trains on random tokens, saves, and times both.

Rank, world size and address come from the environment, as a launcher gives them. The leader of a
job that will be killed answers with each moment of its run.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.support.measurer import Result, Task, answer, tasks
from benchmarks.support.models import LEARNING_RATE, random_batch, random_run
from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import agree_max, barrier
from ernie_vilg.parallel.layout.groups import build_groups, machine_device, start_processes
from ernie_vilg.runs.phases import Phases
from launch.support.environment import read_launch

MODEL = ModelConfig(
    hidden_size=384,
    num_layers=6,
    num_heads=6,
    text_vocab_size=4096,
    text_length=16,
    codebook_size=1024,
    image_grid_size=4,
)
"""13.7 M parameters: 190 MB of bf16 weights, fp32 weights and two moments."""
SMALL_MODEL = replace(MODEL, hidden_size=96, num_layers=2)

PAIRS = 2
"""Pairs per rank and step."""
SAVES_PER_ROUND = 5
"""Number of saves in the background for each blocking one."""


@dataclass
class Trainer:
    """A rank that takes steps and saves."""

    engine: Engine
    """Engine of the model."""
    folder: Path
    """Folder of all runs."""
    step: int = 0
    """Number of steps taken."""

    def checkpoints(self, name: str, *, asynchronous: bool) -> Checkpoints:
        """Return the checkpoints of a run of its own."""
        return Checkpoints(
            self.folder / name,
            CheckpointConfig(every=1, keep=1, asynchronous=asynchronous),
            RunFacts(
                identity_at=lambda step: {},
                data_at=lambda step: {},
                layout={},
                config_hash="",
            ),
            Phases(),
        )

    def take_step(self) -> float:
        """Take a step; return its seconds."""
        started = time.monotonic()
        self.engine.train_batch([random_batch(MODEL, PAIRS, self.step)], LEARNING_RATE)
        self.step += 1
        return time.monotonic() - started


def start(folder: Path, *, is_small: bool) -> Trainer:
    """Join the other ranks and build the model."""
    launch = read_launch()
    layout = ParallelismConfig(micro_batch_size=PAIRS, global_batch_size=PAIRS * launch.world_size)
    config = random_run(SMALL_MODEL if is_small else MODEL, layout)
    torch.set_num_threads(1)
    device = start_processes(launch, timeout_seconds=300)
    engine = build_engine(config, build_groups(1, 1, device), torch.bfloat16)
    return Trainer(engine=engine, folder=folder)


def measure_saves(trainer: Trainer, rounds: int) -> Result:
    """Save in the background, blocking, and as DeepSpeed does, in turns."""
    background = trainer.checkpoints("background", asynchronous=True)
    blocking = trainer.checkpoints("blocking", asynchronous=False)
    found: Result = {name: [] for name in ("stalls", "stolen", "writes", "blocking", "deepspeed")}
    found |= {"steps": [], "steps_beside_a_save": []}
    for number in range(rounds + 1):
        kept = found if number else {name: [] for name in found}  # the first warms up
        kept["steps"] += [trainer.take_step() for _ in range(SAVES_PER_ROUND)]
        for _ in range(SAVES_PER_ROUND):
            seconds, stolen = _save_beside_training(trainer, background)
            kept["steps_beside_a_save"] += seconds
            report = background.last_save
            assert report is not None, "it was committed"
            kept["stalls"].append(report.stall_seconds)
            kept["stolen"].append(stolen)
            kept["writes"].append(report.write_seconds)
        kept["blocking"].append(_timed(lambda: blocking.save(trainer.engine, trainer.step)))
        kept["deepspeed"].append(_timed(lambda: _save_as_deepspeed(trainer)))
    report = background.last_save
    assert report is not None, "it was committed"
    return {**found, "bytes": report.bytes, "snapshot_bytes": report.snapshot_bytes}


def _save_beside_training(trainer: Trainer, checkpoints: Checkpoints) -> tuple[list[float], float]:
    """Save, and train until it is committed.

    Returns:
        the seconds of those steps; processor seconds that a hypervisor withheld from the machine
        while training was blocked.
    """
    trainer.take_step()
    barrier()
    before = stolen_seconds()
    checkpoints.save(trainer.engine, trainer.step)
    stolen = stolen_seconds() - before
    seconds = []
    while any(agree_max([checkpoints.is_writing])):
        seconds.append(trainer.take_step())
    before = stolen_seconds()
    checkpoints.commit_written()
    return seconds, stolen + stolen_seconds() - before


def stolen_seconds() -> float:
    """Return the processor seconds since boot that a hypervisor gave to other machines.

    This machine could not run in them. Source: proc(5), "steal".
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _save_as_deepspeed(trainer: Trainer) -> None:
    engine = trainer.engine.deepspeed_engine
    engine.save_checkpoint(str(trainer.folder / "deepspeed"), tag="it", save_latest=False)


def _timed(action: Callable[[], None]) -> float:
    barrier()
    started = time.monotonic()
    action()
    barrier()
    return time.monotonic() - started


def run_until_killed(trainer: Trainer) -> None:
    """Continue a run, step after step, until another process ends this one."""
    checkpoints = trainer.checkpoints("killed", asynchronous=True)
    trainer.step = checkpoints.restore(trainer.engine)
    note("restored")
    while True:
        trainer.take_step()
        note("stepped")
        if not any(agree_max([checkpoints.is_writing])):
            checkpoints.commit_written()
        if trainer.step % 10 == 0:
            checkpoints.save(trainer.engine, trainer.step)


def note(name: str) -> None:
    """Answer with a moment of the leader's run."""
    if os.environ["RANK"] == "0":
        answer({"name": name, "at": time.monotonic()})


def do(task: Task) -> None:
    """Make the measurement of a task and answer."""
    is_killed = task["measure"] == "killed"
    if is_killed:
        note("imported")
    assert machine_device(read_launch()).type == "cpu", "the figures are for a CPU"
    trainer = start(Path(task["folder"]), is_small=task["is_small"])
    if is_killed:
        note("built")
        run_until_killed(trainer)
    found = measure_saves(trainer, task["rounds"])
    barrier()
    answer(found)


def main() -> None:
    """Do tasks."""
    for task in tasks():
        do(task)


if __name__ == "__main__":
    main()
