"""Compiles everything that a step compiles before the first step.

Compilation takes seconds to minutes per attention pattern. In the first step it would count against
the timeout of a step, one pipeline stage after the other, and into the first figures of speed. Here
all ranks compile at the same time, in a phase that has a timeout of its own. They also connect the
groups of a step, which NCCL does at a group's first collective.

Every rank compiles for itself: the ranks of a tensor group need each other in their collectives,
and the ranks of a machine that compile the same kernels find those of an earlier start in
Inductor's cache.

It leaves no trace. Inputs and gradients are zero, gradients are returned instead of accumulated, so
that no hook of DeepSpeed's sees one, and the random generators are restored.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.attention import Attention
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.block import Block
from ernie_vilg.model.linear import IS_FP8, SUMS
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import barrier

logger = logging.getLogger(__name__)


def compiles(run: PretrainConfig, device: torch.device) -> bool:
    """Return whether a run's steps compile anything: blocks, or attention kernels on a GPU."""
    return run.compile_blocks or device.type == "cuda"


def start_compiler(run: PretrainConfig, device: torch.device) -> None:
    """Start the processes that compile kernels, if the run compiles any.

    They take seconds to start. Without them, the first kernels compile one by one.
    """
    if compiles(run, device):
        from torch._inductor.async_compile import maybe_warm_pool

        maybe_warm_pool()


def warm_up(engine: Engine, group: ProcessGroup) -> None:
    """Compile each attention pattern of this rank forward and backward; all ranks must call.

    Args:
        engine: engine that has made no step yet. It is left as it was.
        group: all ranks, with the timeout of a phase: a rank waits for the one with the most
            patterns.
    """
    run, device = engine.settings.run, engine.groups.device
    if not compiles(run, device):
        return
    _connect(engine)
    blocks = _block_of_each_kind(engine)
    what = "blocks" if run.compile_blocks else "attention kernels"
    for number, (kind, block) in enumerate(blocks.items(), start=1):
        started = time.monotonic()
        with _generators_restored(device), torch.enable_grad():
            if run.compile_blocks:
                _run_block(block, engine)
            else:
                _run_attention(block.attention, engine)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        logger.info(
            "compiled %s of pattern %s: %.1f s (%d of %d)",
            what,
            kind,
            time.monotonic() - started,
            number,
            len(blocks),
        )
    barrier(group)


def _connect(engine: Engine) -> None:
    """Make one small collective in each group of a step."""
    groups, replicas = engine.groups, engine.shards.data_group
    for group in (dist.group.WORLD, groups.tensor_group, groups.data_group, replicas):
        if dist.get_world_size(group) > 1:
            dist.all_reduce(torch.zeros(1, device=groups.device), group=group)


def _block_of_each_kind(engine: Engine) -> dict[str, Block]:
    """Return a block of this rank's stage for each graph that its blocks compile.

    Blocks of one pattern share kernels, and share graphs if they compute in one number format.
    """
    blocks: dict[str, Block] = {}
    for module in engine.deepspeed_engine.module.modules():
        if isinstance(module, Block):
            kind = module.attention.block_sparse.pattern.value
            has_fp8 = any(getattr(weight, IS_FP8, False) for weight in module.parameters())
            if has_fp8 and engine.settings.run.compile_blocks:
                kind += " in fp8"
            blocks.setdefault(kind, module)
    return blocks


def _run_block(block: Block, engine: Engine) -> None:
    run = engine.settings.run
    tokens = (len(Direction), run.parallelism.micro_batch_size, run.model.seq_length)
    shape: tuple[int, ...] = (*tokens, run.model.hidden_size)
    if run.parallelism.sequence_parallel:
        num_tokens = tokens[0] * tokens[1] * tokens[2] // engine.groups.tensor_size
        shape = (num_tokens, run.model.hidden_size)
    hidden = _zeros(shape, engine)
    weights = [weight for weight in block.parameters() if weight.requires_grad]
    output = block(hidden)
    # A weight with `gradient_sums` gets no gradient from autograd.
    torch.autograd.grad(output, [hidden, *weights], torch.zeros_like(output), allow_unused=True)
    for weight in weights:
        sums: Tensor | None = getattr(weight, SUMS, None)
        if sums is not None:
            sums.zero_()


def _run_attention(attention: Attention, engine: Engine) -> None:
    """Run the kernels alone, without weights, which ZeRO 3 has in parts."""
    run = engine.settings.run
    num_tokens = len(Direction) * run.parallelism.micro_batch_size * run.model.seq_length
    projected = _zeros((num_tokens, 3 * attention.num_heads * attention.head_dim), engine)
    query, key, value = attention.split_heads(projected, len(Direction), run.model.seq_length)
    if run.model.qk_norm:  # the memory layout of normed heads is another one
        query, key = (F.layer_norm(heads, heads.shape[-1:]) for heads in (query, key))
    output = attention.attend_all(query, key, value)
    torch.autograd.grad(output, projected, torch.zeros_like(output))


def _zeros(shape: tuple[int, ...], engine: Engine) -> Tensor:
    """Return zeros as a layer of the run would get them, with a gradient."""
    device, precision = engine.groups.device, engine.settings.precision
    return torch.zeros(shape, dtype=precision, device=device, requires_grad=True)


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
