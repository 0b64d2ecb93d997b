"""A step with NaN on one rank is skipped on all, is written down, and is bounded."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.records.skipped_updates import read_skips
from ernie_vilg.tokenizer_training import engine
from tests.distributed import run_distributed
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    metrics_of,
    run,
    tiny_config,
    write_shards,
)

SPOILT = 3
to_device = engine.to_device


def spoilt_run(launch: Launch, config: TrainImageTokenizerConfig, last: int) -> int:
    """Train, with NaN in the pictures of rank 1, or of the only rank, from `SPOILT` to `last`."""
    calls = 0

    def spoil(pictures: Tensor, device: Any) -> Tensor:
        nonlocal calls
        calls += 1
        images = to_device(pictures, device)
        is_spoilt = SPOILT <= calls <= last and launch.rank == launch.world_size - 1
        return images * math.nan if is_spoilt else images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "to_device", spoil)
        return run(launch, config)


@pytest.mark.distributed
def test_nan_on_one_rank_skips_the_step_on_both(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    config = tiny_config(tmp_path / "shards", tmp_path / "run", steps=5)

    codes = run_distributed(spoilt_run, 2, config, SPOILT)

    assert codes == [0, 0]  # weights were equal at every checkpoint, or it would have gone back
    lines = metrics_of(tmp_path / "run")
    assert [line["skipped_updates"] for line in lines] == [0, 0, 1, 1, 1]
    assert lines[SPOILT - 1]["loss"] is None or math.isnan(lines[SPOILT - 1]["loss"])
    assert all(math.isfinite(line["loss"]) for line in lines if line["step"] != SPOILT)
    skips = read_skips(tmp_path / "run" / "ledger")
    assert [(skip.step, skip.reason, skip.first_position) for skip in skips] == [
        (SPOILT, "nan", 16), (SPOILT, "nan", 20),
    ]  # fmt: skip
    assert all(1 in skip.ranks and len(skip.samples) == 4 for skip in skips)


def test_nan_in_every_step_goes_back_and_ends_the_run(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    config = tiny_config(tmp_path / "shards", tmp_path / "run", steps=9)
    config = replace(config, guards=replace(config.guards, max_skips=1, max_rollbacks=1))

    with pytest.raises(FloatingPointError, match=r"guards\.max_rollbacks\) did not help"):
        spoilt_run(ALONE, config, last=100)

    committed = json.loads((tmp_path / "run/checkpoints/latest.json").read_text())
    assert committed["step"] == 4  # steps 3 and 4 count as made, without an update
