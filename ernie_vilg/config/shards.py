"""Settings of the programs that write image shards and token shards."""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.generation import Device
from ernie_vilg.config.schema import (
    Fraction,
    LocalInput,
    LocalOutput,
    NaturalInt,
    NumWorkers,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BuildShardsConfig(Settings):
    """Settings of launch/build_shards.py."""

    source: LocalInput
    """Folder of raw pairs: `captions.jsonl` and its images."""
    output_dir: LocalOutput
    """Folder for image shards, `manifest.json` and `rejected.jsonl`."""
    image_size: PositiveInt
    """Width and height of every image in the shards, pixels."""
    samples_per_shard: PositiveInt = 4096
    """Pairs per shard, rejected images included."""
    image_format: Literal["png", "jpeg"] = "png"
    """png (exact) or jpeg (quality 95, about a fifth of the size for photographs)."""
    max_rejected_fraction: Fraction = 0.05
    """Largest fraction of rejected lines; with more the program stops."""
    max_caption_characters: PositiveInt = 1000
    """Longest accepted caption."""
    max_image_pixels: PositiveInt = 64_000_000
    """Largest accepted image, width times height."""
    num_workers: NumWorkers = 1
    """Number of processes; 0 and 1 work in the program's own. The shards do not depend on it."""
    overwrite: bool = False
    """Whether image shards already in `output_dir` are replaced."""


@dataclass(frozen=True, kw_only=True)
class EncodeShardsConfig(Settings):
    """Settings of launch/encode_shards.py."""

    shards: LocalInput
    """Folder of image shards."""
    text_tokenizer_dir: LocalInput
    """Folder of the text tokenizer."""
    image_tokenizer_dir: LocalInput
    """Folder of the image tokenizer: the `weights/` of its run. (The name image_tokenizer would
    choose from conf/image_tokenizer/.)"""
    output_dir: LocalOutput
    """Folder for token shards and `manifest.json`."""
    keep_pixels: bool = False
    """Whether token shards also hold each picture's file, unchanged, for
    model.reconstructor.kind=end_to_end."""
    batch_size: PositiveInt = 64
    """Number of images encoded at once, per process."""
    device: Device = "auto"
    """Device of the image tokenizer: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there
    is one. Codes are computed in fp32 on each; near ties may differ between kinds of device."""
    num_workers: NumWorkers = 1
    """Number of processes; 0 and 1 work in the program's own."""
    overwrite: bool = False
    """Whether token shards already in `output_dir` are replaced."""
    num_parts: PositiveInt = 1
    """Number of parts of the shards, such as tasks of a Slurm array."""
    part_index: NaturalInt | None = None
    """Part to encode, from 0, without the manifest; null encodes the rest of all parts, and the
    manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part_index is not None and self.part_index >= self.num_parts:
            raise InputError(
                f"part_index={self.part_index} with num_parts={self.num_parts}: set it from 0 to "
                f"{self.num_parts - 1}, or to null for all parts and the manifest"
            )
