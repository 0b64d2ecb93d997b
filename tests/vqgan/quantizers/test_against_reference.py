"""Rules that vector-quantize-pytorch has too give its codes, vectors, losses and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import LFQ, SimVQ, VectorQuantize

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.ema import EMAQuantizer
from ernie_vilg.vqgan.quantizers.entropy import entropy_loss
from ernie_vilg.vqgan.quantizers.nearest import NearestQuantizer
from ernie_vilg.vqgan.quantizers.normalized import NormalizedQuantizer
from ernie_vilg.vqgan.quantizers.simvq import SimVQQuantizer
from tests.vqgan.quantizers.made import random_grid

CODES, EMBEDDING = 12, 4
SHAPE = (3, EMBEDDING, 5, 5)


def reference(codebook: Tensor, **settings: Any) -> VectorQuantize:
    made = VectorQuantize(
        dim=EMBEDDING,
        codebook_size=CODES,
        accept_image_fmap=True,
        threshold_ema_dead_code=0,
        **{"ema_update": False, "rotation_trick": False, "commitment_weight": 0.25, **settings},
    )
    with torch.no_grad():
        made._codebook.embed.copy_(codebook[None])
        made._codebook.embed_avg.copy_(codebook[None])
    return made.train()


def gradient(output: Tensor, vectors: Tensor) -> Tensor:
    """Gradient of a loss that weighs every number differently."""
    weights = random_grid(*SHAPE, seed=9)
    return torch.autograd.grad((output * weights).sum(), vectors, retain_graph=True)[0]


@pytest.mark.parametrize("straight_through", ["identity", "rotation"])
def test_nearest_code(straight_through: Any) -> None:
    ours = NearestQuantizer(CODES, EMBEDDING, CodebookConfig(straight_through=straight_through))
    theirs = reference(ours.codebook, rotation_trick=straight_through == "rotation")
    vectors = random_grid(*SHAPE).requires_grad_()

    quantized = ours(vectors)
    expected, codes, loss = theirs(vectors)

    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(quantized.vectors, expected)
    torch.testing.assert_close(quantized.losses["commitment_loss"], loss.squeeze())
    torch.testing.assert_close(gradient(quantized.vectors, vectors), gradient(expected, vectors))


def test_averaged_codebook_over_ten_steps() -> None:
    ours = EMAQuantizer(CODES, EMBEDDING, CodebookConfig(ema_decay=0.8))
    theirs = reference(ours.codebook, ema_update=True, decay=0.8)

    for step in range(10):
        vectors = random_grid(*SHAPE, seed=step) + step / 10
        quantized = ours(vectors)
        expected, codes, _ = theirs(vectors)

        assert torch.equal(quantized.codes, codes)
        torch.testing.assert_close(quantized.vectors, expected)
        assert quantized.statistics is not None
        ours.update(quantized.statistics, torch.tensor(True))
        torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0])
    torch.testing.assert_close(ours.average_counts, theirs._codebook.cluster_size[0])
    torch.testing.assert_close(ours.average_sums, theirs._codebook.embed_avg[0])


def test_normalized_code() -> None:
    ours = NormalizedQuantizer(CODES, EMBEDDING, CodebookConfig())
    theirs = reference(ours.code_vectors(), use_cosine_sim=True)
    vectors = random_grid(*SHAPE).requires_grad_()

    quantized = ours(vectors)
    expected, codes, loss = theirs(vectors)

    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(quantized.vectors, expected)
    torch.testing.assert_close(quantized.losses["commitment_loss"], loss.squeeze())
    torch.testing.assert_close(gradient(quantized.vectors, vectors), gradient(expected, vectors))


@pytest.mark.parametrize("straight_through", ["identity", "rotation"])
def test_simvq(straight_through: Any) -> None:
    ours = SimVQQuantizer(CODES, EMBEDDING, CodebookConfig(straight_through=straight_through))
    theirs = SimVQ(
        EMBEDDING, CODES, channel_first=True, rotation_trick=straight_through == "rotation"
    )
    with torch.no_grad():
        ours.code_map.copy_(theirs.code_transform.weight)
        ours.fixed_vectors.copy_(theirs.frozen_codebook)
    vectors = random_grid(*SHAPE).requires_grad_()

    quantized = ours(vectors)
    expected, codes, loss = theirs(vectors)
    total = torch.stack(list(quantized.losses.values())).sum()

    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(quantized.vectors, expected)
    torch.testing.assert_close(total, loss)
    torch.testing.assert_close(gradient(quantized.vectors, vectors), gradient(expected, vectors))
    torch.testing.assert_close(
        torch.autograd.grad(total, ours.code_map),
        torch.autograd.grad(loss, theirs.code_transform.weight),
    )


def test_entropy_of_codes_of_one_length() -> None:
    # LFQ's codes are the corners of a cube: the distance to each is -2 times the inner product and
    # a number that is the same for all. It raises probabilities to at least 1e-5 in logarithms,
    # which at this temperature none is below.
    theirs = LFQ(codebook_size=16, entropy_loss_weight=1.0, diversity_gamma=1.0).train()
    rows = random_grid(30, 4).mul(0.3).requires_grad_()

    ours = entropy_loss(rows, theirs.codebook, temperature=2.0)
    _, breakdown = theirs(rows[None], inv_temperature=0.5, return_loss_breakdown=True)
    expected = breakdown.per_sample_entropy - breakdown.batch_entropy

    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, rows), torch.autograd.grad(expected, rows), rtol=1e-4, atol=1e-6
    )
