"""Whole weights and moments into an engine of any layout, and the proof that they are in it.

Every rank reads its own share: a tensor rank's cut of a parameter, and of that the piece that ZeRO
gave it. It is written where the optimizer steps on it, and the weights that the model computes
with are made from it as after a step.

DeepSpeed's own loading of universal checkpoints does not do here: under ZeRO 3 it refuses what
comes from ZeRO 1 and takes steps and settings of one rank for all, and nowhere does it know the
average of the weights.

Source: ours; where a piece lies is DeepSpeed's bookkeeping (deepspeed.utils.tensor_fragment).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.model.initialization import original_name, split_dimension
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE, AveragingAdamW
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.state.consolidate import WEIGHTS
from ernie_vilg.parallel.state.whole_state import Counters, WholeState

_STEP = "step"


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What a rank's optimizer holds of a parameter."""

    name: str
    """The parameter's, the original one where it is tied."""
    parameter: nn.Parameter
    """What the model computes with: a tensor rank's cut, partitioned under ZeRO 3."""
    flat: Tensor
    """The float32 tensor that AdamW steps on, which has this piece in it."""
    in_flat: slice
    """Where in `flat`."""
    in_cut: slice
    """Where in the flattened cut."""


@torch.no_grad()
def load_whole_state(engine: Engine, source: WholeState) -> None:
    """Put a whole state into an engine; all ranks must call.

    Settings of the optimizer, the learning rate among them, stay as they are. Where the engine
    keeps no average of the weights, one in the source is left out.
    """
    zero = engine.deepspeed_engine.optimizer
    pieces = _pieces(engine, source)
    states = _states_of(engine, source)
    for flat in _flats(zero):
        _clear_state(zero.optimizer, flat, states, source.counters)
    for piece in pieces:
        for state in states:
            held = _held(zero.optimizer, piece, state)
            held.copy_(_piece_of(piece, source.read(piece.name, state), engine.groups))
    _update_model(zero)
    set_counters(engine.deepspeed_engine, source.counters)


@torch.no_grad()
def find_differences(engine: Engine, source: WholeState) -> list[str]:
    """Compare an engine with a whole state bit for bit; all ranks must call.

    What the optimizer steps on, its moments, its count of updates, and the weights that the model
    computes with. The ranks of a replica group must together hold each cut exactly once.

    Returns:
        what differs on this rank, in words; nothing if all is as in the source.
    """
    zero = engine.deepspeed_engine.optimizer
    pieces = _pieces(engine, source)
    differences = _missing_pieces(engine, source, pieces)
    for piece in pieces:
        for state in _states_of(engine, source):
            expected = _piece_of(piece, source.read(piece.name, state), engine.groups)
            if not _same_bits(_held(zero.optimizer, piece, state), expected):
                differences.append(f"{state} of {piece.name}")
    steps = {float(zero.optimizer.state[flat][_STEP]) for flat in _flats(zero)}
    if steps != {source.counters.optimizer_steps}:
        differences.append("the optimizer's count of updates")
    for name, parameter in _named(engine, source):
        held, expected = _computing_with(parameter, source.read(name, WEIGHTS), engine.groups, name)
        if not _same_bits(held, expected.to(held.dtype)):
            differences.append(f"the model's {name}")
    return differences


def set_counters(engine: Any, counters: Counters) -> None:
    """Let a DeepSpeed engine count on from where another one was."""
    engine.global_steps = counters.global_steps
    engine.global_samples = counters.global_samples
    engine.skipped_steps = counters.skipped_steps
    if getattr(engine.optimizer, "dynamic_loss_scale", False):
        for key, value in counters.loss_scale.items():
            setattr(engine.optimizer.loss_scaler, key, value)


def _named(engine: Engine, source: WholeState) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in engine.local_parameters():
        yield original_name(name, source.config), parameter


def _states_of(engine: Engine, source: WholeState) -> tuple[str, ...]:
    keeps_average = isinstance(engine.deepspeed_engine.optimizer.optimizer, AveragingAdamW)
    return tuple(state for state in source.states if keeps_average or state != WEIGHT_AVERAGE)


def _pieces(engine: Engine, source: WholeState) -> list[_Piece]:
    names = {parameter: name for name, parameter in _named(engine, source)}
    zero = engine.deepspeed_engine.optimizer
    if _is_zero3(zero):
        return list(_zero3_pieces(zero, names, engine.groups))
    return list(_zero12_pieces(zero, names))


