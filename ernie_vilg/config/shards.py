"""Settings of the programs that write image shards and token shards.

Source: ours.
"""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    NaturalInt,
    NumWorkers,
    PositiveInt,
    Settings,
    Share,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BuildShardsConfig(Settings):
    """What `launch/build_shards.py` reads and writes."""

    source: LocalInput
    """Folder of raw pairs: `captions.jsonl`, and images at the paths it names."""
    output_dir: LocalOutput
    """Folder to write: image shards, `manifest.json` and `rejected.jsonl`."""
    image_size: PositiveInt
    """Width and height of every image in the shards, pixels."""
    samples_per_shard: PositiveInt = 4096
    """Pairs per shard, rejected images included."""
    image_format: Literal["png", "jpeg"] = "png"
    """png (exact) or jpeg (quality 95, about a fifth of the size for photographs)."""
    max_rejected_fraction: Share = 0.05
    """Share of lines that may be rejected; with more the program stops."""
    max_caption_characters: PositiveInt = 1000
    """Longest caption accepted."""
    max_image_pixels: PositiveInt = 64_000_000
    """Largest image decoded, width times height."""
    num_workers: NumWorkers = 1
    """Processes; 0 or 1 works in the program's own. The shards do not depend on it."""
    overwrite: bool = False
    """Whether image shards already in `output_dir` are replaced."""


@dataclass(frozen=True, kw_only=True)
class EncodeShardsConfig(Settings):
    """What `launch/encode_shards.py` reads and writes."""

    shards: LocalInput
    """Folder of image shards."""
    text_tokenizer_dir: LocalInput
    """Folder of the text tokenizer."""
    image_tokenizer_dir: LocalInput
    """Folder of the image tokenizer: the `weights/` of its run. (Not "image_tokenizer": on the
    command line that name chooses from conf/image_tokenizer/.)"""
    output_dir: LocalOutput
    """Folder to write: token shards and `manifest.json`."""
    keep_pixels: bool = False
    """Whether token shards also hold each picture's file, unchanged; training with
    model.reconstructor.kind=end_to_end reads it."""
    batch_size: PositiveInt = 64
    """Images encoded at once, per process."""
    num_workers: NumWorkers = 1
    """Processes; 0 or 1 works in the program's own."""
    overwrite: bool = False
    """Whether token shards already in `output_dir` are replaced."""
    num_parts: PositiveInt = 1
    """Into how many parts the shards are split, such as tasks of a Slurm array."""
    part_index: NaturalInt | None = None
    """The part, from 0, that is encoded now, without the manifest; null: all that is left of any
    part, and the manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part_index is not None and self.part_index >= self.num_parts:
            raise InputError(
                f"part_index={self.part_index} with num_parts={self.num_parts}: set it from 0 to "
                f"{self.num_parts - 1}, or to null for all parts and the manifest"
            )
