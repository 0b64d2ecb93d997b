"""The numeric precision of a run on this machine."""

import torch

from ernie_vilg.errors import InputError


def machine_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of a setting `precision`.

    Args:
        name: bf16, fp16, fp32 or auto, which is bf16 on a GPU or a CPU with AMX, else fp32.
        device: device of this rank.

    Raises:
        InputError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise InputError(
            "precision=fp16 on a CPU, where float16 is slow or not supported: set "
            "precision=bf16, fp32 or auto, or start on a GPU"
        )
    if name == "auto":
        name = "bf16" if device.type == "cuda" or cpu_has_amx() else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def cpu_has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware; otherwise fp32 is faster."""
    return bool(torch.cpu._is_amx_tile_supported())
