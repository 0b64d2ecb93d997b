"""The numeric precision of a run on this machine."""

import torch

from ernie_vilg.errors import InputError

FP8_CAPABILITY = (8, 9)
"""Lowest compute capability with 8-bit products: that of Ada; Hopper has 9.0."""


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


def check_fp8(device: torch.device) -> None:
    """Check that a device multiplies 8-bit floats.

    Raises:
        InputError: it is a CPU, or a GPU of a compute capability below 8.9.
    """
    remedy = (
        "set linear_precision=same, or start on a GPU of compute capability 8.9 or above, such as "
        "an H100"
    )
    if device.type != "cuda":
        raise InputError(f"linear_precision=fp8 on a CPU, which has no 8-bit products: {remedy}")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < FP8_CAPABILITY:
        raise InputError(
            f"linear_precision=fp8 on {torch.cuda.get_device_name(device)} of compute capability "
            f"{major}.{minor}, which has no 8-bit products: {remedy}"
        )


def cpu_has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware; otherwise fp32 is faster."""
    return bool(torch.cpu._is_amx_tile_supported())
