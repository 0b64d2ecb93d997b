"""Settings of the program that audits shards."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.generation import Device
from ernie_vilg.config.schema import (
    Fraction,
    LocalInput,
    LocalOutput,
    Matching,
    NumWorkers,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class AuditShardsConfig(Settings):
    """Settings of launch/audit_shards.py."""

    image_shards: LocalInput | None = None
    """Folder written by launch/build_shards.py; its `held_out/` is audited too. null leaves out
    every check of pictures, captions and metadata."""
    token_shards: LocalInput | None = None
    """Folder written by launch/encode_shards.py; null leaves out every check of codes."""
    text_tokenizer_dir: LocalInput | None = None
    """Folder of the text tokenizer of the token shards; null leaves out the checks that need it."""
    image_tokenizer_dir: LocalInput | None = None
    """Folder of the image tokenizer of the token shards, which encodes pictures again and decodes
    codes; null leaves these checks out."""
    output_dir: LocalOutput
    """Folder for `report.html` and `audit.json`."""
    samples_per_shard: PositiveInt = 4
    """Number of samples of every shard that are decoded and encoded again, chosen by a hash of
    their keys. Everything else is checked for all samples."""
    text_length: PositiveInt | None = None
    """Number of text slots of the model that will train on the token shards (model.text_length);
    null checks no caption's length."""
    max_truncated_fraction: Fraction = 0.01
    """Largest fraction of captions longer than `text_length`, as pretraining requires it."""
    min_equal_codes: Fraction = 0.99
    """Smallest fraction of the codes that encoding again must reproduce. Near ties between two
    codes may fall otherwise on another kind of device, or where codes were computed in bf16."""
    examples: PositiveInt = 12
    """Most pictures in each row of the report."""
    memory: Annotated[str, Matching(pattern="[1-9][0-9]*GB", words="gigabytes such as 2GB")] = "2GB"
    """Most memory of the database that joins samples and metadata."""
    device: Device = "auto"
    """Device of the image tokenizer: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there
    is one. It computes in fp32."""
    executor: Literal["processes", "ray"] = "processes"
    """Engine that reads the shards: processes of this machine, or a Ray cluster."""
    ray_address: str | None = None
    """Address of the Ray cluster, auto for the one that this machine belongs to; null starts one on
    this machine."""
    num_workers: NumWorkers = 1
    """Number of shards that are read at once; 0 and 1 read in the program's own process. With Ray,
    0 takes every CPU of the cluster."""
    overwrite: bool = False
    """Whether an audit already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_shards is None and self.token_shards is None:
            raise InputError(
                "image_shards=null and token_shards=null: name a folder of image shards, of token "
                "shards, or both"
            )
        for name in ("text_tokenizer_dir", "image_tokenizer_dir", "text_length"):
            if getattr(self, name) is not None and self.token_shards is None:
                raise InputError(
                    f"{name}={getattr(self, name)} with token_shards=null: it checks token shards; "
                    "set token_shards, or leave it out"
                )
        if self.ray_address is not None and self.executor != "ray":
            raise InputError(
                f"ray_address={self.ray_address} with executor={self.executor}: set executor=ray, "
                "or leave ray_address out"
            )
