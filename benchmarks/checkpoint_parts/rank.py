"""One rank that trains on random tokens, saves, and times both.

    python -m benchmarks.checkpoint_parts.rank TASK.json RESULT.json

Rank, world size and address come from the environment, as a launcher gives them. The leader writes
the result; a rank that is to be killed writes each moment as a line of its own.

Source: ours.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import agree_max, barrier
from ernie_vilg.parallel.layout.groups import build_groups, machine_device, start_processes
from ernie_vilg.runs.phases import Phases
from ernie_vilg.storage.json_files import read_json
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
"""Per rank and step."""
LEARNING_RATE = 1e-4
SAVES_PER_ROUND = 5
"""In the background, for each blocking one."""

Result = dict[str, Any]


@dataclass
class Trainer:
    """A rank that takes steps and saves."""

    engine: Engine
    """The model."""
    folder: Path
    """Of all runs."""
    step: int = 0
    """Steps taken."""

    def checkpoints(self, name: str, *, asynchronous: bool) -> Checkpoints:
        """Return the checkpoints of a run of its own."""
        return Checkpoints(
            self.folder / name,
            CheckpointConfig(every=1, keep=1, asynchronous=asynchronous),
            identity_at=lambda step: {},
            data_at=lambda step: {},
            layout={},
            config_hash="",
            phases=Phases(),
        )

    def take_step(self) -> float:
        """Take a step; return its seconds."""
        started = time.monotonic()
        generator = torch.Generator().manual_seed(self.step)
        text_shape, code_shape = (PAIRS, MODEL.text_length), (PAIRS, MODEL.image_grid_size**2)
        text = torch.randint(4, MODEL.text_vocab_size, text_shape, generator=generator)
        codes = torch.randint(0, MODEL.codebook_size, code_shape, generator=generator)
        self.engine.train_batch([Batch(text=text, codes=codes)], LEARNING_RATE)
        self.step += 1
        return time.monotonic() - started


def start(folder: Path, *, is_small: bool) -> Trainer:
    """Join the other ranks and build the model."""
    launch = read_launch()
    config = PretrainConfig(
        run_dir=str(folder),
        model=SMALL_MODEL if is_small else MODEL,
        data=PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
        parallelism=ParallelismConfig(
            micro_batch_size=PAIRS, global_batch_size=PAIRS * launch.world_size
        ),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0),
        training=TrainingConfig(steps=1),
        checkpoint=CheckpointConfig(every=1),
    )
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
        the seconds of those steps; processor seconds that the machine was not given while
        training stood still.
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

    In them this machine stood still, whatever it was doing. Source: proc(5), "steal".
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _save_as_deepspeed(trainer: Trainer) -> None:
    engine = trainer.engine.deepspeed_engine
    engine.save_checkpoint(str(trainer.folder / "deepspeed"), tag="it", save_latest=False)


def _timed(action: Any) -> float:
    barrier()
    started = time.monotonic()
    action()
    barrier()
    return time.monotonic() - started


def run_until_killed(trainer: Trainer, note: Any) -> None:
    """Go on with a run, step after step, until somebody ends it."""
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


def main() -> None:
    """Do what the task says."""
    task, result = read_json(Path(sys.argv[1])), Path(sys.argv[2])
    moments = result.with_suffix(f".rank-{os.environ['RANK']}")

    def note(name: str) -> None:
        with moments.open("a") as file:
            file.write(f"{name} {time.monotonic()}\n")

    note("imported")
    assert machine_device(read_launch()).type == "cpu", "the figures are for a CPU"
    trainer = start(Path(task["folder"]), is_small=task["is_small"])
    note("built")
    if task["measure"] == "killed":
        run_until_killed(trainer, note)
    found = measure_saves(trainer, task["rounds"])
    barrier()
    if trainer.engine.groups.rank == 0:
        shutil.rmtree(trainer.folder)
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
