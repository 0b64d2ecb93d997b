"""The setting auto is bf16 on hardware that multiplies it."""

import pytest
import torch

from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine import settings
from ernie_vilg.parallel.engine.settings import check_fp8, machine_precision

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
    monkeypatch.setattr(settings, "cpu_has_amx", lambda: has_amx)

    assert machine_precision(name, device) == expected


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="set precision=bf16, fp32 or auto, or start on a GPU"):
        machine_precision("fp16", torch.device("cpu"))


def test_8_bit_products_on_a_cpu_are_refused() -> None:
    with pytest.raises(InputError, match="set linear_precision=same, or start on a GPU of"):
        check_fp8(CPU)


@pytest.mark.parametrize("capability", [(7, 0), (8, 0), (8, 6)])
def test_8_bit_products_on_an_older_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")

    with pytest.raises(InputError, match=r"on NVIDIA A100 of compute capability \d\.\d, which has"):
        check_fp8(GPU)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_8_bit_products_run_on_newer_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    check_fp8(GPU)
