"""Gradients through the choice of a code, which has none of its own.

Source: straight-through, VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937); rotation trick,
Fifty et al. 2024, arXiv:2410.06424.
"""

import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1.0e-6  # smallest length to divide by


def straight_through(vectors: Tensor, quantized: Tensor) -> Tensor:
    """Return the codes' vectors with a gradient that reaches the encoder outputs unchanged.

    Args:
        vectors: encoder outputs, float32 [rows, embedding].
        quantized: vectors of their codes, of the same shape.
    """
    # The bracket is exactly 0, so that training decodes the very vectors that codes stand for.
    return quantized.detach() + (vectors - vectors.detach())


def rotation_trick(vectors: Tensor, quantized: Tensor) -> Tensor:
    """Return the codes' vectors as rotated and scaled encoder outputs.

    Rotation and scale count as constants, so that the gradient keeps its angle to the code when it
    moves to the encoder output.

    Args:
        vectors: encoder outputs, float32 [rows, embedding].
        quantized: vectors of their codes, of the same shape.
    """
    target = quantized.detach()
    length = vectors.detach().norm(dim=1, keepdim=True).clamp_min(_EPSILON)
    target_length = target.norm(dim=1, keepdim=True)
    start = vectors.detach() / length
    end = target / target_length.clamp_min(_EPSILON)
    middle = F.normalize(start + end, dim=1, eps=_EPSILON)
    # Two reflections: start goes to -middle's mirror image and from there to end.
    turned = (
        vectors
        - 2 * middle * (middle * vectors).sum(dim=1, keepdim=True)
        + 2 * end * (start * vectors).sum(dim=1, keepdim=True)
    )
    turned = turned * (target_length / length)
    return target + (turned - turned.detach())
