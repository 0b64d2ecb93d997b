"""Which precision a machine computes in.

Source: ours.
"""

import torch

from ernie_vilg.errors import InputError


def machine_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve a setting `precision`.

    Args:
        name: bf16, fp16, fp32, or auto: bf16 on a GPU and on a CPU with AMX, else fp32.
        device: this rank's.

    Raises:
        InputError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise InputError(
            "precision=fp16 on a CPU, which computes in float16 slowly or not at all: set "
            "precision=bf16, fp32 or auto, or start on a GPU"
        )
    if name == "auto":
        name = "bf16" if device.type == "cuda" or cpu_has_amx() else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware; without, bf16 is slower."""
    return bool(torch.cpu._is_amx_tile_supported())
