"""Settings of the codebook that a quantizer has no use for are refused."""

from typing import Any

import pytest

from ernie_vilg.config.codebook import CodebookConfig


@pytest.mark.parametrize(
    ("quantizer", "settings", "message"),
    [
        pytest.param("gumbel", {"initialization": "kmeans"}, "logits choose", id="no k-means"),
        pytest.param("gumbel", {"straight_through": "rotation"}, "soft choice", id="no rotation"),
        pytest.param("gumbel", {"entropy_weight": 0.1}, "gumbel_kl_weight", id="no entropy"),
        pytest.param("nearest", {"codebook_weight": 0.0}, "no code would move", id="still codes"),
        pytest.param("simvq", {"codebook_weight": 0.0}, "no code would move", id="still map"),
    ],
)
def test_setting_without_effect_is_refused(
    quantizer: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"quantizer={quantizer}: .*{message}"):
        CodebookConfig(**settings).check_quantizer(quantizer)


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "normalized", "simvq", "gumbel"])
def test_defaults_fit_every_quantizer(quantizer: str) -> None:
    CodebookConfig().check_quantizer(quantizer)


def test_averaged_codes_need_no_codebook_weight() -> None:
    CodebookConfig(codebook_weight=0.0).check_quantizer("ema")
