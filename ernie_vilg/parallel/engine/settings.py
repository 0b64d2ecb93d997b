"""The settings of an engine: precision on this machine, and DeepSpeed's configuration."""

from dataclasses import dataclass
from typing import Any

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError

FP8_CAPABILITY = (8, 9)
"""Lowest compute capability with 8-bit products: that of Ada; Hopper has 9.0."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of both engines."""

    run: PretrainConfig
    """Settings of the run."""
    precision: torch.dtype
    """Data type of weights and activations."""
    num_micro_batches: int
    """Number of forward passes per step and replica."""


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


def deepspeed_config(settings: EngineSettings) -> dict[str, Any]:
    """Return DeepSpeed's whole configuration of a run."""
    layout = settings.run.parallelism
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": settings.num_micro_batches,
        "gradient_clipping": settings.run.optimizer.gradient_clipping,
        "zero_optimization": {"stage": layout.zero_stage},
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in every pass
    }
    if settings.run.training.ema_decay:
        # DeepSpeed recognizes AdamW by its exact type; the averaging optimizer is a subclass.
        config["zero_allow_untested_optimizer"] = True
    if layout.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": torch.cuda.is_available(),
        }
        # Keep torch's AdamW; DeepSpeed's own for CPUs would be compiled at the start.
        config["zero_force_ds_cpu_optimizer"] = False
    if layout.sequence_parallel:
        # DeepSpeed assumes that activations are replicated across tensor ranks and would send only
        # a slice between stages; with sequence parallelism they are not replicated.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if settings.precision == torch.bfloat16:
        # Gradients are added to their float32 sums during the backward pass, one after another.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.precision == torch.float16:
        config["fp16"] = {"enabled": True}  # loss_scale 0, its default: dynamic
    return config
