"""Whether token shards, tokenizers and model belong together.

Codes mean nothing without the codebook that made them, nor ids without their pieces. Each
token shard's manifest names both tokenizers by hash; a run whose tokenizers have other
hashes would learn nonsense, and is refused. Training with `reconstructor=end_to_end` also needs
the pictures that the codes were made of.

Source: ours.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainDataConfig
from ernie_vilg.data.batches import keeps_pixels
from ernie_vilg.manifest import Manifest, read_manifest
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a run is trained on, by hash."""

    manifest: Manifest
    """Of the token shards."""
    text_tokenizer: str
    """SHA-256 of the text tokenizer's model."""
    image_tokenizer: str
    """SHA-256 of the image tokenizer's weights."""
    image_tokenizer_config: ImageTokenizerConfig
    """The image tokenizer's architecture."""


def check_lineage(data: PretrainDataConfig, model: ModelConfig) -> Lineage:
    """Check that shards, tokenizers and model fit each other.

    Args:
        data: where shards and tokenizers are.
        model: the model to be trained on them.

    Raises:
        ValueError: they do not; the message says which, and what to do.
    """
    manifest = read_manifest(Path(data.token_shards), "token")
    text_tokenizer = TextTokenizer.load(Path(data.text_tokenizer))
    image_tokenizer, image_sha256 = load_image_tokenizer(Path(data.image_tokenizer))
    _check_hash("text_tokenizer", manifest, data, text_tokenizer.sha256)
    _check_hash("image_tokenizer", manifest, data, image_sha256)
    config = image_tokenizer.config
    for name, ours, theirs in (
        ("codebook_size", model.codebook_size, config.codebook_size),
        ("image_grid_size", model.image_grid_size, config.grid_size),
    ):
        if ours != theirs:
            raise ValueError(
                f"model.{name}={ours} where the image tokenizer {data.image_tokenizer} has "
                f"{theirs}: set model.{name}={theirs}"
            )
    if text_tokenizer.vocab_size > model.text_vocab_size:
        raise ValueError(
            f"model.text_vocab_size={model.text_vocab_size} is below the "
            f"{text_tokenizer.vocab_size} pieces of {data.text_tokenizer}: set at least that"
        )
    if model.reconstructor.is_end_to_end:
        _check_pixels(manifest, data)
        _check_decoder(model, data, config)
    return Lineage(
        manifest=manifest,
        text_tokenizer=text_tokenizer.sha256,
        image_tokenizer=image_sha256,
        image_tokenizer_config=config,
    )


def _check_hash(name: str, manifest: Manifest, data: PretrainDataConfig, actual: str) -> None:
    expected = manifest.lineage.get(name)
    if expected != actual:
        raise ValueError(
            f"data.token_shards={data.token_shards} were encoded with another {name} (SHA-256 "
            f"{expected}) than data.{name}={getattr(data, name)} ({actual}): name the one they "
            "were encoded with, or encode them again with launch/encode_shards.py"
        )


def _check_pixels(manifest: Manifest, data: PretrainDataConfig) -> None:
    if not keeps_pixels(manifest):
        raise ValueError(
            "model.reconstructor.kind=end_to_end learns to draw pictures, and data.token_shards="
            f"{data.token_shards} keep no pixels: encode them again, "
            "from the folder of image shards, with python launch/encode_shards.py shards=... "
            f"text_tokenizer_dir={data.text_tokenizer} image_tokenizer_dir={data.image_tokenizer} "
            f"output_dir={data.token_shards} keep_pixels=true overwrite=true, "
            "or set model.reconstructor.kind=two_stage"
        )


def _check_decoder(
    model: ModelConfig, data: PretrainDataConfig, image_tokenizer: ImageTokenizerConfig
) -> None:
    decoder = model.reconstructor.decoder
    if decoder is None or decoder == image_tokenizer:
        return
    differences = ", ".join(
        f"{name}={value} where it has {getattr(image_tokenizer, name)}"
        for name, value in vars(decoder).items()
        if value != getattr(image_tokenizer, name)
    )
    raise ValueError(
        "model.reconstructor.decoder is not the architecture of the image tokenizer "
        f"{data.image_tokenizer}: {differences}; set model.reconstructor.decoder=null, which takes "
        "the tokenizer's"
    )