def _is_zero3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _flats(zero: Any) -> list[Tensor]:
    """Return every tensor that AdamW steps on; one of padding alone has no pieces."""
    if _is_zero3(zero):
        return list(zero.fp32_partitioned_groups_flat)
    return [flat for group in zero.optimizer.param_groups for flat in group["params"]]


def _zero12_pieces(zero: Any, names: dict[nn.Parameter, str]) -> Iterator[_Piece]:
    # BF16_Optimizer has another name for the same thing.
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups
    for settings, parameters in zip(zero.optimizer.param_groups, groups, strict=True):
        (flat,) = settings["params"]
        for parameter in parameters:
            place = parameter._hp_mapping  # None where the piece is with other ranks
            if place is not None:
                yield _Piece(
                    name=names[parameter],
                    parameter=parameter,
                    flat=flat,
                    in_flat=_slice(place.hp_fragment_address),
                    in_cut=_slice(place.lp_fragment_address),
                )


def _slice(address: Any) -> slice:
    return slice(address.start, address.start + address.numel)


def _zero3_pieces(zero: Any, names: dict[nn.Parameter, str], groups: Groups) -> Iterator[_Piece]:
    """Yield pieces as ZeRO 3 lays them: of each parameter an equal part, the last ones padded."""
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        start = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            first = min(groups.data_rank * size, parameter.ds_numel)
            end = min(first + size, parameter.ds_numel)
            yield _Piece(
                name=names[parameter],
                parameter=parameter,
                flat=flat,
                in_flat=slice(start, start + end - first),
                in_cut=slice(first, end),
            )
            start += size


def _piece_of(piece: _Piece, whole: Tensor, groups: Groups) -> Tensor:
    return _cut(piece.name, whole, groups).flatten()[piece.in_cut]


def _cut(name: str, whole: Tensor, groups: Groups) -> Tensor:
    """Return a tensor rank's share of a parameter, or of what belongs to it."""
    dimension = split_dimension(name)
    if dimension is None:
        return whole
    return whole.chunk(groups.tensor_size, dimension)[groups.tensor_rank]


def _clear_state(optimizer: Any, flat: Tensor, states: tuple[str, ...], counters: Counters) -> None:
    """Make AdamW's state of a flat tensor, as its first step would; padding stays zero."""
    optimizer.state[flat] = {
        # Where fused AdamW keeps it.
        _STEP: torch.tensor(counters.optimizer_steps, dtype=torch.float32, device=flat.device),
        **{state: torch.zeros_like(flat) for state in states if state != WEIGHTS},
    }


def _held(optimizer: Any, piece: _Piece, state: str) -> Tensor:
    """Return the part of the optimizer's own tensor that a piece of a state lies in."""
    flat = piece.flat if state == WEIGHTS else optimizer.state[piece.flat][state]
    part: Tensor = flat.detach()[piece.in_flat]
    return part


def _update_model(zero: Any) -> None:
    """Make the model's weights from the optimizer's, as DeepSpeed does after a step."""
    if not _is_zero3(zero):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # what is small is kept whole: in parts for now
    for index in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(index)
    zero.checkpoint_event_epilogue()


def _missing_pieces(engine: Engine, source: WholeState, pieces: list[_Piece]) -> list[str]:
    """Name parameters of which the data-parallel ranks do not hold each value once."""
    sizes = {name: source.shapes[name].numel() for name, _ in _named(engine, source)}
    held = dict.fromkeys(sizes, 0)
    for piece in pieces:
        held[piece.name] += piece.in_cut.stop - piece.in_cut.start
    totals = torch.tensor([held[name] for name in sizes])
    dist.all_reduce(totals, group=engine.groups.data_group)
    shares = {
        name: size // (engine.groups.tensor_size if split_dimension(name) is not None else 1)
        for name, size in sizes.items()
    }
    return [
        f"{total} of {share} values of {name} are held"
        for (name, share), total in zip(shares.items(), totals.tolist(), strict=True)
        if total != share
    ]


def _computing_with(
    parameter: nn.Parameter, whole: Tensor, groups: Groups, name: str
) -> tuple[Tensor, Tensor]:
    """Return the weights that the model computes with, or this rank's part, and what they are."""
    cut = _cut(name, whole, groups).flatten()
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().flatten(), cut
    size = parameter.ds_tensor.ds_numel
    expected = cut[groups.data_rank * size :][:size]
    return parameter.ds_tensor.detach().flatten()[: expected.numel()], expected


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare two tensors of one type, on whatever devices; a zero's sign counts, NaN is equal."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = torch.int32 if one.element_size() == 4 else torch.int16
    return one.contiguous().view(bits).cpu().equal(other.contiguous().view(bits).cpu())
