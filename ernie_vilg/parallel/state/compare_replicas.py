"""Compares, bit for bit, the tensors that several ranks must hold equally.

Replicas are compared by their weights (under ZeRO 3 by the small ones that stay whole) and by the
model's constants. Tensor ranks are compared by the parameters that tensor parallelism does not
split, whose float32 copies and moments each tensor rank updates itself. The first and last stage
are compared by their tied embedding tables. A tensor that only one rank holds is not compared.

Each tensor is hashed to one number of 64 bits in one pass on its device: its bits, read as integers
of 32 bits, are multiplied by odd random multipliers of 64 bits and summed modulo 2^64. The sum does
not depend on the order of addition. A change within one integer always changes the hash; changes of
several cancel with a probability of about 2^-32.

Source: multilinear hashing, Lemire and Kaser 2014 (arXiv:1202.4961).
"""

import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ernie_vilg.model.initialization import TIED
from ernie_vilg.parallel.layout.collectives import gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.copies import Copy
from ernie_vilg.parallel.layout.groups import Groups

_BLOCK = 2**18  # number of multipliers, which fit a CPU's cache
_SEED = 20_211_231


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A tensor whose copies differ between ranks."""

    name: str
    """Name of the parameter or constant."""
    kind: str
    """Kind of the tensor, as in `Copy`."""
    holders: tuple[int, ...]
    """Ranks that hold a copy."""
    suspects: tuple[int, ...]
    """Ranks whose copy differs from that of the majority; all holders if there is no majority."""

    @property
    def is_settled(self) -> bool:
        """Whether a majority tells which ranks are wrong."""
        return len(self.suspects) < len(self.holders)


@dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """The differences between ranks; the report is the same on every rank."""

    differences: tuple[Difference, ...]
    """Differences in the order of names; empty if all copies are equal."""
    ranks: Mapping[int, str]
    """Descriptions of the suspects, by rank."""


class Digests:
    """Hashes tensors on their devices."""

    def __init__(self) -> None:
        self._multipliers: dict[torch.device, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """Return a tensor's hash, int64 [], on its device; it tells neither shape nor type."""
        words = _as_integers(tensor.detach())
        odd = self._odd_numbers(words.device)
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for index, block in enumerate(words.split(_BLOCK)):
            total += (block * odd[: len(block)]).sum() * odd[_BLOCK - 1 - index % _BLOCK]
        return total

    def _odd_numbers(self, device: torch.device) -> Tensor:
        """Return the multipliers, int64 [block], equal on every rank."""
        if device not in self._multipliers:
            generator = torch.Generator().manual_seed(_SEED)
            numbers = torch.randint(-(2**62), 2**62, (_BLOCK,), generator=generator)
            self._multipliers[device] = (2 * numbers + 1).to(device)
        return self._multipliers[device]


class Replica(Protocol):
    """Weights and optimizer state, parts of which other ranks hold as well."""

    groups: Groups
    """Coordinates and process groups of this rank."""

    def replicated(self) -> Iterator[tuple[Copy, Tensor]]:
        """Yield the tensors that other ranks hold as well, in the same order on all of them."""


def check_replicas(engine: Replica) -> ReplicaReport:
    """Compare all tensors that several ranks hold; all ranks must call."""
    groups = engine.groups
    digests = _digests(engine)
    whole = [copy for copy in digests if copy.data is None]
    found = _differing(whole, digests, groups.data_group)
    unsplit = [copy for copy in digests if copy.tensor is None]
    found |= _differing(unsplit, digests, groups.tensor_group)
    if groups.pipeline_size > 1:
        found |= _differing_between_stages(digests)
    suspected = set[Copy]().union(*gather_everywhere(found))
    if not suspected:
        return ReplicaReport(differences=(), ranks={})
    disputed = {copy: digest for copy, digest in digests.items() if copy in suspected}
    return _report(gather_everywhere(disputed), groups)


def _digests(engine: Replica) -> dict[Copy, int]:
    """Return the hash of each tensor that another rank should hold as well."""
    tensors = dict(engine.replicated())
    digests = Digests()
    hashes = torch.stack(
        [digests.of(tensor).to(engine.groups.device) for tensor in tensors.values()]
    )
    return dict(zip(tensors, hashes.tolist(), strict=True))  # the only wait for the device


def _differing(
    copies: Sequence[Copy], digests: Mapping[Copy, int], group: ProcessGroup
) -> set[Copy]:
    """Return the copies that differ between this rank and another rank of a group.

    Args:
        copies: keys of tensors, in the same order on all ranks of the group.
        digests: hashes of this rank's tensors.
        group: ranks to compare.
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
    """Return the tied embedding tables that differ between the first and the last stage."""
    tables = {f"0.{table}.weight" for table in TIED.values()}
    mine = [each for each in digests.items() if each[0].name in tables and each[0].kind == "weight"]
    values: dict[Copy, set[int]] = defaultdict(set)
    for copy, digest in chain.from_iterable(gather_everywhere(mine)):
        values[copy].add(digest)
    return {copy for copy, different in values.items() if len(different) > 1}


def _report(of_ranks: Sequence[Mapping[Copy, int]], groups: Groups) -> ReplicaReport:
    """Find the suspects of each difference by majority; all ranks must call.

    Args:
        of_ranks: hashes of the tensors that differ, in the order of ranks.
        groups: this rank's groups.
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
    """Return the ranks that disagree with the majority; all ranks if there is no majority.

    Args:
        numbers: hash by rank.
    """
    (value, votes), *_ = Counter(numbers.values()).most_common(1)
    if 2 * votes <= len(numbers):
        return tuple(numbers)
    return tuple(rank for rank, number in numbers.items() if number != value)


def _as_integers(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers of at most 32 bits, int64 [words]."""
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
