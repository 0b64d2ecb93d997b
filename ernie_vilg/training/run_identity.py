"""What makes a run this run: what a checkpoint and whoever resumes it must share.

Source: ours.
"""

import json
from dataclasses import asdict
from typing import Any

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.training.data_order import order_identity
from ernie_vilg.training.lineage import Lineage


def identity(
    config: PretrainConfig, precision: torch.dtype, lineage: Lineage, step: int
) -> dict[str, Any]:
    """Return what a checkpoint of a step and the run that resumes it must share, as JSON values.

    Args:
        config: the run.
        precision: of weights and activations.
        lineage: what it is trained on.
        step: steps made.
    """
    return {
        # As the manifest gives it back: JSON makes lists of tuples.
        "model": json.loads(json.dumps(asdict(config.model))),
        "lineage": {
            "text_tokenizer": lineage.text_tokenizer,
            "image_tokenizer": lineage.image_tokenizer,
        },
        "order": order_identity(config, lineage, step),
        "precision": str(precision).removeprefix("torch."),
    }


def layout_identity(config: PretrainConfig, groups: Groups) -> dict[str, int]:
    """Return how a checkpoint's state is spread over ranks, as JSON values."""
    return {
        "tensor_parallel_size": groups.tensor_size,
        "pipeline_parallel_size": groups.pipeline_size,
        "data_parallel_size": groups.data_size,
        "zero_stage": config.parallelism.zero_stage,
    }
