"""Figures of the transformer's steps, by name.

Source: MFU is PaLM's (arXiv:2204.02311, appendix B): model FLOPs over peak FLOPs.
"""

from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.loss import NUM_TERMS, num_losses
from ernie_vilg.runs.meter import Metrics, waits
from ernie_vilg.system.progress import duration


class PretrainFigures:
    """The figures of a pretraining run."""

    def __init__(self, config: PretrainConfig) -> None:
        self._config = config
        self.num_losses = num_losses(config.model)
        """Length of `Losses.detached`."""

    def losses(self, sums: Tensor, num_steps: int) -> Metrics:
        """Return the losses by name; arguments as for `loss_metrics`."""
        return loss_metrics(sums, num_steps, self._config.model)

    def speed(self, samples_per_second: float, world_size: int) -> Metrics:
        """Return the run's speed, and its MFU if the kind of GPU is set."""
        return speed_metrics(samples_per_second, world_size, self._config)

    def line(self, step: int, steps: int, metrics: Metrics) -> str:
        """Return the log line of a step."""
        sizes = self._config.batch_sizes
        pairs_left = first_position(steps + 1, sizes) - first_position(step + 1, sizes)
        return log_line(step, steps, pairs_left, metrics)


def loss_metrics(sums: Tensor, num_steps: int, config: ModelConfig) -> Metrics:
    """Return the losses by name.

    Args:
        sums: `Losses.detached` summed over steps, mean over replicas, float32 [num_losses] on the
            CPU.
        num_steps: number of steps in the sums; with 0, losses are NaN.
        config: the model.
    """
    count = num_steps if num_steps else float("nan")
    total, text_to_image, image_to_text, reconstruction = (sums[:NUM_TERMS] / count).tolist()
    by_image_row, by_position, share = sums[NUM_TERMS:].split(
        [config.image_grid_size, config.text_length, config.text_length]
    )
    metrics: Metrics = {
        "loss": total,
        "loss_text_to_image": text_to_image,
        "loss_image_to_text": image_to_text,
    }
    if config.reconstructor.is_end_to_end:
        metrics["loss_reconstruction"] = reconstruction
    metrics["loss_by_image_row"] = (by_image_row / count).tolist()
    metrics["loss_by_text_position"] = [
        loss / weight if weight else None
        for loss, weight in zip(by_position.tolist(), share.tolist(), strict=True)
    ]
    return metrics


def speed_metrics(pairs_per_second: float, world_size: int, config: PretrainConfig) -> Metrics:
    """Return the run's speed, and its MFU if the kind of GPU is set."""
    flops_per_device = pairs_per_second * training_flops_per_pair(config.model) / world_size
    metrics: Metrics = {
        "pairs_per_second": pairs_per_second,
        "tokens_per_second": pairs_per_second * 2 * config.model.seq_length,
        "flops_per_second_per_device": flops_per_device,
    }
    if config.gpu is not None:
        metrics["mfu"] = flops_per_device / config.gpu.peak_flops
    return metrics


def log_line(step: int, steps: int, pairs_left: int, metrics: Metrics) -> str:
    """Return the log line of a step, after which `pairs_left` pairs are to be trained on."""
    speed = (
        f"MFU {100 * metrics['mfu']:.1f}%"
        if "mfu" in metrics
        else f"{metrics['flops_per_second_per_device'] / 1e9:.1f} GFLOP/s per rank"
    )
    reconstruction = (
        f"reconstruction {metrics['loss_reconstruction']:.4f}  "
        if "loss_reconstruction" in metrics
        else ""
    )
    left = duration(pairs_left / metrics["pairs_per_second"])
    return (
        f"step {step}/{steps}  loss {metrics['loss']:.4f}  "
        f"text-to-image {metrics['loss_text_to_image']:.4f}  "
        f"image-to-text {metrics['loss_image_to_text']:.4f}  {reconstruction}"
        f"gradient norm {metrics['gradient_norm']:.2f}  rate {metrics['learning_rate']:.2e}  "
        f"{metrics['tokens_per_second']:,.0f} tokens/s  {speed}  {waits(metrics)}{left} left"
    )
