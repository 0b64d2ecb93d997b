"""Settings of the programs that use exported weights."""

import pytest

from ernie_vilg.config.evaluation import EvaluateConfig
from ernie_vilg.config.generation import CaptionConfig, GenerateConfig
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.errors import InputError

PROGRAMS = [
    pytest.param(GenerateConfig, {"weights": "w", "prompts": ("p",), "output_dir": "o"}, id="draw"),
    pytest.param(CaptionConfig, {"weights": "w", "images": "i", "output": "o"}, id="caption"),
    pytest.param(EvaluateConfig, {"weights": "w", "pairs": "p", "output_dir": "o"}, id="evaluate"),
    pytest.param(
        EncodeShardsConfig,
        {"shards": "s", "text_tokenizer_dir": "t", "image_tokenizer_dir": "i", "output_dir": "o"},
        id="encode",
    ),
]


@pytest.mark.parametrize(("program", "settings"), PROGRAMS)
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_a_device_is_accepted(program: type, settings: dict[str, str], device: str) -> None:
    assert program(**settings, device=device).device == device


@pytest.mark.parametrize(("program", "settings"), PROGRAMS)
@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:-1", "cuda1", "cuda:0\n", "cuda:01", "cuda:256", ""]
)
def test_no_other_device_is_accepted(program: type, settings: dict[str, str], device: str) -> None:
    with pytest.raises(InputError, match="choose auto, cpu, cuda or cuda:INDEX"):
        program(**settings, device=device)
