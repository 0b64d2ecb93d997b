"""The test bed of the drills: the user's run, scaled down so that it can be killed many times.

Model and batch shrink. The user's features, layout, ZeRO, checkpoints and guards stay as far as the
drill's ranks allow. The run trains on a copy of the user's first shards if they are on this
machine, and else on drawn pairs.
"""

import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ernie_vilg.checkpoint.folder import committed_checkpoints
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.drill import DrillConfig
from ernie_vilg.config.health import HealthConfig
from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, SamplesConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.model.parameter_groups import matching_groups
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.locations import is_remote
from ernie_vilg.storage.shard_manifest import (
    CAPTION_LENGTHS,
    NUM_CAPTIONS,
    read_manifest,
    write_manifest,
)
from launch.drills.data_set import (
    CODEBOOK_SIZE,
    GRID_SIZE,
    TEXT_VOCAB_SIZE,
    DataSet,
    make_data_set,
    write_pairs,
)
from launch.drills.runs import DrilledRun

STEPS = 12
WARMUP_STEPS = 2
SAVE_EVERY = 4
SAMPLES_EVERY = 6

_NUM_PAIRS = 64
_MOST_SHARDS = 3
_HEADS = 2


@dataclass(frozen=True, kw_only=True)
class Data(DataSet):
    """Data of the drilled runs."""

    is_own: bool
    """Whether the data is a copy of the user's."""


@dataclass(frozen=True, kw_only=True)
class TestBed:
    """Everything that a drill needs."""

    folder: Path
    """Folder of all drills."""
    config: PretrainConfig
    """Scaled-down settings."""
    data: Data
    """Data of the runs."""
    num_ranks: int
    """Ranks of every launch."""
    reference: DrilledRun
    """Undisturbed run."""

    def run(self, name: str, **changes: object) -> DrilledRun:
        """Return a fresh run, with some settings changed."""
        folder = self.folder / name
        config = replace(self.config, run_dir=str(folder / "run"), **changes)  # type: ignore[arg-type]
        return DrilledRun(folder=folder, config=config, num_ranks=self.num_ranks)

    def copy(self, name: str, last_step: int, **changes: object) -> DrilledRun:
        """Return a copy of the undisturbed run without the checkpoints after a step."""
        run = self.run(name, **changes)
        shutil.copytree(self.reference.run_dir, run.run_dir)
        last = RunFolder(run.run_dir).checkpoint(last_step)
        for checkpoint in committed_checkpoints(run.run_dir):
            if checkpoint > last:  # names end in the step, with zeros before it
                shutil.rmtree(checkpoint)
        return run


def prepare(config: DrillConfig, folder: Path) -> tuple[PretrainConfig, Data]:
    """Scale the user's run down, and write the data it reads.

    Args:
        config: the user's settings.
        folder: folder to write the data to.
    """
    has_own = _has_data(config)
    data = _copy_own(config, folder) if has_own else _draw_data(folder)
    return _scaled_down(config, data), data


def _has_data(config: DrillConfig) -> bool:
    shards = config.data.token_shards
    return (
        shards is not None
        and not is_remote(shards)
        and all(
            Path(place).is_dir()
            for place in (shards, config.data.text_tokenizer, config.data.image_tokenizer)
        )
    )


def _copy_own(config: DrillConfig, folder: Path) -> Data:
    """Copy the user's first shards, since drills damage them."""
    assert config.data.token_shards is not None
    source, target = Path(config.data.token_shards), folder / "token_shards"
    target.mkdir(parents=True)
    manifest = read_manifest(source, "token")
    shards = manifest.shards[:_MOST_SHARDS]
    for stored in (stored for shard in shards for stored in shard.files):
        shutil.copyfile(source / stored.file, target / stored.file)
    settings = dict(manifest.settings)
    if len(shards) < len(manifest.shards):
        for name in (CAPTION_LENGTHS, NUM_CAPTIONS):
            settings.pop(name, None)  # they count the captions of all shards
    write_manifest(target, replace(manifest, shards=shards, settings=settings))
    pairs = Path(config.samples.pairs or "")
    if not config.samples.pairs or not pairs.is_dir():
        pairs = folder / "pairs"
        write_pairs(pairs, _NUM_PAIRS)
    return Data(
        token_shards=target,
        text_tokenizer=Path(config.data.text_tokenizer).resolve(),
        image_tokenizer=Path(config.data.image_tokenizer).resolve(),
        pairs=pairs.resolve(),
        is_own=True,
    )


def _draw_data(folder: Path) -> Data:
    made = make_data_set(folder, num_pairs=_NUM_PAIRS)
    return Data(**vars(made), is_own=False)


def _scaled_down(config: DrillConfig, data: Data) -> PretrainConfig:
    own = {field.name: getattr(config, field.name) for field in fields(PretrainConfig)}
    layout = _layout(config)
    model = _small_model(config.model, data, layout.pipeline_parallel_size)
    own |= {
        "precision": "fp32",  # so that layouts can be compared
        "compile_blocks": False,
        "model": model,
        "parallelism": layout,
        "data": replace(
            config.data,
            token_shards=str(data.token_shards),
            mixture={},
            weigh_by="samples",
            mixture_changes=(),
            text_tokenizer=str(data.text_tokenizer),
            image_tokenizer=str(data.image_tokenizer),
            loader=replace(config.data.loader, cache_dir=None),
        ),
        "optimizer": _small_optimizer(config.optimizer, model),
        "training": replace(config.training, steps=STEPS, log_every=1),
        "checkpoint": CheckpointConfig(
            every=SAVE_EVERY, keep=3, asynchronous=config.checkpoint.asynchronous
        ),
        "samples": SamplesConfig(every=SAMPLES_EVERY, pairs=str(data.pairs), count=2),
        "health": HealthConfig(),
        "tracking": TrackingConfig(wandb_mode="disabled"),
        "stopping": replace(config.stopping, max_hours=None, requeue=False),
        "watch": replace(config.watch, step_timeout_seconds=20.0, heartbeat_seconds=0.5),
        "cluster": replace(config.cluster, collective_timeout_seconds=60),
        "guards": replace(config.guards, replica_check_every=1),
    }
    return PretrainConfig(**own)


def _small_optimizer(config: OptimizerConfig, model: ModelConfig) -> OptimizerConfig:
    """Shorten the schedule, and keep the groups that the small model has parameters for."""
    decay_steps = config.decay_steps
    return replace(
        config,
        warmup_steps=WARMUP_STEPS,
        decay_steps=None if decay_steps is None else min(decay_steps, STEPS - WARMUP_STEPS),
        groups=matching_groups(model, config),
    )


def _small_model(model: ModelConfig, data: Data, num_stages: int) -> ModelConfig:
    small = replace(model, hidden_size=32 * _HEADS, num_heads=_HEADS, num_layers=2 * num_stages)
    if data.is_own:
        return small
    return replace(
        small,
        text_vocab_size=TEXT_VOCAB_SIZE,
        text_length=16,
        codebook_size=CODEBOOK_SIZE,
        image_grid_size=GRID_SIZE,
        reconstructor=ReconstructorConfig(),
    )


def _layout(config: DrillConfig) -> ParallelismConfig:
    layout = config.parallelism
    stages = min(layout.pipeline_parallel_size, config.num_ranks)
    tensor = min(layout.tensor_parallel_size, config.num_ranks // stages)
    return replace(
        layout,
        pipeline_parallel_size=stages,
        tensor_parallel_size=tensor,
        sequence_parallel=layout.sequence_parallel and tensor > 1,
        micro_batch_size=2,
        global_batch_size=4 * config.num_ranks,
    )
