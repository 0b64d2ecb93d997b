"""Initialization of the codebook and revival of unused codes, the same on every rank.

The leader decides with the encoder outputs and counts of all ranks, and broadcasts its codebook.
`ernie_vilg.vqgan.quantizers.nearest` has the rule by which codes are chosen.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.vqgan.quantizers.nearest import VectorQuantizer, choose_spread_rows, flatten_grid


def initialize_codebook(
    quantizer: VectorQuantizer, vectors: Tensor, generator: torch.Generator
) -> None:
    """Set every code to an encoder output; all ranks must call.

    Args:
        quantizer: the quantizer whose codebook is set.
        vectors: this rank's encoder outputs, float [batch, embedding, grid, grid].
        generator: random generator on the vectors' device.
    """
    rows = _rows_of_all_ranks(vectors)
    if dist.get_rank() == LEADER:
        with torch.no_grad():
            quantizer.codebook.copy_(choose_spread_rows(rows, len(quantizer.codebook), generator))
    dist.broadcast(quantizer.codebook.detach(), src=LEADER)


def revive_unused_codes(
    quantizer: VectorQuantizer,
    optimizer: Optimizer,
    vectors: Tensor,
    counts: Tensor,
    generator: torch.Generator,
) -> int:
    """Move unused codes to encoder outputs that are far from every used one; all ranks must call.

    Args:
        quantizer: the quantizer whose codebook is changed.
        optimizer: AdamW; its moments of the moved codes are set to 0.
        vectors: this rank's encoder outputs, float [batch, embedding, grid, grid].
        counts: uses per code on this rank, int64 [codebook].
        generator: random generator on the vectors' device.

    Returns:
        the number of moved codes.
    """
    counts = counts.clone()
    dist.all_reduce(counts)
    unused = (counts == 0).nonzero().flatten()
    if len(unused) == 0:
        return 0
    rows = _rows_of_all_ranks(vectors)
    codebook = quantizer.codebook
    if dist.get_rank() == LEADER:
        with torch.no_grad():
            used = codebook[counts > 0]
            codebook[unused] = choose_spread_rows(rows, len(unused), generator, codebook=used)
    dist.broadcast(codebook.detach(), src=LEADER)
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[codebook][name][unused] = 0
    return len(unused)


def _rows_of_all_ranks(vectors: Tensor) -> Tensor:
    """Return all ranks' vectors as rows in the order of the global batch."""
    rows = flatten_grid(vectors.detach().float()).contiguous()
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)
