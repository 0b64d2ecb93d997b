"""Whether token shards, tokenizers and model belong together.

Codes mean nothing without the codebook that made them, nor ids without their pieces. Each
token shard's manifest names both tokenizers by hash; a run whose tokenizers have other
hashes would learn nonsense, and is refused.

Source: ours.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainDataConfig
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
    return Lineage(
        manifest=manifest, text_tokenizer=text_tokenizer.sha256, image_tokenizer=image_sha256
    )


def _check_hash(name: str, manifest: Manifest, data: PretrainDataConfig, actual: str) -> None:
    expected = manifest.lineage.get(name)
    if expected != actual:
        raise ValueError(
            f"data.token_shards={data.token_shards} were encoded with another {name} (SHA-256 "
            f"{expected}) than data.{name}={getattr(data, name)} ({actual}): name the one they "
            "were encoded with, or encode them again with launch/encode_shards.py"
        )
