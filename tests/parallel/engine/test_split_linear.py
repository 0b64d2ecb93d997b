"""Split linear layers equal megatron-core's, and compiled ones equal those in eager mode."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._ops import OpOverload

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.model.block import Block
from ernie_vilg.model.linear import SUMS
from ernie_vilg.parallel.engine import tensor_parallel
from ernie_vilg.parallel.engine.library_patches import replaced
from ernie_vilg.parallel.engine.split_linear import ColumnLinear, RowLinear
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from tests.compiler import fresh_compiler
from tests.distributed import run_distributed
from tests.model.test_reference import sparse_config
from tests.parallel import parity

SIZE, TOKENS = 8, 12
BLOCKS = sparse_config(image_grid_size=2, qk_norm=True, sandwich_norm=True, num_layers=4)

GATHER, SCATTER, SUM = "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"
WAIT, ADD = "wait_tensor", "add_weight_gradient"


def layers_of(groups: Groups, **layout: Any) -> Any:
    config = ParallelismConfig(
        tensor_parallel_size=groups.tensor_size, micro_batch_size=1, global_batch_size=1, **layout
    )
    return tensor_parallel.tensor_parallel_layers(groups, config)


def start(launch: Launch) -> Groups:
    return build_groups(2, 1, start_processes(launch, timeout_seconds=60))


def differences(launch: Launch) -> dict[tuple[bool, str, str], float]:
    """Return the largest difference of each result to megatron-core's, relative to the largest."""
    groups = start(launch)
    found = {}
    for split_tokens in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            ours = run_pair(groups, own_pair(groups, split_tokens), dtype, split_tokens)
            # megatron-core gathers tokens into memory of the current GPU.
            with replaced(torch.cuda, current_device=lambda: groups.device):
                theirs = run_pair(groups, megatron_pair(groups, split_tokens), dtype, split_tokens)
            for name, tensor in ours.items():
                scale = theirs[name].abs().max()
                difference = ((tensor - theirs[name]).abs().max() / scale).item()
                found[split_tokens, str(dtype), name] = difference
    return found


def own_pair(groups: Groups, split_tokens: bool) -> tuple[nn.Module, nn.Module]:
    layers = layers_of(groups, sequence_parallel=split_tokens)
    column, row = layers.column_linear(SIZE, 4 * SIZE), layers.row_linear(4 * SIZE, SIZE)
    assert isinstance(column, ColumnLinear)
    assert isinstance(row, RowLinear)
    return column, row


