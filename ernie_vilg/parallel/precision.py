"""Which precision a machine computes in.

Source: ours.
"""

import torch


def machine_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve a setting `precision`.

    Args:
        name: bf16, fp32, or auto: bf16 on a GPU and on a CPU with AMX, else fp32.
        device: this rank's.
    """
    if name == "auto":
        name = "bf16" if device.type == "cuda" or cpu_has_amx() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware; without, bf16 is slower."""
    return bool(torch.cpu._is_amx_tile_supported())
