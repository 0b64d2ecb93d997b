"""A file of weights is the one that the settings name, and runs no code."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.feature_networks.weights_file import WeightsFile
from tests.vqgan.feature_networks.plain_networks import weights_file

TENSORS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}


def test_weights_are_set_and_frozen(tmp_path: Path) -> None:
    network = nn.Linear(2, 1).train()

    weights_file(tmp_path / "a.pth", {**TENSORS, "unused": torch.zeros(9)}).load_into(network)

    assert network(torch.tensor([[10.0, 100.0]])).item() == 213
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    network = nn.Linear(2, 1)

    WeightsFile(path=path, sha256=sha256_of_file(path), setting="a", origin="b").load_into(network)

    assert network.bias.item() == 3


def test_missing_file_is_refused_with_its_origin(tmp_path: Path) -> None:
    file = WeightsFile(
        path=tmp_path / "none.pth", sha256="0" * 64, setting="some.weights", origin="the file X"
    )

    with pytest.raises(InputError, match=r"some\.weights=.*none\.pth is no file; name the file X"):
        file.load_into(nn.Linear(2, 1))


def test_altered_file_is_refused(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "a.pth", TENSORS)
    torch.save({**TENSORS, "bias": torch.tensor([4.0])}, file.path)

    with pytest.raises(InputError, match=r"where some\.weights_sha256=.* another file"):
        file.load_into(nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"bias": torch.zeros(2)}, r"bias as torch.float32 \[2\] where floats \[1\]"),
        pytest.param({"bias": torch.zeros(1, dtype=torch.int64)}, "bias as torch.int64"),
        pytest.param({"bias": torch.tensor([float("nan")])}, "NaN or infinite values in bias"),
        pytest.param({"bias": None}, "has no tensor bias"),
    ],
    ids=["another shape", "whole numbers", "NaN", "no tensor"],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    file = weights_file(tmp_path / "a.pth", TENSORS | change)

    with pytest.raises(InputError, match=message):
        file.load_into(nn.Linear(2, 1))


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of a file ran",))


def test_file_with_code_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"weight": _Runs()}))
    file = dataclasses.replace(
        weights_file(tmp_path / "b.pth", TENSORS), path=path, sha256=sha256_of_file(path)
    )

    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        file.load_into(nn.Linear(2, 1))
    assert "code of a file ran" not in capsys.readouterr().out
