"""The numbers of a step of the image tokenizer, as one vector that the loop adds up.

The vector begins with `RESULTS`, means over this rank's pictures, and ends with the number of uses
of each code times the number of ranks, so that means over ranks are those of the whole batch. A
term that a step lacks is 0 in it; a run's metrics are those of its settings.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.vqgan.losses.pixel import psnr
from ernie_vilg.vqgan.quantizers.usage import codebook_usage

RESULTS = (
    "loss",
    "reconstruction_loss",
    "perceptual_loss",
    "adversarial_loss",
    "commitment_loss",
    "codebook_loss",
    "entropy_loss",
    "divergence_loss",
    "adaptive_factor",
    "discriminator_loss",
    "lecam_loss",
    "real_logit",
    "fake_logit",
    "discriminator_gradient_norm",
    "squared_error",
)
"""Names of the first numbers of a step's results. "loss" is the tokenizer's, the sum of the terms
up to "divergence_loss"; "squared_error" is the mean over pixels within their range."""

_OF_DISCRIMINATOR = (
    "adversarial_loss",
    "adaptive_factor",
    "discriminator_loss",
    "lecam_loss",
    "real_logit",
    "fake_logit",
    "discriminator_gradient_norm",
)


def num_results(config: TrainImageTokenizerConfig) -> int:
    """Return the length of a step's results."""
    return len(RESULTS) + config.image_tokenizer.codebook_size


def metrics_of(sums: Tensor, num_steps: int, config: TrainImageTokenizerConfig) -> dict[str, float]:
    """Return the metrics of some steps by name.

    Args:
        sums: results summed over steps, mean over ranks, float32 [num_results] on the CPU.
        num_steps: number of steps in the sums; with 0, all metrics are NaN.
        config: settings of the run.

    Returns:
        means of the terms that the run has; "psnr" in dB, of the mean squared error;
        "codebook_usage" from 0 to 1, and "perplexity".
    """
    absent = _absent(config)
    metrics = dict(zip(RESULTS, sums[: len(RESULTS)].tolist(), strict=True))
    means = {
        name: total / num_steps if num_steps else float("nan")
        for name, total in metrics.items()
        if name not in absent
    }
    usage, perplexity = codebook_usage(sums[len(RESULTS) :]) if num_steps else (float("nan"),) * 2
    squared_error = means.pop("squared_error")
    return {
        **means,
        "psnr": psnr(squared_error),
        "codebook_usage": usage,
        "perplexity": perplexity,
    }


def _absent(config: TrainImageTokenizerConfig) -> set[str]:
    """Return the names of the results that a run with these settings lacks."""
    objective, quantizer = config.objective, config.image_tokenizer.quantizer
    absent: set[str] = set()
    if objective.perceptual.features == "none":
        absent.add("perceptual_loss")
    if not objective.adversarial.weight:
        absent.update(_OF_DISCRIMINATOR)
    if not objective.adversarial.adaptive:
        absent.add("adaptive_factor")
    if not objective.adversarial.lecam_weight:
        absent.add("lecam_loss")
    if not config.codebook.entropy_weight or quantizer == "gumbel":
        absent.add("entropy_loss")
    if quantizer == "gumbel":
        absent.add("commitment_loss")
    else:
        absent.add("divergence_loss")
    if quantizer in ("ema", "gumbel"):
        absent.add("codebook_loss")
    return absent


class StepSums:
    """Sums over the micro-batches of one step on one rank; nothing is copied to the host."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        """Start at 0.

        Args:
            codebook_size: number of codes.
            device: device of the sums.
        """
        self._sums: dict[str, Tensor] = {}  # by name, float32 []
        self._zero = torch.zeros((), device=device)
        self._code_counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)
        self.codes: list[Tensor] = []
        """Codes of each micro-batch, int64 [batch, grid, grid]."""
        self.statistics: dict[str, Tensor] = {}
        """Sums for averages: "codes" of `Quantized.statistics`, where the quantizer has some, and
        "logits" of `DiscriminatorTerms.statistics`, where the discriminator trains."""

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values of one micro-batch, by names of `RESULTS`, float32 [] each."""
        for name, value in values.items():
            assert name in RESULTS, f"{name} has no place in the results"
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()

    def add_codes(self, codes: Tensor) -> None:
        """Add the codes of one micro-batch, int64 [batch, grid, grid]."""
        self.codes.append(codes)
        flat = codes.flatten()
        # Not bincount, for which the host would wait.
        self._code_counts.index_add_(0, flat, torch.ones_like(flat))

    def add_statistics(self, name: str, statistics: Tensor) -> None:
        """Add the statistics of one micro-batch."""
        known = self.statistics.get(name)
        self.statistics[name] = statistics if known is None else known + statistics

    def spike_loss(self) -> Tensor:
        """Return the reconstruction loss, float32 [], or the sum of all values if it is not finite,
        so that a fault in any of them shows.
        """
        everything = torch.stack(list(self._sums.values())).sum()
        loss = self._sums["reconstruction_loss"]
        return torch.where(everything.isfinite(), loss, everything)

    def results(self, num_micro_batches: int, num_ranks: int, **others: Tensor) -> Tensor:
        """Return the step's results, float32 [num_results].

        Args:
            num_micro_batches: number of micro-batches in the sums.
            num_ranks: factor of the counts of codes, so that their means over ranks are sums.
            others: results that are no sums, float32 [] each.
        """
        values = {name: total / num_micro_batches for name, total in self._sums.items()} | others
        means = torch.stack([values.get(name, self._zero) for name in RESULTS])
        return torch.cat([means, num_ranks * self._code_counts.float()])
