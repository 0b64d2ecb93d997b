"""What a step did, gathered on the device and read once per log line.

Source: ours; MFU as in PaLM (arXiv:2204.02311, appendix B): model FLOPs over peak FLOPs.
"""

import resource
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.parallel.engine import Engine

Metrics = dict[str, float]


@dataclass(kw_only=True)
class Meter:
    """Sums of the steps since the last log line."""

    losses: Tensor
    """`Losses.detached` summed over steps, float32 [4] on the device."""
    steps: int = 0
    """Steps since the last log line."""
    data_seconds: float = 0.0
    """Time spent waiting for batches."""
    since: float = 0.0
    """`time.monotonic()` of the last log line."""

    def __post_init__(self) -> None:
        self.since = time.monotonic()

    def add(self, losses: Tensor, data_seconds: float) -> None:
        """Count one step; copies nothing to the host."""
        self.losses += losses
        self.data_seconds += data_seconds
        self.steps += 1

    def pause(self, seconds: float) -> None:
        """Leave out time that went into something else than steps."""
        self.since += seconds

    def read(self, engine: Engine, config: PretrainConfig) -> Metrics:
        """Return the metrics since the last call and start again; all ranks must call."""
        total, text_to_image, image_to_text, reconstruction = (
            engine.mean_losses(self.losses) / self.steps
        ).tolist()
        seconds = max(time.monotonic() - self.since, 1e-9)
        pairs_per_second = self.steps * config.parallelism.global_batch_size / seconds
        flops = pairs_per_second * training_flops_per_pair(config.model)
        world_size = engine.groups.world_size
        metrics = {
            "loss": total,
            "loss_text_to_image": text_to_image,
            "loss_image_to_text": image_to_text,
            "gradient_norm": engine.gradient_norm(),
            "seconds_per_step": seconds / self.steps,
            "data_seconds_per_step": self.data_seconds / self.steps,
            "pairs_per_second": pairs_per_second,
            "tokens_per_second": pairs_per_second * 2 * config.model.seq_length,
            "flops_per_second_per_device": flops / world_size,
            "peak_memory_bytes": peak_memory_bytes(engine.groups.device),
        }
        if config.model.reconstructor.is_end_to_end:
            metrics["loss_reconstruction"] = reconstruction
        if config.cluster.peak_flops_per_device is not None:
            metrics["mfu"] = flops / world_size / config.cluster.peak_flops_per_device
        self.losses.zero_()
        self.steps, self.data_seconds, self.since = 0, 0.0, time.monotonic()
        return metrics


def peak_memory_bytes(device: torch.device) -> float:
    """Return this rank's peak: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # Linux counts KiB
