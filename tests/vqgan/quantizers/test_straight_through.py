"""The rotation trick turns the gradient as the code lies to the encoder output."""

import torch

from ernie_vilg.vqgan.quantizers.straight_through import rotation_trick


def test_gradient_is_turned_back_and_scaled() -> None:
    # The output is 90 degrees and a factor of 3 from its code: so is the gradient's pull.
    vectors = torch.tensor([[1.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[0.0, 3.0]])

    rotated = rotation_trick(vectors, codes)
    (rotated * torch.tensor([[5.0, 7.0]])).sum().backward()

    assert torch.equal(rotated, codes)
    assert vectors.grad is not None
    # Rows of the map: x -> 3 y, y -> -3 x; its transpose takes (5, 7) to (21, -15).
    torch.testing.assert_close(vectors.grad, torch.tensor([[21.0, -15.0]]))


def test_output_at_the_origin_or_opposite_its_code_gives_finite_gradients() -> None:
    vectors = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])

    rotation_trick(vectors, codes).sum().backward()

    assert vectors.grad is not None
    assert bool(vectors.grad.isfinite().all())
