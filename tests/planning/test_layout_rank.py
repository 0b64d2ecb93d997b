"""A layout's rank counts the faster ones that fit."""

from dataclasses import replace

import pytest
import torch

from benchmarks.support.models import random_run, read_gpu, read_model
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.planning import layout_rank
from ernie_vilg.planning.calibration import Correction
from ernie_vilg.planning.layout_rank import rank_of_layout
from ernie_vilg.planning.plan import worst_memory
from launch.support.composition import compose_program

_GPU = read_gpu("h100-80gb")
_MODEL = read_model("base_300m", num_layers=4)  # larger ones do not wait for samples


def run_of(**layout: int) -> PretrainConfig:
    settings = {"micro_batch_size": 8, "global_batch_size": 64, **layout}
    return random_run(_MODEL, ParallelismConfig(**settings), gpu=_GPU, compile_blocks=True)


def test_the_fastest_of_a_slow_layout_is_the_fastest() -> None:
    slow = rank_of_layout(run_of(pipeline_parallel_size=2, micro_batch_size=1), 2, torch.bfloat16)
    assert slow is not None
    assert slow.fastest is not None

    best = rank_of_layout(slow.fastest, 2, torch.bfloat16)

    assert best is not None
    assert (best.num_faster, best.fastest) == (0, None)
    assert slow.num_faster > 0
    assert slow.gain > 0
    assert "layout is the fastest of " in best.words(2)
    assert replace(slow, gain=0.0004).words(2).endswith(": less than 0.1% faster")
    assert f"micro-batch {slow.fastest.parallelism.micro_batch_size}, " in slow.words(2)


def test_faster_layouts_that_do_not_fit_do_not_count() -> None:
    run = run_of(micro_batch_size=1)
    roomy = rank_of_layout(run, 1, torch.bfloat16)
    small = rank_of_layout(replace(run, gpu=replace(_GPU, memory_bytes=1.0)), 1, torch.bfloat16)

    assert roomy is not None
    assert small is not None
    assert roomy.num_faster > 0
    assert small.num_faster == 0


def test_a_layout_that_does_not_fit_has_no_rank() -> None:
    run = run_of(micro_batch_size=64)
    need = worst_memory(run, 1, torch.bfloat16, Correction()).total
    small = replace(run, gpu=replace(_GPU, memory_bytes=0.5 * need))
    tiny = replace(run, gpu=replace(_GPU, memory_bytes=1.0))

    rank = rank_of_layout(small, 1, torch.bfloat16)
    hopeless = rank_of_layout(tiny, 1, torch.bfloat16)

    assert rank is not None
    assert hopeless is not None
    assert not rank.fits
    assert rank.fastest is not None
    assert rank.words(1).startswith("the fastest of ")
    assert " legal layouts on 1 GPU that fits, as predicted: tensor 1" in rank.words(1)
    assert hopeless.fastest is None
    assert "none of " in hopeless.words(1)
    assert "layout is the fastest" not in hopeless.words(1)


def test_a_search_that_was_cut_does_not_call_the_layout_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout_rank, "MAX_TRIED", 1)
    monkeypatch.setattr(layout_rank, "_fitting", lambda *_: None)

    rank = rank_of_layout(run_of(micro_batch_size=1), 1, torch.bfloat16)

    assert rank is not None
    assert rank.fits
    assert rank.words(1).startswith("none of the 1 fastest of ")
    assert rank.words(1).endswith(" legal layouts on 1 GPU fits; slower ones were not examined")


def test_an_unknown_gpu_ranks_nothing() -> None:
    assert rank_of_layout(replace(run_of(), gpu=None), 1, torch.bfloat16) is None


@pytest.mark.parametrize(("experiment", "num_gpus"), [("base_300m", 8), ("ernie_vilg_10b", 64)])
def test_the_presets_are_what_the_planner_ranks_first(experiment: str, num_gpus: int) -> None:
    config = compose_program("pretrain", [f"experiment={experiment}"])

    rank = rank_of_layout(config, num_gpus, torch.bfloat16)

    assert rank is not None
    assert rank.fastest is None, rank.words(num_gpus)
