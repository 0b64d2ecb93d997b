"""Whether what several ranks hold alike is alike, bit for bit.

Compared are the weights of all replicas (under ZeRO 3 the small ones that stay whole) and the
constants of the model; between tensor ranks also the parameters that tensor parallelism does not
split, with their float32 copies and moments, of which every tensor rank has its own; and between
the first and the last stage the embedding tables that are tied. What one rank alone holds, such as
its share of the optimizer's state, has nothing to be compared with.

Each tensor becomes one number of 64 bits, in one pass on its device: its bits, taken as integers
of 32 bits, times odd multipliers of 64 bits drawn at random for each place, summed modulo 2^64.
Sums of integers do not depend on their order. A change within one such integer changes the number
for certain, and changes of several cancel each other with a chance of about 2^-32.

Source: ours; multilinear hashing, Lemire and Kaser 2014 (arXiv:1202.4961).
"""

import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from ernie_vilg.model.initialization import TIED, original_name, split_dimension
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.engine.zero_shards import Piece
from ernie_vilg.parallel.layout.collectives import gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups

_BLOCK = 2**18  # places that share the multipliers, which fit the cache of a CPU
_SEED = 20_211_231
_KINDS = {"exp_avg": "first moment", "exp_avg_sq": "second moment", WEIGHT_AVERAGE: "average"}


class Copy(NamedTuple):
    """What names a tensor on every rank that has it."""

    name: str
    """Of the parameter, or of the one that it is tied to, or of the constant."""
    kind: str
    """What of the parameter: weight, float32 weight, first moment, ..."""
    tensor: int | None
    """Which part of a tensor that tensor ranks divide among them; None: each has all of it."""
    data: int | None
    """Which part of a tensor that data-parallel ranks divide among them."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Copies of one tensor that are not alike."""

    name: str
    """Of the parameter or constant."""
    kind: str
    """Which of its copies."""
    holders: tuple[int, ...]
    """Ranks that have one."""
    suspects: tuple[int, ...]
    """Ranks whose copy most others do not share; all of them where there is no majority."""

    @property
    def is_settled(self) -> bool:
        """Whether a majority says who is wrong."""
        return len(self.suspects) < len(self.holders)


@dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """The differences between ranks, the same report on every rank."""

    differences: tuple[Difference, ...]
    """In the order of names; empty where everything is alike."""
    ranks: Mapping[int, str]
    """Every rank that a difference names, in words."""


