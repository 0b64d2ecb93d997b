"""The nearest of codes of length 1, for encoder outputs that are scaled to length 1.

Distance then depends on the direction alone, so that few numbers per code suffice and no code falls
out of use because of its length.

Source: ViT-VQGAN (Yu et al. 2021, arXiv:2110.04627), used by LlamaGen (arXiv:2406.06525).
"""

import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.vqgan.quantizers.nearest import NearestQuantizer


class NormalizedQuantizer(NearestQuantizer):
    """Codebook whose rows are scaled to length 1 wherever they are used."""

    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding] of length 1."""
        return self.to_code_space(self.codebook)

    def to_code_space(self, rows: Tensor) -> Tensor:
        """Return vectors scaled to length 1, float32 [rows, embedding]."""
        return F.normalize(rows, dim=1)
