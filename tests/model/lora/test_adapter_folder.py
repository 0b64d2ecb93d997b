"""Exported adapters are what the library peft reads."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel

from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.model.lora.adapter_folder import save_adapters
from ernie_vilg.model.lora.names import is_adapter
from ernie_vilg.model.weights import model_from_weights
from tests.model.lora.test_adapters import logits_of
from tests.model.tiny import CONFIG, tiny_model


def test_peft_computes_the_same_from_them(tmp_path: Path) -> None:
    adapted = replace(CONFIG, lora=LoraConfig(rank=3, alpha=7.0, targets=("*.output", "2.*")))
    model = tiny_model(adapted)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_adapters(tmp_path, adapted, weights, base="weights")
    plain = {name: value for name, value in weights.items() if not is_adapter(name)}
    base = model_from_weights(CONFIG, plain)
    before = logits_of(base)

    loaded = PeftModel.from_pretrained(base, str(tmp_path))  # type: ignore[arg-type]

    config = loaded.peft_config["default"]
    assert config.r == 3
    assert config.base_model_name_or_path == "weights"
    for one, other in zip(logits_of(loaded.eval()), logits_of(model), strict=True):
        torch.testing.assert_close(one, other)
    assert not before[0].allclose(logits_of(model)[0], atol=1e-2)
