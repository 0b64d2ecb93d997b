"""Evaluation of an image tokenizer on held-out pictures.

It writes
    figures.json               figures, intervals, uses of every code, what was not measured
    worst.png, median.png, best.png    originals above reconstructions
    most_used.png, least_used.png      one code per row: drawn alone, and in originals
    report.html                all of it on one page
"""

import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.config.evaluate_image_tokenizer import EvaluateImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.bootstrap import bootstrap_interval
from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.evaluation.image_tokenizer.code_examples import CodeExamples
from ernie_vilg.evaluation.image_tokenizer.page import (
    PATCHES,
    CodeRow,
    Rebuilt,
    code_grid,
    code_tiles,
    page_html,
)
from ernie_vilg.evaluation.image_tokenizer.pictures import Place, ShardPictures
from ernie_vilg.evaluation.reconstruction_figures import LARGEST_PSNR, ReconstructionFigures
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.system.devices import choose_device, choose_precision
from ernie_vilg.system.progress import progress
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.feature_networks import inception as inception_network
from ernie_vilg.vqgan.feature_networks import vgg16
from ernie_vilg.vqgan.feature_networks.inception import Inception
from ernie_vilg.vqgan.feature_networks.weights_file import WeightsFile
from ernie_vilg.vqgan.losses.perceptual import LINEAR_ORIGIN, LPIPS
from ernie_vilg.vqgan.losses.pixel import psnr
from ernie_vilg.vqgan.pixels import from_bytes, to_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card

FIGURES_FILE = "figures.json"
REPORT_FILE = "report.html"
_GRID_COLUMNS = 6

logger = logging.getLogger(__name__)


