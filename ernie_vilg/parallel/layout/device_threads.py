"""Threads that use this rank's GPU and no other.

CUDA's current device belongs to a thread, and is GPU 0 in a new one. A thread that asks whether an
event has passed, or frees pinned memory, would open a context on GPU 0, half a gigabyte there for
each rank of the machine.
"""

import threading
from collections.abc import Callable

import torch


def device_thread(
    target: Callable[[], object], device: torch.device, *, name: str, daemon: bool = True
) -> threading.Thread:
    """Return a thread, not started yet, whose CUDA calls use a device.

    Args:
        target: function that the thread runs.
        device: device of this rank; a CPU needs nothing.
        name: name of the thread in stacks.
        daemon: whether the process may end before the thread does.
    """

    def run() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        target()

    return threading.Thread(target=run, name=name, daemon=daemon)
