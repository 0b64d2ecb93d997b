"""Settings of how an image tokenizer's codebook is trained.

The rule by which a vector becomes a code, `image_tokenizer.quantizer`, is stored with the weights;
these settings end with the training.
"""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import (
    Fraction,
    FractionBelowOne,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    Settings,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(Settings, section="codebook"):
    """Start, upkeep and regularisation of the codes."""

    initialization: Literal["spread", "kmeans"] = "spread"
    """Start of the codes on encoder outputs of the first batch: "spread" draws outputs that are far
    apart (k-means++), "kmeans" moves them to the means of their clusters afterwards."""
    kmeans_iterations: NaturalInt = 10
    """Number of rounds of initialization=kmeans."""
    revive_every: NaturalInt = 100
    """Interval in steps after which unused codes are moved to encoder outputs that are far from
    every code; 0 moves none."""
    revive_until: Fraction = 0.5
    """Fraction of the run after which no code is moved, so that all settle."""
    straight_through: Literal["identity", "rotation"] = "identity"
    """Gradient of the encoder: "identity" passes the decoder's unchanged, "rotation" turns and
    scales it as the code lies to the output (arXiv:2410.06424)."""
    codebook_weight: NaturalFloat = 1.0
    """Weight of the mean squared distance that moves codes to encoder outputs, with quantizer
    nearest, normalized and simvq; with ema, averages move them, with gumbel the whole loss does."""
    commitment_weight: NaturalFloat = 0.25
    """Weight of the mean squared distance that moves encoder outputs to codes; gumbel has none."""
    entropy_weight: NaturalFloat = 0.0
    """Weight of the entropy term, which makes each choice of a code sure and all codes equally
    frequent (arXiv:2310.05737); 0 leaves it out."""
    entropy_temperature: PositiveFloat = 0.01
    """Temperature of the soft choices in the entropy term."""
    ema_decay: FractionBelowOne = 0.99
    """Decay per step of the averages that are the codes with quantizer=ema."""
    gumbel_choice: Literal["hard", "soft"] = "hard"
    """Vectors in training with quantizer=gumbel: "hard" decodes the drawn code's, with the gradient
    of the soft choice; "soft" decodes the mean of all codes' under the soft choice."""
    gumbel_temperature: PositiveFloat = 1.0
    """Temperature of the soft choice with quantizer=gumbel at the first step."""
    final_gumbel_temperature: PositiveFloat = 0.0625
    """Temperature at the end of the temperature's cosine fall."""
    gumbel_fall: Fraction = 0.5
    """Fraction of the run over which the temperature falls."""
    gumbel_kl_weight: NaturalFloat = 5.0e-4
    """Weight of the divergence of the choices from uniform ones, with quantizer=gumbel."""

    def check_quantizer(self, quantizer: str) -> None:
        """Check that these settings mean something for a quantizer.

        Args:
            quantizer: value of image_tokenizer.quantizer.

        Raises:
            InputError: a setting would do nothing, or no code would move.
        """
        if quantizer == "gumbel":
            self._check_gumbel()
        elif quantizer != "ema" and self.codebook_weight == 0:
            raise InputError(
                f"codebook.codebook_weight=0 with image_tokenizer.quantizer={quantizer}: no code "
                "would move; set a weight above 0, or quantizer=ema, whose codes are averages"
            )

    def _check_gumbel(self) -> None:
        if self.initialization == "kmeans":
            raise InputError(
                "codebook.initialization=kmeans with image_tokenizer.quantizer=gumbel: logits "
                "choose its codes, which do not lie among encoder outputs; leave it out"
            )
        if self.straight_through == "rotation":
            raise InputError(
                "codebook.straight_through=rotation with image_tokenizer.quantizer=gumbel: its "
                "gradient is that of the soft choice; leave it out"
            )
        if self.entropy_weight > 0:
            raise InputError(
                f"codebook.entropy_weight={self.entropy_weight} with "
                "image_tokenizer.quantizer=gumbel: the entropy term is for choices by distance; "
                "set codebook.gumbel_kl_weight, which makes codes equally frequent"
            )
