"""Recomputation of values in the backward pass instead of keeping them.

Full checkpointing keeps only a block's input. Selective checkpointing drops values that are large
and cheap to recompute: attention probabilities, and outputs of norms and of the GELU.

Source: selective recomputation, Korthikanti et al. 2022 (arXiv:2205.05198); dropping the outputs
through torch's saved-tensor hooks is ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def recomputed(output: Tensor, compute: Callable[[], Tensor]) -> Iterator[None]:
    """Make operations in this context recompute `output` for their backward pass, not keep it.

    It frees memory only if nothing else needs `output` in the backward pass. Under torch.compile it
    does nothing: the compiler's own partitioner decides what to keep.

    Args:
        output: a contiguous tensor that the operations take as an input, in any view.
        compute: function that recomputes it, bit for bit, from tensors that are kept anyway.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    # Compare storages, not addresses: on the meta device all addresses are 0.
    storage, size = output.untyped_storage()._cdata, output.numel()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        is_output = tensor.untyped_storage()._cdata == storage and tensor.numel() == size
        return tensor.shape if is_output and tensor.is_contiguous() else tensor

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return compute().view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
