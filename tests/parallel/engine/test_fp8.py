"""Runs with 8-bit products, through the real engines on a CPU."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.errors import InputError
from ernie_vilg.model import fp8
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.training.pretrain import pretrain
from tests.distributed import run_distributed
from tests.training.runs import tiny_run

LARGEST_DIFFERENCE = 0.02
"""Largest relative difference of the losses of 8-bit and bfloat16 products, while the loss falls
by a third."""
PRODUCTS_OF_INNER_BLOCKS = 2 * 4 * 3
"""Number of inner blocks, matrices per block, and products per matrix."""


def configs_of(folder: Path, **layout: Any) -> list[PretrainConfig]:
    """Return a run with bfloat16 products, and the same with 8-bit ones."""
    run = tiny_run(folder, steps=1, **layout)
    model = replace(run.model, num_layers=4, hidden_size=32, text_length=4)
    run = replace(run, precision="bf16", model=model)
    return [run, replace(run, linear_precision="fp8")]


def train_all(
    launch: Launch, configs: Sequence[PretrainConfig], steps: int
) -> list[tuple[list[float], int]]:
    """Return each run's losses, and this rank's number of 8-bit products per micro-batch."""
    layout = configs[0].parallelism
    device = start_processes(launch, timeout_seconds=120)
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    counted, product = [0], fp8.product

    def counting(*arguments: Any, **options: Any) -> torch.Tensor:
        counted[0] += 1
        return product(*arguments, **options)

    fp8.product = counting
    results = []
    for config in configs:
        engine, counted[0] = build_engine(config, groups, torch.bfloat16), 0
        losses = [loss_of_step(engine, config) for _ in range(steps)]
        results.append((losses, counted[0] // (steps * engine.num_micro_batches)))
        del engine
        gc.collect()  # DeepSpeed's engines are cycles of references
    return results


def loss_of_step(engine: Engine, config: PretrainConfig) -> float:
    """Take a step on the same pairs as every other step, so that the loss falls."""
    generator = torch.Generator().manual_seed(engine.groups.data_rank)
    model, size = config.model, config.parallelism.micro_batch_size
    batches = [
        Batch(
            text=torch.randint(4, 64, (size, model.text_length), generator=generator),
            codes=torch.randint(64, (size, model.num_image_tokens), generator=generator),
        )
        for _ in range(engine.num_micro_batches)
    ]
    return float(engine.mean_losses(engine.train_batch(batches, 3e-3))[0])


def test_20_steps_have_nearly_the_losses_of_bfloat16(tmp_path: Path) -> None:
    ((plain, none), (rounded, count)) = run_distributed(train_all, 1, configs_of(tmp_path), 20)[0]

    assert (none, count) == (0, PRODUCTS_OF_INNER_BLOCKS)
    assert rounded != plain
    assert rounded == pytest.approx(plain, rel=LARGEST_DIFFERENCE)
    assert plain[-1] < 0.67 * plain[0]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param([{"zero_stage": stage} for stage in (1, 2, 3)], id="ZeRO 1, 2, 3"),
        pytest.param([{"pipeline_parallel_size": 2}], id="pipeline 2"),
        pytest.param(
            [
                {"tensor_parallel_size": 2, "sequence_parallel": is_split}
                for is_split in (False, True)
            ],
            id="tensor 2, with and without sequence parallelism",
        ),
    ],
)
def test_every_layout_multiplies_8_bits(tmp_path: Path, layouts: list[dict[str, Any]]) -> None:
    configs = [config for layout in layouts for config in configs_of(tmp_path, **layout)]

    ranks = run_distributed(train_all, 2, configs, 3)

    expected = PRODUCTS_OF_INNER_BLOCKS // layouts[0].get("pipeline_parallel_size", 1)
    for results in ranks:
        for (plain, none), (rounded, count) in zip(results[::2], results[1::2], strict=True):
            assert (none, count) == (0, expected)
            assert rounded != plain
            assert rounded == pytest.approx(plain, rel=LARGEST_DIFFERENCE)


def test_a_run_on_a_cpu_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, config = configs_of(tmp_path)

    with pytest.raises(InputError, match="linear_precision=fp8 on a CPU"):
        pretrain(config, Launch(rank=0, local_rank=0, world_size=1))

    assert not list(tmp_path.iterdir())
