"""The configurations whose step is measured."""

from dataclasses import replace

import torch

from benchmarks.support.measurer import Result
from benchmarks.train_step_parts.device import model_shape
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.transformer import num_parameters

BYTES_PER_PARAMETER = 22
"""Bytes of weight, gradient, its fp32 sum, fp32 weight and two moments, with a margin."""
BYTES_PER_ACTIVATION = {"none": 36, "selective": 26, "full": 4}
"""Approximate bytes kept per layer, token and unit of hidden_size, in bf16."""


def layers_that_fit(config: ModelConfig, checkpointing: str, micro_batch: int) -> int:
    """Return the number of the model's layers that fit this GPU."""
    free, _ = torch.cuda.mem_get_info()
    layer = num_parameters(replace(config, num_layers=2)) - num_parameters(
        replace(config, num_layers=1)
    )
    outside = num_parameters(replace(config, num_layers=1)) - layer
    tokens = 2 * micro_batch * config.seq_length
    per_layer = (
        layer * BYTES_PER_PARAMETER
        + tokens * config.hidden_size * BYTES_PER_ACTIVATION[checkpointing]
    )
    logits = 12 * micro_batch * config.num_image_tokens * config.codebook_size
    rest = outside * BYTES_PER_PARAMETER + logits + (4 << 30)
    return max(1, min(config.num_layers, int((0.95 * free - rest) / per_layer)))


def step_rows(device: str, *, quick: bool) -> list[Result]:
    """Return the configurations, the most informative first."""
    usual: Result = {
        "layers": 6 if device == "cuda" else 4,
        "attention": "sparse",
        "checkpointing": "none",
        "compile": device == "cuda",
        "micro_batch": 4 if device == "cuda" else 2,
        "accumulation": 4 if device == "cuda" else 1,
        "repeats": 3 if quick else 5,
    }
    changes: list[Result] = [{}]
    if device == "cuda":
        layers = layers_that_fit(model_shape(device), "none", 4)
        changes = [{"layers": layers}, {}]
    other = device != "cuda"
    changes += [{"attention": "full"}, {"attention": "dense"}]
    changes += [{"compile": other}, {"checkpointing": "full"}, {"checkpointing": "selective"}]
    sizes = (16, 1, 8, 2) if device == "cuda" else (1, 4)
    changes += [{"micro_batch": size} for size in (sizes[:2] if quick else sizes)]
    if not quick:
        changes += [{"checkpointing": kind, "compile": other} for kind in ("selective", "full")] + [
            {"attention": kind, "compile": other} for kind in ("full", "dense")
        ]
    if device == "cpu":  # SDPA is what the model uses there
        changes = [change for change in changes if change.get("attention") != "dense"]
    return [{**usual, **change} for change in changes]
