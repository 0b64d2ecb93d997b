"""A data set of drawn scenes, made in seconds with real tokenizers, shards and lineage.

The image tokenizer is untrained: drills and tests need the data's path, not good codes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.building.build import build_image_shards
from data_pipelines.encoding.encode import encode_image_shards
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import BuildShardsConfig, EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.storage.files import committed_folder
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer

CODEBOOK_SIZE = 16
GRID_SIZE = 4
"""Codes along each side of a picture."""
TEXT_VOCAB_SIZE = 320
"""Text ids that a model of this data set needs."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Folders of the data set."""

    pairs: Path
    """Raw pairs: captions.jsonl and its pictures."""
    text_tokenizer: Path
    """Text tokenizer."""
    image_tokenizer: Path
    """Image tokenizer."""
    token_shards: Path
    """Token shards."""


def make_data_set(
    folder: Path, *, num_pairs: int = 24, seed: int = 0, keep_pixels: bool = False
) -> DataSet:
    """Draw scenes, tokenize and encode them.

    Args:
        folder: folder to make.
        num_pairs: number of scenes.
        seed: seed of the image tokenizer's random weights.
        keep_pixels: whether shards hold pictures beside their codes.
    """
    data = DataSet(
        pairs=folder / "pairs",
        text_tokenizer=folder / "text_tokenizer",
        image_tokenizer=folder / "image_tokenizer",
        token_shards=folder / "token_shards",
    )
    captions = write_pairs(data.pairs, num_pairs)
    with committed_folder(data.text_tokenizer) as text_tokenizer:
        write_text_tokenizer(text_tokenizer, text_model(captions, data), {})
    save_image_tokenizer(untrained_vqgan(seed), data.image_tokenizer)
    encode_pairs(data, data.pairs, data.token_shards, keep_pixels=keep_pixels)
    return data


def encode_pairs(data: DataSet, pairs: Path, output: Path, *, keep_pixels: bool = False) -> None:
    """Encode raw pairs into token shards with the tokenizers of a data set."""
    image_shards = output.with_name(output.name.replace("token", "image"))
    build_image_shards(
        BuildShardsConfig(
            source=str(pairs),
            output_dir=str(image_shards),
            image_size=64,
            samples_per_shard=10,
            num_workers=1,
        )
    )
    encode_image_shards(
        EncodeShardsConfig(
            shards=str(image_shards),
            text_tokenizer_dir=str(data.text_tokenizer),
            image_tokenizer_dir=str(data.image_tokenizer),
            output_dir=str(output),
            keep_pixels=keep_pixels,
            num_workers=1,
        )
    )


def write_pairs(folder: Path, count: int) -> list[str]:
    """Draw the last scenes of two objects as raw pairs; return their captions."""
    folder.mkdir(parents=True)
    lines, captions = [], []
    for index, scene in enumerate(list(all_scenes(2))[-count:]):
        draw_scene(scene).save(folder / f"{index}.png")
        captions.append(caption_of(scene))
        lines.append(json.dumps({"image": f"{index}.png", "caption": captions[-1]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return captions


def text_model(captions: list[str], data: DataSet) -> bytes:
    """Return a SentencePiece model of captions for a data set's text tokenizer."""
    return train_text_tokenizer(
        captions,
        TrainTextTokenizerConfig(
            shards="unused", output_dir=str(data.text_tokenizer), vocab_size=300, model_type="bpe"
        ),
    )


def untrained_vqgan(seed: int) -> VQGAN:
    """Return an image tokenizer with random weights, 16 pixels per code."""
    config = ImageTokenizerConfig(
        image_size=64,
        codebook_size=CODEBOOK_SIZE,
        embedding_size=4,
        base_channels=8,
        channel_multipliers=(1,),
        num_residual_blocks=0,
        patch_size=16,
        normalization="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQGAN(config)
