"""Equipment of the machine: Python, libraries, the card, and the time that imports take."""

import platform
import time

from benchmarks.support.measurer import Result


def versions() -> Result:
    """Return the versions that decide what runs, the card, and the seconds of the imports."""
    started = time.monotonic()
    import deepspeed
    import megatron.core
    import torch

    has_cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "DeepSpeed": deepspeed.__version__,
        "megatron-core": megatron.core.__version__,
        "card": torch.cuda.get_device_name() if has_cuda else "",
        "accelerator": deepspeed.accelerator.get_accelerator().device_name(),
        "imports": f"{time.monotonic() - started:.1f} s",
    }
