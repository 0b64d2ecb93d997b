"""How the codebook starts, and how codes that nobody uses come back, alike on every rank.

Every decision is the leader's: it sees the encoder outputs and the counts of all ranks, and
the others receive its codebook.

Source: ours; see ernie_vilg.vqgan.quantizer for the rule by which codes are chosen.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.vqgan.quantizer import VectorQuantizer, choose_spread_rows, flatten_grid


def initialize_codebook(
    quantizer: VectorQuantizer, vectors: Tensor, generator: torch.Generator
) -> None:
    """Put every code on an encoder output; all ranks must call.

    Args:
        quantizer: whose codebook is set.
        vectors: this rank's encoder outputs, float [batch, embedding, grid, grid].
        generator: on the vectors' device.
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
        quantizer: whose codebook is changed.
        optimizer: AdamW, whose moments of the moved codes are forgotten.
        vectors: this rank's encoder outputs, float [batch, embedding, grid, grid].
        counts: uses per code on this rank, int64 [codebook].
        generator: on the vectors' device.

    Returns:
        how many codes moved.
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
    shares = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, rows)
    return torch.cat(shares)
