"""Equal inputs give equal bits, so that a resumed run equals one that never stopped.

On a CPU torch refuses every operation that is not deterministic. On a GPU that mode would also turn
off tuning of compiled kernels, and a step needs it for nothing: it has no operation that adds in
the order in which threads arrive (tests/parallel/layout/test_determinism.py holds this).
FlexAttention's backward pass has one program per block of queries and one per block of keys, and
adds nothing atomically. Two libraries choose: cuDNN among convolutions, of an end-to-end
reconstructor only, and cuBLAS by its workspace, which `launch` sets.

Source: torch's notes on reproducibility.
"""

import torch


def make_deterministic(device: torch.device) -> None:
    """Make this process compute the same bits at every start.

    Args:
        device: device of this rank.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        return
    torch.use_deterministic_algorithms(True)
    # It would also fill every new tensor, DeepSpeed's buffers of 2 GB included.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