class Digests:
    """Turns tensors into numbers that differ where the tensors do."""

    def __init__(self) -> None:
        self._multipliers: dict[torch.device, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """Return a tensor's number, int64 [], on its device.

        Tensors of different shapes or types are not meant to be compared.
        """
        words = _as_integers(tensor.detach())
        odd = self._odd_numbers(words.device)
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for index, block in enumerate(words.split(_BLOCK)):
            total += (block * odd[: len(block)]).sum() * odd[_BLOCK - 1 - index % _BLOCK]
        return total

    def _odd_numbers(self, device: torch.device) -> Tensor:
        """Return the multipliers, int64 [block], the same on every rank."""
        if device not in self._multipliers:
            generator = torch.Generator().manual_seed(_SEED)
            numbers = torch.randint(-(2**62), 2**62, (_BLOCK,), generator=generator)
            self._multipliers[device] = (2 * numbers + 1).to(device)
        return self._multipliers[device]


def check_replicas(engine: Engine) -> ReplicaReport:
    """Compare what several ranks hold alike; all ranks must call."""
    groups = engine.groups
    digests = _digests(engine)
    whole = [copy for copy in digests if copy.data is None]
    found = _differing(whole, digests, groups.data_group)
    unsplit = [copy for copy in digests if copy.tensor is None]
    found |= _differing(unsplit, digests, groups.tensor_group)
    if groups.pipeline_size > 1 and engine.settings.model.tied_embeddings:
        found |= _differing_between_stages(digests)
    suspected = set[Copy]().union(*gather_everywhere(found))
    if not suspected:
        return ReplicaReport(differences=(), ranks={})
    disputed = {copy: digest for copy, digest in digests.items() if copy in suspected}
    return _report(gather_everywhere(disputed), groups)


def _digests(engine: Engine) -> dict[Copy, int]:
    """Return the number of each tensor of this rank that another rank should have, too."""
    tensors = dict(_replicated(engine))
    digests = Digests()
    numbers = torch.stack(
        [digests.of(tensor).to(engine.groups.device) for tensor in tensors.values()]
    )
    return dict(zip(tensors, numbers.tolist(), strict=True))  # the one wait for the device


def _replicated(engine: Engine) -> Iterator[tuple[Copy, Tensor]]:
    """Yield what this rank should have in common with others, in the same order on those."""
    groups, shards = engine.groups, engine.shards
    pieces = shards.pieces() if groups.tensor_size > 1 else {}
    for name, constant in engine.deepspeed_engine.module.named_buffers():
        yield Copy(name, "constant", tensor=None, data=None), constant
    for name, parameter in engine.local_parameters():
        is_split = split_dimension(name) is not None
        if shards.is_replicated(parameter):
            shared_name = original_name(name, engine.settings.model)
            part = groups.tensor_rank if is_split else None
            yield Copy(shared_name, "weight", tensor=part, data=None), parameter
        if not is_split and parameter in pieces:
            for kind, tensor in _optimizer_tensors(shards.optimizer, pieces[parameter]):
                yield Copy(name, kind, tensor=None, data=groups.data_rank), tensor


def _optimizer_tensors(optimizer: Optimizer, piece: Piece) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's piece of a parameter's float32 copy, moments and average."""
    yield "float32 weight", piece.shard[piece.in_shard]
    state = optimizer.state.get(piece.shard, {})
    for key in (key for key in _KINDS if key in state):
        yield _KINDS[key], state[key][piece.in_shard]


def _differing(
    copies: Sequence[Copy], digests: Mapping[Copy, int], group: ProcessGroup
) -> set[Copy]:
    """Return those of which some rank of a group has another one than this rank.

    Args:
        copies: the same in the same order on all ranks of the group.
        digests: of this rank.
        group: the ranks to compare.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return set()
    mine = torch.tensor([digests[copy] for copy in copies], dtype=torch.int64)
    of_ranks = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(of_ranks, mine, group=group)
    differs = (torch.stack(of_ranks) != mine).any(dim=0).tolist()
    return {copy for copy, is_other in zip(copies, differs, strict=True) if is_other}


def _differing_between_stages(digests: Mapping[Copy, int]) -> set[Copy]:
    """Return the tied embedding tables of which the first and the last stage have others."""
    tables = {f"0.{table}.weight" for table in TIED.values()}
    of_ranks = gather_everywhere(
        {copy: digest for copy, digest in digests.items() if copy.name in tables}
    )
    values: dict[Copy, set[int]] = defaultdict(set)
    for of_rank in of_ranks:
        for copy, digest in of_rank.items():
            if copy.kind == "weight":
                values[copy].add(digest)
    return {copy for copy, different in values.items() if len(different) > 1}


def _report(of_ranks: Sequence[Mapping[Copy, int]], groups: Groups) -> ReplicaReport:
    """Have the ranks vote on what is in dispute; all ranks must call.

    Args:
        of_ranks: the numbers of what is in dispute, in the order of ranks.
        groups: this rank's place.
    """
    holders: dict[Copy, dict[int, int]] = defaultdict(dict)
    for rank, disputed in enumerate(of_ranks):
        for copy, digest in disputed.items():
            holders[copy][rank] = digest
    differences = [
        Difference(
            name=copy.name, kind=copy.kind, holders=tuple(numbers), suspects=outvoted(numbers)
        )
        for copy, numbers in holders.items()
    ]
    hosts = gather_everywhere(f"{socket.gethostname()}, process {os.getpid()}")
    named = sorted({rank for difference in differences for rank in difference.suspects})
    return ReplicaReport(
        differences=tuple(sorted(differences, key=lambda each: (each.name, each.kind))),
        ranks={
            rank: f"rank {rank} = {coordinates_of(rank, groups)} on {hosts[rank]}" for rank in named
        },
    )


def outvoted(numbers: Mapping[int, int]) -> tuple[int, ...]:
    """Return the ranks that a majority of ranks disagrees with; all where there is none.

    Args:
        numbers: by rank.
    """
    (value, votes), *_ = Counter(numbers.values()).most_common(1)
    if 2 * votes <= len(numbers):
        return tuple(numbers)
    return tuple(rank for rank, number in numbers.items() if number != value)


def _as_integers(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers of at most 32 bits each, int64 [words]."""
    flat = tensor.reshape(-1)
    if flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    for words in (torch.int32, torch.int16, torch.uint8):
        if flat.numel() * flat.element_size() % words.itemsize == 0:
            break
    is_aligned = flat.storage_offset() * flat.element_size() % words.itemsize == 0
    if words.itemsize > flat.element_size() and not is_aligned:
        flat = flat.clone()
    return flat.view(words).long()