def megatron_pair(groups: Groups, split_tokens: bool) -> tuple[nn.Module, nn.Module]:
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

    config = ModelParallelConfig(
        tensor_model_parallel_size=2,
        sequence_parallel=split_tokens,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
    shared: dict[str, Any] = {
        "config": config,
        "init_method": nn.init.zeros_,
        "skip_bias_add": False,
        "tp_group": groups.tensor_group,
    }
    column = ColumnParallelLinear(SIZE, 4 * SIZE, gather_output=False, **shared)
    row = RowParallelLinear(4 * SIZE, SIZE, bias=True, input_is_parallel=True, **shared)
    return column, row


def run_pair(
    groups: Groups, pair: tuple[nn.Module, nn.Module], dtype: torch.dtype, split_tokens: bool
) -> dict[str, Tensor]:
    """Return outputs and gradients of a column and a row layer, float32."""

    def first(output: Any) -> Tensor:  # megatron-core returns the bias, too
        return output[0] if isinstance(output, tuple) else output

    generator = torch.Generator().manual_seed(0)
    for layer in pair:
        layer.to(dtype)
        for name, parameter in sorted(layer.named_parameters()):
            whole = torch.randn((2, *parameter.shape), generator=generator)
            is_replicated = layer is pair[1] and name == "bias"
            with torch.no_grad():
                parameter.copy_(whole[0 if is_replicated else groups.tensor_rank])
    hidden, gradient = torch.randn((2, TOKENS, SIZE), generator=generator).to(dtype)
    if split_tokens:
        hidden, gradient = (
            each.chunk(2)[groups.tensor_rank].contiguous() for each in (hidden, gradient)
        )
    hidden.requires_grad_()
    column, row = pair
    output = first(row(nn.functional.gelu(first(column(hidden)))))
    output.backward(gradient)
    results = {"output": output, "input": hidden.grad}
    for kind, layer in zip(("column", "row"), pair, strict=True):
        results |= {f"{kind} {name}": each.grad for name, each in layer.named_parameters()}
    return {name: tensor.detach().float() for name, tensor in results.items() if tensor is not None}


@pytest.mark.distributed
def test_layers_equal_those_of_megatron_core() -> None:
    for found in run_distributed(differences, 2):
        assert len(found) == 2 * 2 * 6
        for (split_tokens, dtype, name), difference in found.items():
            # One rounding of the sum over ranks.
            limit = 1e-6 if dtype == "torch.float32" else 2**-7
            assert difference <= limit, (split_tokens, dtype, name)


class Recorded:
    """A backend of torch.compile without a C++ compiler, which keeps the graphs' operators."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []
        self.compile = aot_autograd(
            fw_compiler=self._keep,
            bw_compiler=self._keep,
            partition_fn=min_cut_rematerialization_partition,
        )

    def _keep(self, module: torch.fx.GraphModule, _inputs: Any) -> Any:
        names = []
        for node in module.graph.nodes:
            # The addition is the argument of a wrapper.
            operators = [each for each in (node.target, *node.args) if isinstance(each, OpOverload)]
            names += [each.__name__.partition(".")[0] for each in operators]
        watched = (GATHER, SCATTER, SUM, WAIT, ADD)
        self.graphs.append([name for name in names if name in watched])
        return make_boxed_func(module.forward)


def run_blocks(blocks: list[Block], groups: Groups | None, split_tokens: bool) -> list[Tensor]:
    """Return the output, its input's gradient and the weights' gradients or sums."""
    for block in blocks:
        block.zero_grad()
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, BLOCKS.seq_length, BLOCKS.hidden_size)
    hidden = torch.randn(shape, generator=generator)
    if split_tokens and groups is not None:
        hidden = hidden.flatten(0, -2).chunk(2)[groups.tensor_rank].contiguous()
    entering = hidden.requires_grad_()
    for block in blocks:
        hidden = block(hidden)
    hidden.square().mean().backward()
    results = [hidden.detach(), entering.grad]
    for block in blocks:
        for parameter in block.parameters():
            sums = getattr(parameter, SUMS, None)
            results.append(parameter.grad if sums is None else sums.clone())
            if sums is not None:
                assert parameter.grad is None
                sums.zero_()
    return [each for each in results if each is not None]


def fresh_blocks(layers: Any, has_sums: bool) -> list[Block]:
    torch.manual_seed(2)
    blocks = [Block(BLOCKS, layers, index) for index in range(1, BLOCKS.num_layers + 1)]
    for module in (module for block in blocks for module in block.modules()):
        if has_sums and isinstance(module, nn.Linear):
            setattr(module.weight, SUMS, torch.zeros(module.weight.shape))
    return blocks


def compile_blocks(
    launch: Launch, cases: list[dict[str, Any]], backend: str
) -> list[dict[str, Any]]:
    """Return what compiling did to blocks of every pattern, by case."""
    groups = start(launch)
    found = []
    for case in cases:
        split_tokens = case["sequence_parallel"]
        layers = layers_of(
            groups,
            sequence_parallel=split_tokens,
            activation_checkpointing=case["activation_checkpointing"],
        )
        blocks = fresh_blocks(layers, case["has_sums"])
        eager = run_blocks(blocks, groups, split_tokens)
        recorded = Recorded()
        with fresh_compiler():
            for block in blocks:
                block.compile(
                    fullgraph=True,
                    dynamic=False,
                    backend=recorded.compile if backend == "recorded" else backend,
                )
            run_blocks(blocks, groups, split_tokens)
            with Communication(groups) as communication:
                compiled = run_blocks(blocks, groups, split_tokens)
            graphs, breaks = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
        found.append(
            {
                "difference": max(
                    ((one - other).abs().max() / other.abs().max().clamp_min(1e-3)).item()
                    for one, other in zip(compiled, eager, strict=True)
                ),
                "graphs": graphs,
                "breaks": breaks,
                "collectives": sum(communication.counts().values()),
                "operators": recorded.graphs,
            }
        )
    return found


CASES = [
    {"sequence_parallel": False, "activation_checkpointing": "none", "has_sums": True},
    {"sequence_parallel": True, "activation_checkpointing": "none", "has_sums": True},
    {"sequence_parallel": False, "activation_checkpointing": "selective", "has_sums": False},
    {"sequence_parallel": True, "activation_checkpointing": "full", "has_sums": True},
]
COLLECTIVES = [2 + 2, 4 + 6, 2 + 2, 4 + 4 + 6]
"""Collectives of a block in the forward pass, repeated by full checkpointing, and in the backward
pass."""


@pytest.mark.distributed
def test_split_blocks_compile_to_one_graph_that_computes_the_same() -> None:
    for rank in run_distributed(compile_blocks, 2, CASES, "recorded"):
        for case, collectives, found in zip(CASES, COLLECTIVES, rank, strict=True):
            assert found["collectives"] == collectives * BLOCKS.num_layers, case
            assert found["breaks"] == {}, case
            # All patterns share a graph on a CPU, where a mask is an input of the block.
            assert found["graphs"] == 1, case
            assert found["difference"] <= 1e-6, case
        whole, split, *_ = rank
        assert whole["operators"] == [
            [SUM, WAIT, SUM, WAIT],
            [ADD, SUM, ADD, WAIT, ADD, SUM, ADD, WAIT],
        ]
        # The backward pass gathers tokens again rather than keep them, and makes weights'
        # gradients while the collectives run.
        half = [GATHER, WAIT, ADD, GATHER, SCATTER, WAIT, ADD, WAIT]
        assert split["operators"] == [[GATHER, WAIT, SCATTER, WAIT] * 2, half * 2]


@pytest.mark.distributed
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU")
def test_split_blocks_compile_with_inductor() -> None:
    for rank in run_distributed(compile_blocks, 2, CASES[1:2], "inductor"):
        assert rank[0]["breaks"] == {}
        assert rank[0]["graphs"] == 1
        assert rank[0]["collectives"] == COLLECTIVES[1] * BLOCKS.num_layers
        # Other kernels; the gradient of a key's bias is zero but for their rounding.
        assert rank[0]["difference"] <= 1e-4


def train_both(launch: Launch, config: PretrainConfig) -> list[parity.History]:
    """Return the histories in eager mode and with compiled blocks, without a C++ compiler."""

    def compile_block(block: Block, **options: Any) -> None:
        nn.Module.compile(block, backend="aot_eager", **options)

    with fresh_compiler(), replaced(Block, compile=compile_block):
        histories = parity.train_all(launch, [config, replace(config, compile_blocks=True)])
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 1
    return histories


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
def test_an_engine_with_compiled_blocks_computes_the_same(tensor: int) -> None:
    variant = parity.Variant(
        attention="sparse",
        extra="all norms",
        checkpointing="selective",
        sequence_parallel=tensor > 1,
    )
    config = parity.config_of(parity.Row(tensor=tensor, pipeline=1, data=1, variant=variant))

    for eager, compiled in run_distributed(train_both, tensor, config):
        assert parity.largest_difference(compiled, eager) <= 1e-6
