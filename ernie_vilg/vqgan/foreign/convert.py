"""Import of public image tokenizers, and export in their form.

Source: checkpoints of taming-transformers and LlamaGen, see `ernie_vilg.vqgan.foreign.names`.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.import_image_tokenizer import (
    ExportImageTokenizerConfig,
    ForeignLayout,
    ImportImageTokenizerConfig,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import is_taken, written_file
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.card import Card
from ernie_vilg.vqgan.foreign.file import ForeignFile, read_foreign_file
from ernie_vilg.vqgan.foreign.geometry import (
    declared_settings,
    infer_architecture,
    recognise_layout,
)
from ernie_vilg.vqgan.foreign.names import foreign_names, to_foreign, to_network
from ernie_vilg.vqgan.losses.pixel import psnr_of_pictures
from ernie_vilg.vqgan.pixels import from_pictures, to_pictures
from ernie_vilg.vqgan.weights import check_tensors, load_image_tokenizer, save_image_tokenizer

logger = logging.getLogger(__name__)


def import_image_tokenizer(
    config: ImportImageTokenizerConfig, model_settings: Any = None
) -> tuple[VQGAN, str]:
    """Write the folder of an image tokenizer from a public checkpoint.

    Args:
        config: the checkpoint, and what its weights do not tell.
        model_settings: content of `config.model_config`, as plain values.

    Returns:
        the tokenizer and its SHA-256.

    Raises:
        InputError: the checkpoint cannot be used; the message says what to change.
    """
    declared = declared_settings(model_settings, config.model_config)
    file = read_foreign_file(
        Path(config.checkpoint), part=config.weights, sha256=config.checkpoint_sha256
    )
    for kind, count in file.skipped.items():
        logger.info("skipped: %s, %d entries", kind, count)
    layout = recognise_layout(file.tensors, config.layout)
    architecture = infer_architecture(file.tensors, layout, config, declared)
    model = _network(file, layout, architecture)
    rounded = sorted({str(value.dtype) for value in file.tensors.values()} - {"torch.float32"})
    if rounded:
        logger.info("converted to float32: weights in %s", ", ".join(rounded))
    card = Card(
        lineage={
            "imported_from": file.path.name,
            "imported_sha256": file.sha256,
            "layout": layout,
            "part": file.part,
            "skipped_entries": sum(file.skipped.values()),
        }
    )
    folder = Path(config.output_dir)
    return model, save_image_tokenizer(model, folder, card=card, overwrite=config.overwrite)


def export_image_tokenizer(config: ExportImageTokenizerConfig) -> int:
    """Write an image tokenizer as a public checkpoint, which holds tensors alone.

    Args:
        config: the tokenizer's folder, the layout and the file.

    Returns:
        the number of tensors.

    Raises:
        InputError: the layout has no such network, or the file is there and may not be replaced.
    """
    path = Path(config.output_file)
    if is_taken(path) and not config.overwrite:
        raise InputError(f"output_file={path} already exists: set overwrite=true, or name another")
    if path.suffix not in (".ckpt", ".pt", ".pth"):
        raise InputError(f"output_file={path}: name a file that ends with .ckpt, .pt or .pth")
    model, _ = load_image_tokenizer(Path(config.image_tokenizer_dir))
    tensors = to_foreign(model.state_dict(), foreign_names(model, config.layout))
    part = "state_dict" if config.layout == "taming" else "model"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_file(path) as file:
        torch.save({part: tensors}, file)
    return len(tensors)


def draw_reconstruction(model: VQGAN, picture: Path, output: Path) -> float:
    """Encode and decode one picture at its own size, and write both side by side.

    Args:
        model: the tokenizer.
        picture: file of a picture, of which multiples of the downsampling factor are kept.
        output: file to write, .png.

    Returns:
        the PSNR in dB.

    Raises:
        InputError: the picture cannot be read or is smaller than one code.
    """
    try:
        with Image.open(picture) as opened:
            original = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"picture={picture} cannot be read ({error}): name another") from error
    factor = model.config.downsampling_factor
    width, height = (side - side % factor for side in original.size)
    if not width * height:
        raise InputError(f"picture={picture} is smaller than {factor} pixels: name a larger one")
    original = original.crop((0, 0, width, height))
    with torch.inference_mode():
        drawn = to_pictures(model.decode(model.encode_any_size(from_pictures([original]))))[0]
    both = Image.new("RGB", (2 * width, height))
    both.paste(original, (0, 0))
    both.paste(drawn, (width, 0))
    with written_file(output) as file:
        both.save(file, format="PNG")
    return psnr_of_pictures([original], [drawn])


def _network(file: ForeignFile, layout: ForeignLayout, architecture: ImageTokenizerConfig) -> VQGAN:
    """Return the network with the weights of a checkpoint, frozen."""
    with torch.device("meta"):
        model = VQGAN(architecture)
    names = foreign_names(model, layout)
    needed = {name for theirs in names.values() for name in theirs}
    wrong = sorted(needed ^ file.tensors.keys())
    if wrong:
        settings = {key: value for key, value in asdict(architecture).items() if value is not None}
        raise InputError(
            f"{file.path} is of another network than its names and shapes suggest ({settings}): "
            f"{len(wrong)} tensors are missing or unknown, such as {', '.join(wrong[:3])}; this "
            "code has no such network, or a setting (image_size, layout, weights) is wrong"
        )
    tensors, expected = to_network(file.tensors, names), model.state_dict()
    check_tensors(
        file.path,
        tensors,
        expected,
        required=names.keys(),
        remedy="name a whole checkpoint of one VQGAN",
    )
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)
