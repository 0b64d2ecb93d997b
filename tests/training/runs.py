"""A tiny pretraining run on token shards of two code values, without tokenizers."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.checkpoint.reshard import load_resharded
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    TrainingConfig,
)
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.determinism import make_deterministic
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.resilience.members import gather_members
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.runs.phases import Phases
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.training.callbacks import Callbacks
from ernie_vilg.training.guards import RunGuard
from ernie_vilg.training.loop import Trainer
from ernie_vilg.training.metrics import PretrainFigures
from ernie_vilg.training.pretrain import pretrain
from ernie_vilg.training.replica_batches import ReplicaBatches
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, TEXT_VOCAB_SIZE, DataSet
from tests.data.token_shards import sequence_of

MODEL = ModelConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    text_vocab_size=64,
    text_length=3,
    codebook_size=64,
    image_grid_size=2,
)


def tiny_run(
    folder: Path, *, steps: int, save_every: int = 2, num_workers: int = 0, **layout: int
) -> PretrainConfig:
    return PretrainConfig(
        run_dir=str(folder / "run"),
        precision="fp32",
        model=MODEL,
        data=PretrainDataConfig(
            token_shards=str(folder / "shards"),
            text_tokenizer="",
            image_tokenizer="",
            shuffle_block_shards=2,
            loader=LoaderConfig(num_workers=num_workers),
        ),
        parallelism=ParallelismConfig(micro_batch_size=2, global_batch_size=8, **layout),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        training=TrainingConfig(steps=steps, log_every=1),
        # When a save in the background is committed depends on the machine.
        checkpoint=CheckpointConfig(every=save_every, asynchronous=False),
    )


class Recorder:
    """A tracker that keeps the exact losses."""

    def __init__(self) -> None:
        self.losses: dict[int, str] = {}

    def log(self, step: int, metrics: Any) -> None:
        self.losses[step] = float(metrics["loss"]).hex()

    def log_pictures(self, step: int, pictures: Any, captions: Any = None) -> None:
        raise AssertionError("the run has no callbacks")

    def go_back(self, step: int) -> None:
        raise AssertionError("nothing goes wrong")

    def close(self) -> None:
        pass


def start(launch: Launch, config: PretrainConfig, precision: torch.dtype) -> Engine:
    device = start_processes(launch, timeout_seconds=60)
    make_deterministic(device)
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    return build_engine(config, groups, precision)


def run_on(config: PretrainConfig, data: DataSet) -> PretrainConfig:
    """Return a run with the data set's shards and tokenizers, and a model of their sizes."""
    return replace(
        config,
        model=replace(
            config.model,
            text_vocab_size=TEXT_VOCAB_SIZE,
            text_length=12,
            codebook_size=CODEBOOK_SIZE,
            image_grid_size=GRID_SIZE,
        ),
        data=replace(
            config.data,
            token_shards=str(data.token_shards),
            text_tokenizer=str(data.text_tokenizer),
            image_tokenizer=str(data.image_tokenizer),
        ),
    )


def pretrain_here(launch: Launch, config: PretrainConfig) -> int:
    """Run the whole of `pretrain`, without callbacks; return its exit code."""
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    return pretrain(config, launch)


def checkpoints_of(
    config: PretrainConfig, engine: Engine, phases: Phases | None = None
) -> Checkpoints:
    """Return a run's checkpoints, which report their points to `phases`."""
    groups = engine.groups
    return Checkpoints(
        Path(config.run_dir),
        config.checkpoint,
        RunFacts(
            identity_at=lambda step: {"test": "identity"},
            data_at=lambda step: {"position": step},
            layout={
                "tensor_parallel_size": groups.tensor_size,
                "pipeline_parallel_size": groups.pipeline_size,
                "data_parallel_size": groups.data_size,
                "zero_stage": config.parallelism.zero_stage,
            },
            config_hash="",
        ),
        phases or Phases(),
        reshard=load_resharded,
    )


def die() -> None:
    """End as a killed process does, without closing anything."""
    raise Killed


def run(
    launch: Launch,
    config: PretrainConfig,
    precision: torch.dtype,
    stop_after: int | None = None,
    stop: Callable[[], None] = die,
) -> tuple[int, dict[int, str]]:
    """Train or go on; return the first step and the losses by step.

    Args:
        launch: this rank.
        config: the run.
        precision: of weights and activations.
        stop_after: steps made before `stop` is called.
        stop: what happens then.
    """
    engine = start(launch, config, precision)
    folder = Path(config.data.token_shards)
    manifest = read_manifest(folder, "token")
    batches: Any = ReplicaBatches(
        config,
        sequence_of(
            folder,
            manifest,
            config.model,
            seed=config.data.seed,
            shuffle_block_shards=config.data.shuffle_block_shards,
            loader=config.data.loader,
            with_pixels=config.model.reconstructor.is_end_to_end,
        ),
        engine.groups,
    )
    checkpoints = checkpoints_of(config, engine)
    first_step = checkpoints.restore(engine)
    recorder = Recorder()
    phases = Phases()
    stopping = Stopping(config.stopping, Path(config.run_dir), launch)
    with (
        contextlib.closing(batches),
        contextlib.suppress(Killed),
        Communication(engine.groups) as communication,
        instrument(engine, communication) as step_times,
    ):
        Trainer(
            config=config,
            engine=engine,
            figures=PretrainFigures(config),
            batches=batches if stop_after is None else StoppedBatches(batches, stop_after, stop),
            data_metrics=dict,
            num_samples=manifest.num_samples,
            checkpoints=checkpoints,
            guard=RunGuard(engine, config.guards),
            stopping=stopping,
            phases=phases,
            step_times=step_times,
            stragglers=Stragglers(config.watch, engine.groups, gather_members(engine.groups)),
            ledger=None,
            tracker=recorder,
            callbacks=Callbacks(
                config=config,
                engine=engine,
                callbacks=(),
                tracker=recorder,
                phases=phases,
                should_stop=lambda: False,
                group=dist.group.WORLD,
            ),
        ).train(first_step)
    return first_step, recorder.losses


def run_until_a_worker_dies(
    launch: Launch, config: PretrainConfig, precision: torch.dtype, step: int
) -> str:
    """Train, killing a data worker of the last rank before a step; return how the rank ends."""
    before = set(multiprocessing.active_children())

    def kill_worker() -> None:
        if launch.rank == launch.world_size - 1:
            workers = set(multiprocessing.active_children()) - before
            os.kill(max(worker.pid or 0 for worker in workers), signal.SIGKILL)

    try:
        run(launch, config, precision, stop_after=step, stop=kill_worker)
    except RuntimeError as error:
        return str(error)
    return "it went on to the end"


class Killed(Exception):  # noqa: N818, it stands for a signal
    """Stands for SIGKILL within one process."""


class StoppedBatches:
    """Batches before one of which something happens."""

    def __init__(self, batches: ReplicaBatches, last: int, stop: Callable[[], None]) -> None:
        self._batches = batches
        self._last = last
        self._stop = stop

    def at(self, step: int) -> Any:
        if step == self._last + 1:
            self._stop()
        return self._batches.at(step)
