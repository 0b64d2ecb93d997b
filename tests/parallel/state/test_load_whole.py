"""Counters are loaded into another engine with the tensors."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from ernie_vilg.parallel.state.load_whole import set_counters
from ernie_vilg.parallel.state.whole_state import Counters, read_counters, write_whole_state
from tests.model.tiny import CONFIG


def write_checkpoint(folder: Path, zero: dict[str, Any], states: dict[int, Any]) -> None:
    """Write the counters that the files of one ZeRO 1 rank contain."""
    shares = {"base_optimizer_state": {"state": states}, **zero}
    torch.save({"optimizer_state_dict": shares}, folder / "zero_pp_rank_0_optim_states.pt")
    counts = {"global_steps": 9, "global_samples": 72, "skipped_steps": 2}
    torch.save(counts, folder / "mp_rank_00_model_states.pt")


def states_of(steps: float) -> dict[int, Any]:
    return {index: {"step": torch.tensor(steps)} for index in range(2)}


def dynamic_scaler(scale: float, iteration: int) -> DynamicLossScaler:
    scaler = DynamicLossScaler(
        init_scale=scale,
        scale_window=1000,
        min_scale=1.0,
        delayed_shift=2,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=True,
        dtype=torch.float16,
    )
    scaler.cur_iter = iteration
    return scaler


def test_counters_of_a_bf16_checkpoint_hold_no_loss_scale(tmp_path: Path) -> None:
    zero = {"loss_scaler": LossScaler(1.0), "dynamic_loss_scale": False}
    write_checkpoint(tmp_path, zero, states_of(7.0))

    assert asdict(read_counters(tmp_path)) == {
        "optimizer_steps": 7.0,
        "global_steps": 9,
        "global_samples": 72,
        "skipped_steps": 2,
        "loss_scale": {},
    }


def test_a_dynamic_loss_scale_continues(tmp_path: Path) -> None:
    """The scale and the steps since its last overflow decide its next change."""
    zero = {"loss_scaler": dynamic_scaler(256.0, 41), "dynamic_loss_scale": True}
    write_checkpoint(tmp_path, zero, states_of(7.0))
    scaler = dynamic_scaler(65536.0, 0)
    optimizer = SimpleNamespace(dynamic_loss_scale=True, loss_scaler=scaler)
    engine = SimpleNamespace(optimizer=optimizer)

    set_counters(engine, read_counters(tmp_path))

    assert (scaler.cur_scale, scaler.cur_iter, scaler.dtype) == (256.0, 41, torch.float16)
    assert (engine.global_steps, engine.global_samples, engine.skipped_steps) == (9, 72, 2)


def test_an_engine_with_another_scaler_keeps_it() -> None:
    counters = Counters(
        optimizer_steps=1.0, global_steps=1, global_samples=8, skipped_steps=0,
        loss_scale={"cur_scale": 2.0},
    )  # fmt: skip
    engine = SimpleNamespace(optimizer=SimpleNamespace())  # as BF16_Optimizer, which has none

    set_counters(engine, counters)

    assert vars(engine.optimizer) == {}


def test_a_checkpoint_of_before_the_first_update_is_refused(tmp_path: Path) -> None:
    """A float16 run whose first steps all overflowed has such checkpoints."""
    folder = tmp_path / "step_00000001" / "deepspeed"
    folder.mkdir(parents=True)
    write_checkpoint(folder, {}, {})

    with pytest.raises(ValueError, match="before the optimizer's first update: resume it under"):
        write_whole_state(folder, tmp_path / "whole", CONFIG)
