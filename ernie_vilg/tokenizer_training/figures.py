"""The figures of an image tokenizer's steps, by name, and their log line."""

from torch import Tensor

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.runs.meter import Metrics, waits
from ernie_vilg.system.progress import duration
from ernie_vilg.tokenizer_training.results import metrics_of, num_results

_SHOWN = {
    "reconstruction_loss": "reconstruction",
    "perceptual_loss": "perceptual",
    "commitment_loss": "commitment",
    "adversarial_loss": "adversarial",
    "adaptive_factor": "adaptive weight",
    "discriminator_loss": "discriminator",
}
"""Words in the log line for those terms that a run has."""


class TokenizerFigures:
    """The figures of a run of the image tokenizer."""

    def __init__(self, config: TrainImageTokenizerConfig) -> None:
        self._config = config
        self.num_losses = num_results(config)
        """Length of the results of a step."""

    def losses(self, sums: Tensor, num_steps: int) -> Metrics:
        """Return the terms of the loss, PSNR and the use of codes; arguments as for
        `metrics_of`.
        """
        return dict(metrics_of(sums, num_steps, self._config))

    def speed(self, samples_per_second: float, world_size: int) -> Metrics:
        """Return the run's speed."""
        return {"images_per_second": samples_per_second}

    def line(self, step: int, steps: int, metrics: Metrics) -> str:
        """Return the log line of a step."""
        terms = "".join(
            f"{words} {metrics[name]:.4f}  " for name, words in _SHOWN.items() if name in metrics
        )
        left = duration((steps - step) * metrics["seconds_per_step"])
        return (
            f"step {step}/{steps}  loss {metrics['loss']:.4f}  {terms}"
            f"PSNR {metrics['psnr']:.2f} dB  codes used {100 * metrics['codebook_usage']:.0f}%  "
            f"perplexity {metrics['perplexity']:.1f}  "
            f"gradient norm {metrics['gradient_norm']:.2f}  rate {metrics['learning_rate']:.2e}  "
            f"{metrics['images_per_second']:.0f} images/s  "
            f"{waits(metrics)}{left} left"
        )