class _Coder:
    """The tokenizer on its device, in its number format."""

    def __init__(self, model: VQGAN, device: torch.device, precision: torch.dtype) -> None:
        self.model = model.to(device)
        self.device = device
        self._precision = precision

    @torch.no_grad()
    def rebuild(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures uint8 [batch, 3, size, size] on the device, rebuilt, and their codes."""
        originals = pixels.to(self.device)
        with self._autocast():
            codes = self.model.encode(from_bytes(originals))
        return originals, self.decode(codes), codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return pictures float32 [batch, 3, size, size] of codes on any device."""
        with self._autocast():
            return self.model.decode(codes.to(self.device))

    def _autocast(self) -> torch.autocast:
        is_enabled = self._precision != torch.float32
        return torch.autocast(self.device.type, self._precision, enabled=is_enabled)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Everything that one pass over the pictures leaves."""

    sums: ReconstructionFigures
    values: dict[str, "array[float]"]
    """Values of each picture by name."""
    shards: "array[int]"
    """Shard of each picture."""
    samples: "array[int]"
    """Sample of each picture in its shard."""
    examples: CodeExamples

    def places(self, indices: list[int]) -> list[Place]:
        """Return the places of some pictures."""
        return [Place(self.shards[index], self.samples[index]) for index in indices]


def evaluate_image_tokenizer(config: EvaluateImageTokenizerConfig, folder: Path) -> dict[str, Any]:
    """Measure a tokenizer, and write everything into an empty folder.

    Args:
        config: settings.
        folder: folder to write to.

    Returns:
        the content of `figures.json`.

    Raises:
        InputError: the tokenizer, the shards or a network's file cannot be used, or no picture can
            be read.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    model, sha256 = load_image_tokenizer(Path(config.weights))
    pictures = ShardPictures(
        Path(config.shards), image_size=model.config.image_size, limit=config.pictures
    )
    coder = _Coder(model, device, precision)
    measured = _measure(config, coder, pictures)
    content = {
        "weights": sha256,
        "shards": pictures.manifest.digest(),
        "trained_on": _is_trained_on(config, pictures),
        "precision": str(precision).removeprefix("torch."),
        "device": device.type,
        "figures": measured.sums.figures(),
        "intervals": _intervals(measured.values, config.seed),
        "not_measured": config.missing_figures(),
        "damaged_pictures": {"count": pictures.num_damaged, "first": pictures.damaged},
        "code_counts": measured.sums.code_counts().tolist(),
    }
    kinds = _rebuilt(config.examples, coder, pictures, measured)
    codes = _codes(config.examples, coder, pictures, measured)
    _write_pictures(folder, kinds, codes)
    page = page_html(content, config=model.config, kinds=kinds, codes=codes)
    write_bytes(folder / REPORT_FILE, page.encode())
    write_json(folder / FIGURES_FILE, content)
    return content


def _measure(
    config: EvaluateImageTokenizerConfig, coder: _Coder, pictures: ShardPictures
) -> _Measured:
    codebook_size = coder.model.config.codebook_size
    lpips, inception = _networks(config, coder.device)
    measured = _Measured(
        sums=ReconstructionFigures(codebook_size, coder.device, lpips=lpips, inception=inception),
        values={},
        shards=array("q"),
        samples=array("q"),
        examples=CodeExamples(codebook_size, PATCHES),
    )
    batches = pictures.batches(config.batch_size, num_threads=config.decode_threads)
    total = -(-pictures.count // config.batch_size)
    for batch in progress(batches, total=total, what="reconstruct pictures", unit="batches"):
        originals, rebuilt, codes = coder.rebuild(batch.pixels)
        for name, values in measured.sums.add(originals, rebuilt, codes).items():
            measured.values.setdefault(name, array("d")).extend(values.double().tolist())
        measured.shards.extend(place.shard for place in batch.places)
        measured.samples.extend(place.sample for place in batch.places)
        measured.examples.add(codes.cpu().numpy(), batch.places)
    if pictures.num_damaged:
        logger.warning(
            "shards=%s: %d damaged pictures skipped, the first is %s",
            config.shards,
            pictures.num_damaged,
            pictures.damaged[0],
        )
    if not measured.shards:
        raise InputError(
            f"shards={config.shards} holds no readable picture: {pictures.damaged[0]}"
            if pictures.damaged
            else f"shards={config.shards} holds no picture: build the shards again"
        )
    return measured


def _networks(
    config: EvaluateImageTokenizerConfig, device: torch.device
) -> tuple[LPIPS | None, Inception | None]:
    lpips = inception = None
    if config.vgg16_weights is not None:
        lpips = LPIPS(
            _file(config, "vgg16_weights", vgg16.ORIGIN),
            _file(config, "lpips_weights", LINEAR_ORIGIN),
        ).to(device)
    if config.inception_weights is not None:
        inception = Inception()
        _file(config, "inception_weights", inception_network.ORIGIN).load_into(inception)
        inception = inception.to(device)
    return lpips, inception


def _file(config: EvaluateImageTokenizerConfig, setting: str, origin: str) -> WeightsFile:
    path, sha256 = getattr(config, setting), getattr(config, f"{setting}_sha256")
    return WeightsFile(path=Path(path), sha256=sha256, setting=setting, origin=origin)


def _is_trained_on(config: EvaluateImageTokenizerConfig, pictures: ShardPictures) -> bool | None:
    """Return whether the tokenizer was trained on these very shards, and warn if so; None where its
    card does not name any.
    """
    trained_on = read_card(Path(config.weights)).lineage.get("image_shards")
    is_trained_on = None if trained_on is None else trained_on == pictures.manifest.digest()
    if is_trained_on:
        logger.warning(
            "shards=%s is what this tokenizer was trained on: its figures flatter", config.shards
        )
    return is_trained_on


def _intervals(values: Mapping[str, "array[float]"], seed: int) -> dict[str, list[float]]:
    """Return 95 % intervals of the figures that are means over pictures."""
    found = {name: list(bootstrap_interval(each, seed=seed)) for name, each in values.items()}
    # The larger error is the lower PSNR.
    ends = reversed(found.pop("squared_error"))
    return {"psnr": [min(psnr(end), LARGEST_PSNR) for end in ends], **found}


def _rebuilt(
    count: int, coder: _Coder, pictures: ShardPictures, measured: _Measured
) -> dict[str, list[Rebuilt]]:
    """Return the reconstructions with the largest, middle and smallest errors, each kind in order
    of its errors.
    """
    errors = np.frombuffer(measured.values["squared_error"])
    order = np.argsort(errors, kind="stable")
    count = min(count, len(order))
    first = (len(order) - count) // 2
    chosen = {
        "worst": order[::-1][:count],
        "median": order[first : first + count],
        "best": order[:count],
    }
    found = {}
    for kind, indices in chosen.items():
        pixels, keys = pictures.at(measured.places(indices.tolist()))
        originals, rebuilt, _ = coder.rebuild(pixels)
        found[kind] = [
            Rebuilt(key=key, psnr=min(psnr(float(error)), LARGEST_PSNR), before=before, after=after)
            for key, error, before, after in zip(
                keys,
                errors[indices],
                to_pictures(from_bytes(originals)),
                to_pictures(rebuilt),
                strict=True,
            )
        ]
    return found


def _codes(
    count: int, coder: _Coder, pictures: ShardPictures, measured: _Measured
) -> dict[str, list[CodeRow]]:
    """Return the most and the least used codes of those that are used at all."""
    counts = measured.sums.code_counts()
    order = torch.argsort(counts, descending=True, stable=True).tolist()
    used = [code for code in order if counts[code] > 0]
    chosen = {"most_used": used[:count], "least_used": used[::-1][:count]}
    return {
        kind: [
            _code_row(code, int(counts[code]), coder, pictures, measured.examples) for code in codes
        ]
        for kind, codes in chosen.items()
    }


def _code_row(
    code: int, uses: int, coder: _Coder, pictures: ShardPictures, examples: CodeExamples
) -> CodeRow:
    config = coder.model.config
    alone = coder.decode(torch.full((1, config.grid_size, config.grid_size), code))
    found = examples.of(code)
    originals, _ = pictures.at([place for place, _, _ in found])
    tiles = code_tiles(
        to_pictures(alone)[0],
        [Image.fromarray(pixels) for pixels in originals.permute(0, 2, 3, 1).numpy()],
        [(row, column) for _, row, column in found],
        factor=config.downsampling_factor,
    )
    return CodeRow(code=code, uses=uses, tiles=tiles)


def _write_pictures(
    folder: Path, kinds: Mapping[str, list[Rebuilt]], codes: Mapping[str, list[CodeRow]]
) -> None:
    for kind, rebuilt in kinds.items():
        before, after = [each.before for each in rebuilt], [each.after for each in rebuilt]
        before_and_after(before, after, columns=_GRID_COLUMNS).save(folder / f"{kind}.png")
    for kind, rows in codes.items():
        code_grid(rows).save(folder / f"{kind}.png")
