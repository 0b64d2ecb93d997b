"""Construction of the quantizer that the settings name."""

from collections.abc import Callable

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.vqgan.quantizers.ema import EMAQuantizer
from ernie_vilg.vqgan.quantizers.gumbel import GumbelQuantizer
from ernie_vilg.vqgan.quantizers.nearest import NearestQuantizer
from ernie_vilg.vqgan.quantizers.normalized import NormalizedQuantizer
from ernie_vilg.vqgan.quantizers.quantizer import Quantizer
from ernie_vilg.vqgan.quantizers.simvq import SimVQQuantizer

_QUANTIZERS: dict[str, Callable[[int, int, CodebookConfig], Quantizer]] = {
    "nearest": NearestQuantizer,
    "ema": EMAQuantizer,
    "normalized": NormalizedQuantizer,
    "simvq": SimVQQuantizer,
    "gumbel": GumbelQuantizer,
}


def build_quantizer(
    config: ImageTokenizerConfig, codebook: CodebookConfig | None = None
) -> Quantizer:
    """Build a quantizer with random codes.

    Args:
        config: architecture, which names the rule and the size of the codebook.
        codebook: settings of training; None: the defaults, for a tokenizer that is only used.
    """
    return _QUANTIZERS[config.quantizer](
        config.codebook_size, config.embedding_size, codebook or CodebookConfig()
    )
