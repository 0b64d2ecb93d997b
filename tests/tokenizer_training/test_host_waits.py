"""The host reads nothing of a step of the image tokenizer, so that a GPU never waits for it.

A CPU stands for the GPU (benchmarks/support/host_waits.py): every tensor counts as one on it.
"""

import pytest
import torch

from benchmarks.support.host_waits import host_waits
from tests.tokenizer_training.engine_runs import (
    START,
    Quantizer,
    build,
    engine_config,
    lone_engine,
    pictures_of_step,
)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["ema", "nearest", "normalized", "simvq", "gumbel"])
def test_no_step_waits_but_where_codes_move(quantizer: Quantizer, precision: torch.dtype) -> None:
    config = engine_config(quantizer, revive_every=0)
    with lone_engine(config):
        engine = build(config, precision)
        for step in range(START + 2):
            with host_waits(engine.groups.device) as waits:
                engine.train_batch([pictures_of_step(step)], 1e-3)

    assert [str(wait) for wait in waits] == []
