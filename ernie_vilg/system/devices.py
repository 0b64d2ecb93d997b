"""The device and the number format of programs that use a trained model.

`auto` takes a GPU if there is one. There it computes in bfloat16, which halves the memory that each
slot reads; on a CPU in float32, where results are equal to the last bit in every batch.
"""

import torch

from ernie_vilg.errors import InputError

_BFLOAT16_CAPABILITY = (8, 0)
"""Lowest compute capability that multiplies bfloat16: that of the A100."""


def choose_device(name: str) -> torch.device:
    """Return the device of a setting: cpu, cuda, cuda:INDEX, or auto, a GPU if there is one.

    Raises:
        InputError: the setting names a GPU that torch does not find.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"device={name} but torch finds no GPU: set device=cpu or device=auto")
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise InputError(
            f"device={name} but torch finds {count} GPU(s): set device=cuda:0 to cuda:{count - 1}, "
            "or device=auto"
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type of a setting: fp32, bf16, or auto, which is bf16 on a GPU that has it.

    Raises:
        InputError: the setting is bf16 and the GPU does not compute in it.
    """
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return torch.float32
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _BFLOAT16_CAPABILITY:
            if name == "auto":
                return torch.float32
            raise InputError(
                f"precision={name} on {torch.cuda.get_device_name(device)}, which does not compute "
                "in bfloat16: set precision=fp32 or auto"
            )
    return torch.bfloat16
