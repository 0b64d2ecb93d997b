"""The warm-up compiles all that a step compiles, and leaves no trace."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.nn.attention.flex_attention as flex_module
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model import block_sparse
from ernie_vilg.model.attention import Attention
from ernie_vilg.model.block import Block
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.linear import SUMS
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine import warm_up as module
from ernie_vilg.parallel.engine.build import mark_fp8_weights
from ernie_vilg.parallel.engine.warm_up import compiles, warm_up
from tests.distributed import one_process, run_distributed
from tests.model.test_reference import sparse_config
from tests.model.tiny import tiny_model
from tests.parallel.timing.test_step_times import batches
from tests.training.runs import start, tiny_run

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CPU = torch.device("cpu")
PAIRS = 2


@pytest.fixture
def run(tmp_path: Path) -> PretrainConfig:
    return tiny_run(tmp_path, steps=1)


def engine_of(run: PretrainConfig, blocks: nn.Module, precision: torch.dtype) -> Any:
    """Return what the warm-up needs of an engine on one CPU rank."""
    groups = SimpleNamespace(
        device=CPU, tensor_size=1, tensor_group=dist.group.WORLD, data_group=dist.group.WORLD
    )
    return SimpleNamespace(
        settings=SimpleNamespace(run=run, precision=precision),
        groups=groups,
        shards=SimpleNamespace(data_group=dist.group.WORLD),
        deepspeed_engine=SimpleNamespace(module=blocks),
    )


def model_of(config: ModelConfig, precision: torch.dtype, checkpointing: str) -> nn.Sequential:
    layers = replace(SINGLE_DEVICE, activation_checkpointing=checkpointing)
    model = build_transformer(config, layers)
    model.load_state_dict(tiny_model(config).state_dict())
    return model.to(precision)


def train_blocks(model: nn.Sequential, config: ModelConfig, precision: torch.dtype) -> None:
    """Run the blocks forward and backward as a step does."""
    hidden = torch.randn(2, PAIRS, config.seq_length, config.hidden_size, dtype=precision)
    hidden.requires_grad_()
    output: Tensor = hidden
    for block in model[1:-1]:
        output = block(output)
    output.square().sum().backward()


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Let attention on this CPU take the path of a GPU; return the counter of its graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    kernel = torch.compile(
        block_sparse.attend_visible, dynamic=False, fullgraph=True, backend=counter
    )
    monkeypatch.setattr(block_sparse, "_compiled_attention", lambda: kernel)
    monkeypatch.setattr(Attention, "attend_all", lambda self, *heads: self.block_sparse(*heads))
    # torch has no backward kernel for CPUs, and refuses gradients before its compiler is asked.
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    monkeypatch.setattr(module, "compiles", lambda *_: True)
    return counter


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_step_compiles_no_attention_kernel_after_the_warm_up(
    qk_norm: bool,
    checkpointing: str,
    run: PretrainConfig,
    gpu_path: CompileCounterWithBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = sparse_config(qk_norm=qk_norm, hidden_size=32)
    model = model_of(config, torch.bfloat16, checkpointing)
    engine = engine_of(replace(run, model=config), model, torch.bfloat16)

    with one_process(), caplog.at_level(logging.INFO):
        warm_up(engine, dist.group.WORLD)
    compiled = gpu_path.frame_count, counters["aot_autograd"]["total"]
    train_blocks(model, config, torch.bfloat16)

    assert compiled == (gpu_path.frame_count, counters["aot_autograd"]["total"])
    assert gpu_path.frame_count == 3, "row, column, convolution"
    lines = [record.getMessage() for record in caplog.records]
    starts = [line.rpartition(":")[0] for line in lines]
    assert starts == [
        f"compiled attention kernels of pattern {name}" for name in ("row", "column", "convolution")
    ]
    assert lines[1].endswith("s (2 of 3)")
    assert all(weight.grad is not None for weight in model[1].parameters()), "it trained"


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_step_compiles_no_block_after_the_warm_up_which_leaves_no_trace(
    checkpointing: str, run: PretrainConfig
) -> None:
    config = sparse_config(dropout=0.1)
    model = model_of(config, torch.float32, checkpointing)
    for block in model[1:-1]:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hooked: list[Tensor] = []
    sums = []
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(hooked.append)
        if weight.ndim == 2 and weight.shape[0] > 1:
            sums.append(torch.zeros_like(weight, dtype=torch.float32))
            setattr(weight, SUMS, sums[-1])
    state = torch.random.get_rng_state()
    engine = engine_of(replace(run, model=config, compile_blocks=True), model, torch.float32)

    with one_process():
        warm_up(engine, dist.group.WORLD)

    assert torch.random.get_rng_state().equal(state)
    assert not hooked
    assert all(weight.grad is None for weight in model.parameters())
    assert all(not each.any() for each in sums)
    assert all(before[name].equal(weight) for name, weight in model.state_dict().items())
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 1, "on a CPU the mask is an input"
    train_blocks(model, config, torch.float32)
    assert counters["stats"]["unique_graphs"] == graphs
    assert hooked


def test_blocks_in_fp8_compile_apart(run: PretrainConfig) -> None:
    config = sparse_config(num_layers=5)  # row, column, row, row, convolution
    model = model_of(config, torch.float32, "none")
    mark_fp8_weights(model, config)
    engine = engine_of(replace(run, model=config, compile_blocks=True), model, torch.float32)

    kinds = module._block_of_each_kind(engine)

    # The first and the last block keep the run's precision.
    assert list(kinds) == ["row", "column in fp8", "row in fp8", "convolution"]


def test_nothing_is_warmed_up_where_nothing_compiles(run: PretrainConfig) -> None:
    assert not compiles(run, CPU)
    assert compiles(run, torch.device("cuda", 0))
    assert compiles(replace(run, compile_blocks=True), CPU)

    warm_up(engine_of(run, nn.Sequential(), torch.float32), None)  # type: ignore[arg-type]


def steps(launch: Launch, config: PretrainConfig, warms: bool) -> dict[str, Any]:
    """Take two steps of an engine with compiled blocks."""
    compile_block = nn.Module.compile
    Block.compile = lambda self, **options: compile_block(self, backend="aot_eager", **options)  # type: ignore[method-assign]
    engine = start(launch, config, torch.float32)
    state = torch.random.get_rng_state()
    if warms:
        warm_up(engine, dist.group.WORLD)
    graphs = counters["stats"]["unique_graphs"]
    changed = not torch.random.get_rng_state().equal(state)
    losses = [
        engine.mean_losses(engine.train_batch(batches(config, engine.num_micro_batches), 1e-2))
        for _ in range(2)
    ]
    return {
        "losses": [[value.hex() for value in each.tolist()] for each in losses],
        "norm": engine.gradient_norm().hex(),
        "changed": changed,
        "graphs": (graphs, counters["stats"]["unique_graphs"]),
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("zero_stage", "pipeline"),
    [pytest.param(2, 1, id="ZeRO 2"), pytest.param(1, 2, id="pipeline")],
)
def test_losses_are_those_without_the_warm_up(
    tmp_path: Path, zero_stage: int, pipeline: int
) -> None:
    config = tiny_run(tmp_path, steps=2, zero_stage=zero_stage, pipeline_parallel_size=pipeline)
    config = replace(config, compile_blocks=True, model=replace(config.model, dropout=0.1))

    warm = run_distributed(steps, 2, config, True)
    cold = run_distributed(steps, 2, config, False)

    for with_it, without in zip(warm, cold, strict=True):
        assert with_it["graphs"] == (1, 1)
        assert without["graphs"] == (0, 1)
        assert not with_it["changed"]
        assert with_it["losses"] == without["losses"]
        assert with_it["norm"] == without["norm"]
