"""Presets of conf/, and runs and batches of random tokens for the real engine."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS

LEARNING_RATE = 1e-4
"""Learning rate of runs on random tokens."""
_CONF = Path(__file__).resolve().parents[2] / "conf"


def read_model(name: str, **changes: Any) -> ModelConfig:
    """Return a preset of conf/model, with some of its settings changed."""
    return ModelConfig(**{**OmegaConf.load(_CONF / f"model/{name}.yaml"), **changes})


def read_gpu(name: str) -> GpuConfig:
    """Return a preset of conf/gpu."""
    return GpuConfig(**OmegaConf.load(_CONF / f"gpu/{name}.yaml"))


def random_run(model: ModelConfig, layout: ParallelismConfig, **settings: Any) -> PretrainConfig:
    """Return the settings of a run on random tokens, which reads and writes nothing.

    Args:
        model: its shape.
        layout: its layout.
        settings: other fields of `PretrainConfig`.
    """
    return PretrainConfig(
        **{
            "run_dir": "unused",
            "model": model,
            "data": PretrainDataConfig(token_shards="", text_tokenizer="", image_tokenizer=""),
            "parallelism": layout,
            "optimizer": OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0),
            "training": TrainingConfig(steps=1),
            "checkpoint": CheckpointConfig(every=1),
            **settings,
        }
    )


def random_batch(model: ModelConfig, pairs: int, seed: int) -> Batch:
    """Return pairs of random tokens, without padding, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    text, codes = (pairs, model.text_length), (pairs, model.num_image_tokens)
    return Batch(
        text=torch.randint(NUM_SPECIAL_IDS, model.text_vocab_size, text, generator=generator),
        codes=torch.randint(model.codebook_size, codes, generator=generator),
    )
