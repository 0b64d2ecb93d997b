"""Rows of the training step: options of the attention kernel, and the profile of a step."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.train_step_parts.attention import KERNEL_OPTIONS, with_options
from benchmarks.train_step_parts.profile import profile_step
from benchmarks.train_step_parts.step import pretrain_config
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention import attend
from ernie_vilg.model.attention_mask import Pattern, both_masks

MODEL = ModelConfig(
    hidden_size=32, num_layers=1, num_heads=2, text_vocab_size=16, text_length=4,
    codebook_size=16, image_grid_size=4, convolution_size=3, attention="sparse",
)  # fmt: skip


@pytest.mark.parametrize("pattern", [Pattern.ROW, Pattern.COLUMN])
def test_attention_with_options_of_the_kernel_is_ours(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    theirs = block_sparse.flex_attention

    def recorded(*arguments: Any, kernel_options: Any, **words: Any) -> Any:
        given.append(kernel_options)
        return theirs(*arguments, **words)

    monkeypatch.setattr(block_sparse, "flex_attention", recorded)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, MODEL.num_heads, MODEL.seq_length, MODEL.head_dim)
    heads = [torch.randn(shape, generator=generator) for _ in range(3)]

    found = with_options(MODEL, pattern, {"fwd_BLOCK_N": 64}, backend="eager")(*heads)

    torch.testing.assert_close(found, attend(*heads, both_masks(MODEL, pattern)))
    assert given == [{"fwd_BLOCK_N": 64}] * 2  # one kernel per direction
    assert block_sparse.flex_attention is recorded


def test_options_keep_the_kernels_blocks_within_those_of_the_mask() -> None:
    sizes = [
        value
        for options in KERNEL_OPTIONS.values()
        for name, value in options.items()
        if "BLOCK_" in name
    ]

    assert sizes
    assert all(block_sparse.BLOCK_SIZE % size == 0 for size in sizes)


def test_a_profile_names_operators_and_writes_a_trace(tmp_path: Path) -> None:
    weights = torch.randn(64, 64)

    rows = profile_step(lambda: weights @ weights, tmp_path / "trace.json.gz")

    assert "aten::mm" in [row["name"] for row in rows]
    assert all(row["ms"] > 0 and row["calls"] > 0 for row in rows)
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]


def test_a_row_is_a_run_of_the_engine() -> None:
    row = {
        "layers": 2, "attention": "sparse", "checkpointing": "full", "compile": True,
        "micro_batch": 4, "accumulation": 2, "repeats": 1,
    }  # fmt: skip

    config = pretrain_config(row)

    assert (config.model.num_layers, config.model.attention) == (2, "sparse")
    assert config.parallelism.global_batch_size == 8
    assert config.compile_blocks
