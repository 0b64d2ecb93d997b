"""The run that is drilled: a user's own, small enough to be killed many times.

Model and batch shrink; what the user chose about features, layout, ZeRO, checkpoints and guards
stays, as far as the ranks of the drill allow. It trains on a copy of the first of the user's own
shards, where they are on this machine, and else on pairs made here.

Source: ours.
"""

import json
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from data_pipelines.build import build_image_shards
from data_pipelines.encode import encode_image_shards
from data_pipelines.shapes import all_scenes, caption_of, draw_scene
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.drill import DrillConfig
from ernie_vilg.config.health import HealthConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, SamplesConfig
from ernie_vilg.config.shards import BuildShardsConfig, EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.locations import is_remote
from ernie_vilg.manifest import read_manifest, write_manifest
from ernie_vilg.text_tokenizer import TextTokenizer, train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer

STEPS = 12
SAVE_EVERY = 4
SAMPLES_EVERY = 6

_NUM_PAIRS = 64
_SAMPLES_PER_SHARD = 16
_MOST_SHARDS = 3
_HEADS = 2


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the drilled runs read."""

    token_shards: Path
    text_tokenizer: Path
    image_tokenizer: Path
    pairs: Path
    is_own: bool
    """Whether it is a copy of the user's."""


def prepare(config: DrillConfig, folder: Path) -> tuple[PretrainConfig, Data]:
    """Return the scaled-down run, and what it reads, which is written below a folder.

    Args:
        config: the user's run.
        folder: is made.
    """
    has_own = _is_here(config)
    data = _copy_own(config, folder) if has_own else _make_up(folder)
    return _scaled_down(config, data), data


def _is_here(config: DrillConfig) -> bool:
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
    """Copy the first of the user's shards: a drill damages what it reads."""
    assert config.data.token_shards is not None
    source, target = Path(config.data.token_shards), folder / "token_shards"
    target.mkdir(parents=True)
    manifest = read_manifest(source, "token")
    shards = manifest.shards[:_MOST_SHARDS]
    for shard in shards:
        shutil.copyfile(source / shard.file, target / shard.file)
    write_manifest(target, replace(manifest, shards=shards))
    pairs = config.samples.pairs
    return Data(
        token_shards=target,
        text_tokenizer=Path(config.data.text_tokenizer).resolve(),
        image_tokenizer=Path(config.data.image_tokenizer).resolve(),
        pairs=Path(pairs).resolve()
        if pairs is not None and Path(pairs).is_dir()
        else _draw_pairs(folder / "pairs"),
        is_own=True,
    )


def _make_up(folder: Path) -> Data:
    """Draw scenes, and encode them with tokenizers that have seen nothing else."""
    data = Data(
        token_shards=folder / "token_shards",
        text_tokenizer=folder / "text_tokenizer",
        image_tokenizer=folder / "image_tokenizer",
        pairs=_draw_pairs(folder / "pairs"),
        is_own=False,
    )
    lines = (data.pairs / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    settings = TrainTextTokenizerConfig(
        shards="", output_dir=str(data.text_tokenizer), vocab_size=320, model_type="bpe"
    )
    captions = [json.loads(line)["caption"] for line in lines]
    write_text_tokenizer(data.text_tokenizer, train_text_tokenizer(captions, settings), {})
    save_image_tokenizer(_untrained_image_tokenizer(), data.image_tokenizer)
    images = folder / "image_shards"
    build_image_shards(
        BuildShardsConfig(
            source=str(data.pairs),
            output_dir=str(images),
            image_size=64,
            samples_per_shard=_SAMPLES_PER_SHARD,
            num_workers=1,
        )
    )
    encode_image_shards(
        EncodeShardsConfig(
            shards=str(images),
            text_tokenizer_dir=str(data.text_tokenizer),
            image_tokenizer_dir=str(data.image_tokenizer),
            output_dir=str(data.token_shards),
            num_workers=1,
        )
    )
    return data


def _draw_pairs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for index, scene in enumerate(list(all_scenes())[-_NUM_PAIRS:]):
        draw_scene(scene).save(folder / f"{index}.png")
        line = {"image": f"{index}.png", "caption": caption_of(scene)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _untrained_image_tokenizer() -> VQGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQGAN(
            ImageTokenizerConfig(
                image_size=64,
                codebook_size=16,
                embedding_size=4,
                base_channels=8,
                channel_multipliers=(1,),
                num_residual_blocks=0,
                patch_size=16,
                normalization="none",
            )
        )


def _scaled_down(config: DrillConfig, data: Data) -> PretrainConfig:
    own = {field.name: getattr(config, field.name) for field in fields(PretrainConfig)}
    layout = _layout(config)
    own |= {
        "precision": "fp32",  # so that layouts can be held against each other
        "compile_blocks": False,
        "model": _small_model(config.model, data, layout.pipeline_parallel_size),
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
        "optimizer": replace(config.optimizer, warmup_steps=2),
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


def _small_model(model: ModelConfig, data: Data, num_stages: int) -> ModelConfig:
    small = replace(model, hidden_size=32 * _HEADS, num_heads=_HEADS, num_layers=2 * num_stages)
    if data.is_own:
        return small
    tokenizer = TextTokenizer.load(data.text_tokenizer)
    return replace(
        small,
        text_vocab_size=(tokenizer.vocab_size + 7) // 8 * 8,
        text_length=16,
        codebook_size=16,
        image_grid_size=4,
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
