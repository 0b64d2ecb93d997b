"""Identity of a run: the settings that a checkpoint and the run that resumes it must share."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from ernie_vilg.checkpoint.folder import START
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.preparation.data_order import order_identity
from ernie_vilg.preparation.lineage import Lineage


def identity(
    config: PretrainConfig,
    precision: torch.dtype,
    lineage: Lineage,
    step: int,
    *,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the identity of a run after a step, as JSON values.

    Args:
        config: the run.
        precision: data type of weights and activations.
        lineage: data sets and tokenizers of the run.
        step: the last step made, from 1; 0 before the first.
        start: record of the weights that the run started from; None: fresh ones.
    """
    model = json.loads(json.dumps(asdict(config.model)))  # as in the manifest: tuples are lists
    if not config.model.lora.rank:
        del model["lora"]  # older checkpoints have no key
    of_start = {} if start is None else {START: dict(start)}  # older checkpoints have no key
    return {
        "model": model,
        "lineage": {
            "text_tokenizer": lineage.text_tokenizer,
            "image_tokenizer": lineage.image_tokenizer,
        },
        "order": order_identity(config, lineage, step),
        "precision": str(precision).removeprefix("torch."),
        **of_start,
    }


def layout_identity(config: PretrainConfig, groups: Groups) -> dict[str, Any]:
    """Return the layout of a checkpoint's state over ranks, as JSON values.

    The optimizer's files hold one flat tensor per group of parameters, so other patterns are
    another layout. Other rates and decays of the same groups are not.
    """
    patterns = [[each.pattern, each.weight_decay is None] for each in config.optimizer.groups]
    return {
        **({"optimizer_groups": patterns} if patterns else {}),  # older checkpoints have no key
        "tensor_parallel_size": groups.tensor_size,
        "pipeline_parallel_size": groups.pipeline_size,
        "data_parallel_size": groups.data_size,
        "zero_stage": config.parallelism.zero_stage,
    }
