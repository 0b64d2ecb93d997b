"""The evaluation of an image tokenizer as a program: its figures, its page, its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ernie_vilg.config.evaluate_image_tokenizer import EvaluateImageTokenizerConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.image_tokenizer.evaluate import evaluate_image_tokenizer
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.card import Card
from ernie_vilg.vqgan.feature_networks.weights_file import WeightsFile
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer
from launch.support.program import CONF_FOLDER
from tests.evaluation.image_tokenizer.image_shards import write_image_shards
from tests.vqgan.feature_networks.plain_networks import weights_file

PICTURES = 5
DAMAGED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer and two shards, with one damaged picture."""
    root = tmp_path_factory.mktemp("evaluate_image_tokenizer")
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        image_size=16, codebook_size=8, embedding_size=4, base_channels=8, patch_size=4,
        channel_multipliers=(1,), num_residual_blocks=0, normalization="channel",
    )  # fmt: skip
    write_image_shards(root / "shards", sizes=(3, 2), side=16, damaged=(DAMAGED,))
    digest = read_manifest(root / "shards", "image").digest()
    save_image_tokenizer(VQGAN(config), root / "weights")
    card = Card(lineage={"image_shards": digest})
    save_image_tokenizer(VQGAN(config), root / "trained_on", card=card)
    return root


def config_of(root: Path, **settings: object) -> EvaluateImageTokenizerConfig:
    values = {
        "weights": f"{root}/weights",
        "shards": f"{root}/shards",
        "output_dir": "unused",
        "device": "cpu",
        "examples": 2,
        **settings,
    }
    return EvaluateImageTokenizerConfig(**values)  # type: ignore[arg-type]


def test_program_writes_figures_pictures_and_a_page(folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(CONF_FOLDER.parent / "launch/evaluate_image_tokenizer.py"),
            f"weights={folder}/weights",
            f"shards={folder}/shards",
            f"output_dir={folder}/out",
            "batch_size=2",
            "examples=3",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "1 damaged pictures skipped, the first is sample '000003'" in done.stderr
    content = json.loads((folder / "out/figures.json").read_text())
    figures = content["figures"]
    assert figures["pictures"] == PICTURES - 1
    assert content["damaged_pictures"]["count"] == 1
    assert set(content["not_measured"]) == {"lpips", "rfid"}
    assert sum(content["code_counts"]) == (PICTURES - 1) * 16
    low, high = content["intervals"]["psnr"]
    assert low < figures["psnr"] < high
    for name in ("worst", "median", "best", "most_used", "least_used"):
        with Image.open(folder / f"out/{name}.png") as image:
            assert image.width > 16
    page = (folder / "out/report.html").read_text()
    assert "not measured" in page
    assert "Its card does not name the shards that it was trained on." in page


def test_figures_are_those_of_the_pictures(folder: Path, tmp_path: Path) -> None:
    content = evaluate_image_tokenizer(config_of(folder), tmp_path)

    model, _ = load_image_tokenizer(folder / "weights")
    written = write_image_shards(tmp_path / "again", sizes=(3, 2), side=16)
    good = np.stack([pixels for number, pixels in enumerate(written) if number != DAMAGED])
    images = from_bytes(torch.from_numpy(good).permute(0, 3, 1, 2))
    codes = model.encode(images)
    rebuilt = from_bytes(to_bytes(model.decode(codes)))
    error = (rebuilt - images).square().mean().item()
    assert content["figures"]["psnr"] == pytest.approx(10 * np.log10(4 / error), rel=1e-5)
    counts = torch.bincount(codes.flatten(), minlength=8).tolist()
    assert content["code_counts"] == counts
    assert content["figures"]["dead_codes"] == counts.count(0)
    # Worst first: the grid has the originals in its first row.
    errors = (rebuilt - images).square().mean(dim=(1, 2, 3))
    worst = int(errors.argmax())
    with Image.open(tmp_path / "worst.png") as grid:
        assert np.array_equal(np.asarray(grid)[4:20, 4:20], good[worst])


class _Distance(nn.Module):
    """A network in the place of LPIPS, which takes the same files."""

    def __init__(self, weights: WeightsFile, linear_weights: WeightsFile) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        for file in (weights, linear_weights):
            file.load_into(self.layer)

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        return self.layer.weight.flatten().expand(len(pictures))


class _Features(nn.Linear):
    """A network of three features in the place of Inception."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__(3, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mean(dim=(2, 3)))


def test_networks_from_files_add_lpips_and_rfid(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_vilg.evaluation.image_tokenizer.evaluate.LPIPS", _Distance)
    monkeypatch.setattr("ernie_vilg.evaluation.image_tokenizer.evaluate.Inception", _Features)
    files = {
        "vgg16_weights": torch.tensor([[7.0]]),
        "lpips_weights": torch.tensor([[0.25]]),
        "inception_weights": torch.zeros(3, 3),
    }
    settings: dict[str, object] = {}
    for name, weight in files.items():
        file = weights_file(tmp_path / f"{name}.pth", {"weight": weight})
        settings |= {name: str(file.path), f"{name}_sha256": file.sha256}
    (tmp_path / "out").mkdir()

    content = evaluate_image_tokenizer(config_of(folder, pictures=2, **settings), tmp_path / "out")

    assert content["not_measured"] == {}
    assert content["figures"]["lpips"] == 0.25
    assert content["intervals"]["lpips"] == [0.25, 0.25]
    assert content["figures"]["rfid"] == 0  # every picture has the features 0, 0, 0
    page = (tmp_path / "out/report.html").read_text()
    assert "not measured" not in page
    assert "fewer than the 50,000 of published figures" in page


def test_altered_network_is_refused_before_the_pictures(folder: Path, tmp_path: Path) -> None:
    file = weights_file(tmp_path / "a.pth", {"weight": torch.zeros(1)})
    config = config_of(folder, inception_weights=str(file.path), inception_weights_sha256="0" * 64)

    with pytest.raises(InputError, match=r"inception_weights_sha256=0+: it is damaged"):
        evaluate_image_tokenizer(config, tmp_path)


def test_training_pictures_are_called_so(folder: Path, tmp_path: Path) -> None:
    content = evaluate_image_tokenizer(config_of(folder, weights=f"{folder}/trained_on"), tmp_path)

    assert content["trained_on"] is True
    assert (
        "trained on these pictures, so its figures flatter"
        in (tmp_path / "report.html").read_text()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"inception_weights": "a.pth"},
            r"inception_weights=a\.pth with inception_weights_sha256=None: set both",
        ),
        (
            {"vgg16_weights": "a.pth", "vgg16_weights_sha256": "0" * 64},
            r"lpips_weights is null: LPIPS needs .*package lpips",
        ),
    ],
    ids=["no hash", "no linear layers"],
)
def test_incomplete_networks_are_refused(
    folder: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_of(folder, **settings)


def test_bfloat16_is_measured_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    content = evaluate_image_tokenizer(config_of(folder, precision="bf16"), tmp_path)

    assert content["precision"] == "bfloat16"
    assert content["figures"]["pictures"] == PICTURES - 1
