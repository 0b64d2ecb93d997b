"""Loads whole weights and moments into an engine of any layout, and verifies them there.

Every rank reads the piece of each parameter that it updates: first a tensor rank's shard of the
parameter, then ZeRO's piece of that shard. The piece is written into the tensor that the optimizer
updates, and the model's weights are made from it as after an update.

DeepSpeed's own loader of universal checkpoints is not enough: it does not know the average of the
weights, and under ZeRO 3 it refuses checkpoints of ZeRO 1 and gives all ranks the step count and
settings of one.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ernie_vilg.model.initialization import original_name, split_dimension
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE, AveragingAdamW
from ernie_vilg.parallel.engine.zero_shards import Piece, set_loss_scale
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.state.consolidate import WEIGHTS
from ernie_vilg.parallel.state.whole_state import Counters, WholeState

_STEP = "step"


@torch.no_grad()
def load_whole_state(engine: Engine, source: WholeState) -> None:
    """Load a whole state into an engine; all ranks must call.

    The optimizer's settings, such as the learning rate, stay as they are. An average of the weights
    in the source is skipped if the engine keeps none.
    """
    optimizer, states = engine.shards.optimizer, _states_of(engine, source)
    for shard in engine.shards.tensors():
        _clear_state(optimizer, shard, states, source.counters)
    for name, piece in _pieces(engine, source):
        for state in states:
            held = _held(optimizer, piece, state)
            held.copy_(_piece_of(name, piece, source.read(name, state), engine.groups))
    _load_frozen(engine, source)
    engine.shards.update_model()
    set_counters(engine.deepspeed_engine, source.counters)


@torch.no_grad()
def find_differences(engine: Engine, source: WholeState) -> list[str]:
    """Compare an engine with a whole state bit for bit; all ranks must call.

    Compared are the optimizer's weights, moments and count of updates, and the weights that the
    model computes with. Data-parallel ranks must together hold each value of a tensor rank's shard
    exactly once.

    Returns:
        what differs on this rank, in words; empty if nothing does.
    """
    optimizer, pieces = engine.shards.optimizer, _pieces(engine, source)
    differences = _missing_pieces(engine, source, pieces)
    for name, piece in pieces:
        for state in _states_of(engine, source):
            expected = _piece_of(name, piece, source.read(name, state), engine.groups)
            if not _same_bits(_held(optimizer, piece, state), expected):
                differences.append(f"{state} of {name}")
    steps = {float(optimizer.state[shard][_STEP]) for shard in engine.shards.tensors()}
    if steps != {source.counters.optimizer_steps}:
        differences.append("the optimizer's count of updates")
    for name, parameter in _named(engine, source):
        held, part = engine.shards.model_weights(parameter)
        expected = _shard_of(name, source.read(name, WEIGHTS), engine.groups).flatten()[part]
        if not _same_bits(held, expected.to(held.dtype)):
            differences.append(f"the model's {name}")
    return differences


def set_counters(engine: Any, counters: Counters) -> None:
    """Set the counters of a DeepSpeed engine to those of a saved one."""
    engine.global_steps = counters.global_steps
    engine.global_samples = counters.global_samples
    engine.skipped_steps = counters.skipped_steps
    set_loss_scale(engine.optimizer, counters.loss_scale)


def _load_frozen(engine: Engine, source: WholeState) -> None:
    """Copy the weights that the optimizer does not have into the model."""
    for name, parameter in _named(engine, source):
        if not has_optimizer_state(name, source.config):
            held, part = engine.shards.model_weights(parameter)
            held.copy_(_shard_of(name, source.read(name, WEIGHTS), engine.groups).flatten()[part])


def _named(engine: Engine, source: WholeState) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in engine.local_parameters():
        yield original_name(name, source.config), parameter


def _states_of(engine: Engine, source: WholeState) -> tuple[str, ...]:
    keeps_average = isinstance(engine.shards.optimizer, AveragingAdamW)
    return tuple(state for state in source.states if keeps_average or state != WEIGHT_AVERAGE)


def _pieces(engine: Engine, source: WholeState) -> list[tuple[str, Piece]]:
    names = {parameter: name for name, parameter in _named(engine, source)}
    return [(names[parameter], piece) for parameter, piece in engine.shards.pieces().items()]


def _piece_of(name: str, piece: Piece, whole: Tensor, groups: Groups) -> Tensor:
    return _shard_of(name, whole, groups).flatten()[piece.in_parameter]


def _shard_of(name: str, whole: Tensor, groups: Groups) -> Tensor:
    """Return a tensor rank's shard of a parameter, or of a state of it."""
    dimension = split_dimension(name)
    if dimension is None:
        return whole
    return whole.chunk(groups.tensor_size, dimension)[groups.tensor_rank]


def _clear_state(
    optimizer: Optimizer, shard: Tensor, states: tuple[str, ...], counters: Counters
) -> None:
    """Create AdamW's state of a shard, as its first step would; padding stays zero."""
    optimizer.state[shard] = {
        # Fused AdamW keeps the count on the device.
        _STEP: torch.tensor(counters.optimizer_steps, dtype=torch.float32, device=shard.device),
        **{state: torch.zeros_like(shard) for state in states if state != WEIGHTS},
    }


def _held(optimizer: Optimizer, piece: Piece, state: str) -> Tensor:
    """Return the values of a piece in the optimizer's weights or one of its states."""
    shard = piece.shard if state == WEIGHTS else optimizer.state[piece.shard][state]
    part: Tensor = shard.detach()[piece.in_shard]
    return part


def _missing_pieces(
    engine: Engine, source: WholeState, pieces: list[tuple[str, Piece]]
) -> list[str]:
    """Describe the parameters of which data-parallel ranks do not hold each value once."""
    sizes = {
        name: source.shapes[name].numel()
        for name, _ in _named(engine, source)
        if has_optimizer_state(name, source.config)
    }
    held = dict.fromkeys(sizes, 0)
    for name, piece in pieces:
        held[name] += piece.in_parameter.stop - piece.in_parameter.start
    totals = torch.tensor([held[name] for name in sizes])
    dist.all_reduce(totals, group=engine.groups.data_group)
    expected = {
        name: size // (engine.groups.tensor_size if split_dimension(name) is not None else 1)
        for name, size in sizes.items()
    }
    return [
        f"{total} of {size} values of {name} are held"
        for (name, size), total in zip(expected.items(), totals.tolist(), strict=True)
        if total != size
    ]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare the bits of two tensors on any devices: -0 differs from 0, and NaN may be equal."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = torch.int32 if one.element_size() == 4 else torch.int16
    return one.contiguous().view(bits).cpu().equal(other.contiguous().view(bits).cpu())
