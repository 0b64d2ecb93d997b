"""The setting auto is bf16 on hardware that multiplies it."""

import pytest
import torch

from ernie_vilg.parallel.engine import precision
from ernie_vilg.parallel.engine.precision import machine_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "device", "has_amx", "expected"),
    [
        ("fp32", GPU, True, torch.float32),
        ("bf16", CPU, False, torch.bfloat16),
        ("auto", GPU, False, torch.bfloat16),
        ("auto", CPU, True, torch.bfloat16),
        ("auto", CPU, False, torch.float32),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: torch.device,
    has_amx: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(precision, "cpu_has_amx", lambda: has_amx)

    assert machine_precision(name, device) == expected


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="set precision=bf16, fp32 or auto, or start on a GPU"):
        machine_precision("fp16", torch.device("cpu"))
