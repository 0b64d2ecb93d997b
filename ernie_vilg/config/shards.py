"""Settings of the programs that write image shards and token shards.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.loader import MAX_WORKERS
from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input, check_local_output

IMAGE_FORMATS = ("png", "jpeg")


@dataclass(frozen=True, kw_only=True)
class BuildShardsConfig:
    """What `launch/build_shards.py` reads and writes."""

    source: str
    """Folder of raw pairs: `captions.jsonl`, and images at the paths it names."""
    output_dir: str
    """Folder to write: image shards, `manifest.json` and `rejected.jsonl`."""
    image_size: int
    """Width and height of every image in the shards, pixels."""
    samples_per_shard: int = 4096
    """Pairs per shard, rejected images included."""
    image_format: str = "png"
    """png (exact) or jpeg (quality 95, about a fifth of the size for photographs)."""
    max_rejected_fraction: float = 0.05
    """Share of lines that may be rejected; with more the program stops."""
    max_caption_characters: int = 1000
    """Longest caption accepted."""
    max_image_pixels: int = 64_000_000
    """Largest image decoded, width times height."""
    num_workers: int = 1
    """Processes; 0 or 1 works in the program's own. The shards do not depend on it."""
    overwrite: bool = False
    """Whether image shards already in `output_dir` are replaced."""

    def __post_init__(self) -> None:
        check_local_input(source=self.source)
        check_local_output(output_dir=self.output_dir)
        _require_at_least_one(
            image_size=self.image_size,
            samples_per_shard=self.samples_per_shard,
            max_caption_characters=self.max_caption_characters,
            max_image_pixels=self.max_image_pixels,
        )
        if self.image_format not in IMAGE_FORMATS:
            raise InputError(
                f"image_format={self.image_format}: choose one of {', '.join(IMAGE_FORMATS)}"
            )
        if not 0 <= self.max_rejected_fraction <= 1:
            raise InputError(
                f"max_rejected_fraction={self.max_rejected_fraction}: set a share from 0 to 1"
            )
        if not 0 <= self.num_workers <= MAX_WORKERS:
            raise InputError(f"num_workers={self.num_workers}: set 0 to {MAX_WORKERS}")


@dataclass(frozen=True, kw_only=True)
class EncodeShardsConfig:
    """What `launch/encode_shards.py` reads and writes."""

    shards: str
    """Folder of image shards."""
    text_tokenizer_dir: str
    """Folder of the text tokenizer."""
    image_tokenizer_dir: str
    """Folder of the image tokenizer: the `weights/` of its run. (Not "image_tokenizer": on the
    command line that name chooses from conf/image_tokenizer/.)"""
    output_dir: str
    """Folder to write: token shards and `manifest.json`."""
    keep_pixels: bool = False
    """Whether token shards also hold each picture's file, unchanged; training with
    model.reconstructor.kind=end_to_end reads it."""
    batch_size: int = 64
    """Images encoded at once, per process."""
    num_workers: int = 1
    """Processes; 0 or 1 works in the program's own."""
    overwrite: bool = False
    """Whether token shards already in `output_dir` are replaced."""
    num_parts: int = 1
    """Into how many parts the shards are split, such as tasks of a Slurm array."""
    part_index: int | None = None
    """The part, from 0, that is encoded now, without the manifest; null: all that is left of any
    part, and the manifest."""

    def __post_init__(self) -> None:
        check_local_input(
            shards=self.shards,
            text_tokenizer_dir=self.text_tokenizer_dir,
            image_tokenizer_dir=self.image_tokenizer_dir,
        )
        check_local_output(output_dir=self.output_dir)
        _require_at_least_one(batch_size=self.batch_size, num_parts=self.num_parts)
        if self.part_index is not None and not 0 <= self.part_index < self.num_parts:
            raise InputError(
                f"part_index={self.part_index} with num_parts={self.num_parts}: set it from 0 to "
                f"{self.num_parts - 1}, or to null for all parts and the manifest"
            )
        if not 0 <= self.num_workers <= MAX_WORKERS:
            raise InputError(f"num_workers={self.num_workers}: set 0 to {MAX_WORKERS}")


def _require_at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"{name}={value}: set at least 1")
