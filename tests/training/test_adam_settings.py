"""AdamW resumes with the settings of the run, not with those saved in a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from tests.distributed import run_distributed
from tests.training.runs import MODEL, checkpoints_of, start, tiny_run

NAMES = ("exp_avg", "exp_avg_sq")
SAVED, CHANGED = (0.9, 0.95), (0.5, 0.75)


def moments(engine: Engine) -> list[Tensor]:
    """Return both moments of all parameters in one row each, float64 [2, parameters]."""
    state = engine.deepspeed_engine.optimizer.optimizer.state.values()
    return [torch.cat([entry[name].flatten() for entry in state]).double() for name in NAMES]


def batches_of(config: PretrainConfig) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    size = config.parallelism.micro_batch_size
    return [
        Batch(
            text=torch.randint(4, MODEL.text_vocab_size, (size, 3), generator=generator),
            codes=torch.randint(MODEL.codebook_size, (size, 4), generator=generator),
        )
        for _ in range(config.parallelism.global_batch_size // size)
    ]


def step_after_resume(launch: Launch, config: PretrainConfig) -> list[dict[str, Any]]:
    """Save under one pair of betas and take a step under each; return what AdamW did."""
    engine = start(launch, config, torch.float32)
    checkpoints = checkpoints_of(config, engine)
    for _ in range(2):
        engine.train_batch(batches_of(config), 1e-3)
    checkpoints.save(engine, 2)
    checkpoints.finish()
    results = []
    for beta1, beta2 in (SAVED, CHANGED):
        optimizer = replace(config.optimizer, beta1=beta1, beta2=beta2, weight_decay=0.2)
        changed = replace(config, optimizer=optimizer)
        engine = build_engine(changed, engine.groups, torch.float32)
        step = checkpoints_of(changed, engine).restore(engine)
        before = moments(engine)
        engine.train_batch(batches_of(config), 1e-3)
        groups = engine.deepspeed_engine.optimizer.optimizer.param_groups
        results.append(
            {
                "step": step,
                "betas": [tuple(group["betas"]) for group in groups],
                "weight_decay": [group["weight_decay"] for group in groups],
                "before": before,
                "after": moments(engine),
            }
        )
    return results


@pytest.mark.distributed
def test_adam_betas_in_effect_after_a_resume_are_the_configured_ones(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=4)

    ((saved, changed),) = run_distributed(step_after_resume, 1, config)

    assert saved["step"] == changed["step"] == 2
    assert saved["betas"] == [SAVED] * 2
    assert changed["betas"] == [CHANGED] * 2
    assert changed["weight_decay"] == [0.2, 0.0]
    for index, name in enumerate(NAMES):
        before = changed["before"][index]
        assert before.equal(saved["before"][index])
        assert before.abs().max() > 0
        # Both steps see one gradient term g: the first gives it, the second must follow from it.
        g = (saved["after"][index] - SAVED[index] * before) / (1 - SAVED[index])
        expected = CHANGED[index] * before + (1 - CHANGED[index]) * g
        error = (changed["after"][index] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, name  # float32 moments, divided by 1 - beta
