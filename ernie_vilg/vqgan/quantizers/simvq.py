"""The nearest of codes that are one learned linear map of fixed random vectors.

The gradient of any used code changes the map and thereby moves all codes, unused ones too. Fixed
vectors and map are stored apart, not folded into one codebook, so that training can go on from an
exported tokenizer; encoding multiplies them once per call.

Source: SimVQ (Zhu et al. 2024, arXiv:2411.02038).
"""

import torch
from torch import Tensor, nn

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.nearest import NearestCodeQuantizer


class SimVQQuantizer(NearestCodeQuantizer):
    """Fixed vectors, float32 [codebook, embedding], under a map [embedding, embedding].

    The map starts as the identity.
    """

    fixed_vectors: Tensor

    def __init__(self, codebook_size: int, embedding_size: int, config: CodebookConfig) -> None:
        super().__init__(config)
        self.register_buffer("fixed_vectors", torch.randn(codebook_size, embedding_size))
        self.code_map = nn.Parameter(torch.eye(embedding_size))

    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""
        return self.fixed_vectors @ self.code_map.t()

    @torch.no_grad()
    def set_codes(self, indices: Tensor, rows: Tensor) -> None:
        """Set the fixed vectors of some codes so that the map takes them to encoder outputs.

        The map stays, and with it all other codes. Where the map has no full rank, codes come as
        near to the outputs as it allows.

        Args:
            indices: codes, int64 [count].
            rows: encoder outputs, float32 [count, embedding].
        """
        inverse = torch.linalg.pinv(self.code_map.double())
        self.fixed_vectors[indices] = (rows.double() @ inverse.t()).float()
