"""Devices and number formats of programs that use a trained model."""

import pytest
import torch

from ernie_vilg.errors import InputError
from ernie_vilg.system.devices import choose_device, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def machine_with(monkeypatch: pytest.MonkeyPatch, gpus: int, capability: tuple[int, int]) -> None:
    """Let torch report some GPUs of one kind, none of which is touched."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA V100")


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, expected: str) -> None:
    machine_with(monkeypatch, gpus, (9, 0))

    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "gpus", "fix"),
    [
        ("cuda", 0, "device=cuda but torch finds no GPU: set device=cpu or device=auto"),
        ("cuda:0", 0, "device=cuda:0 but torch finds no GPU"),
        ("cuda:2", 2, r"torch finds 2 GPU\(s\): set device=cuda:0 to cuda:1, or device=auto"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, fix: str
) -> None:
    machine_with(monkeypatch, gpus, (9, 0))

    with pytest.raises(InputError, match=fix):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", CPU, (9, 0), torch.float32),
        ("auto", GPU, (9, 0), torch.bfloat16),
        ("auto", GPU, (7, 0), torch.float32),
        ("fp32", GPU, (9, 0), torch.float32),
        ("bf16", CPU, (0, 0), torch.bfloat16),
        ("bf16", GPU, (8, 0), torch.bfloat16),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: torch.device,
    capability: tuple[int, int],
    expected: torch.dtype,
) -> None:
    machine_with(monkeypatch, 1, capability)

    assert choose_precision(name, device) == expected


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, 1, (7, 0))

    with pytest.raises(InputError, match=r"NVIDIA V100, .* set precision=fp32 or auto"):
        choose_precision("bf16", GPU)
