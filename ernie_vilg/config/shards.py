"""Settings of the programs that write image shards and token shards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ernie_vilg.config.curation import CurationConfig
from ernie_vilg.config.generation import Device, DrawingPrecision
from ernie_vilg.config.schema import (
    Fraction,
    FractionBelowOne,
    LocalInput,
    LocalOrRemote,
    LocalOutput,
    NaturalInt,
    NumWorkers,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError

Layout = Literal[
    "auto",
    "captions",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
    "img2dataset",
    "coco",
    "caption_lists",
    "question_answers",
    "image_folder",
    "scenes",
    "image_shards",
]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of raw pairs."""

    location: LocalOrRemote
    """Folder, file or URL (s3, gs, https) of the pairs; `scenes` draws the built-in scenes."""
    layout: Layout = "auto"
    """Layout of the pairs; auto recognises it. docs/data.md describes each."""
    image_key: str | None = None
    """Column or key of the picture's path; null takes the layout's own."""
    caption_key: str | None = None
    """Column or key of the caption; null takes the layout's own."""
    question_key: str | None = None
    """Column of a question that the caption answers, in tables; null takes question where a table
    has it beside answer, and no captions."""
    split: str | None = None
    """Name of the list to read of an FM-IQA file, such as train; null takes the only one."""
    image_list: LocalInput | None = None
    """File with the id of a picture in every line, such as coco-cn_train.txt, for caption_lists:
    captions of other pictures are left out. null reads all."""
    images_root: LocalOrRemote | None = None
    """Folder or URL that the pictures' paths start from, where it is not the location's folder.
    Links may lead to it."""
    rules: str | None = None
    """Name of its rules in curation.rules; null takes its own name, else default."""


@dataclass(frozen=True, kw_only=True)
class BuildShardsConfig(Settings):
    """Settings of launch/build_shards.py."""

    source: LocalOrRemote | None = None
    """Folder, file or URL of the only source of raw pairs; `sources` names several."""
    layout: Layout = "auto"
    """Layout of `source`; auto recognises it. docs/data.md describes each."""
    image_key: str | None = None
    """Column or key of the picture's path in `source`; null takes the layout's own."""
    caption_key: str | None = None
    """Column or key of the caption in `source`; null takes the layout's own."""
    question_key: str | None = None
    """Column of a question that the caption answers, where `source` is a table; null takes question
    where a table has it beside answer, and no captions."""
    split: str | None = None
    """Name of the list to read of an FM-IQA file, such as train; null takes the only one."""
    image_list: LocalInput | None = None
    """File with the id of a picture in every line, such as coco-cn_train.txt, where `source` is of
    caption_lists: captions of other pictures are left out. null reads all."""
    images_root: LocalOrRemote | None = None
    """Folder or URL that the paths of the pictures of `source` start from, where it is not the
    folder of `source`. Links may lead to it."""
    rules: str | None = None
    """Name in curation.rules of the rules of `source`; null takes default."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Several sources by name, in order, instead of `source`."""
    output_dir: LocalOutput
    """Folder for image shards, `manifest.json`, `metadata/` and `rejected.jsonl`; and for
    `held_out/`, where a part is held out."""
    image_size: PositiveInt
    """Width and height of every image in the shards, pixels."""
    samples_per_shard: PositiveInt = 4096
    """Samples of every shard but the last."""
    image_format: Literal["png", "jpeg"] = "png"
    """png (exact) or jpeg (quality 95, about a fifth of the size for photographs)."""
    captions: Literal["all", "first", "separate"] = "all"
    """Treatment of several captions of one picture: all stay with it, and training chooses one at
    each visit; the first stays; or each becomes a sample of its own."""
    curation: CurationConfig = field(default_factory=CurationConfig)
    """Rules for what is kept, a file of conf/curation/."""
    hold_out_fraction: FractionBelowOne = 0.0
    """Fraction of the near-duplicate clusters that goes to `held_out/`, chosen by a hash."""
    seed: NaturalInt = 0
    """Seed of the choice of what is held out."""
    max_faulty_fraction: Fraction = 0.05
    """Largest fraction of rows that cannot be read; with more the program stops. Rows that a rule
    rejects do not count."""
    max_caption_characters: PositiveInt = 1000
    """Longest accepted caption."""
    max_image_pixels: PositiveInt = 64_000_000
    """Largest accepted image, width times height."""
    rows_per_part: PositiveInt = 1024
    """Rows of the input that one task reads, where the layout allows a choice."""
    executor: Literal["processes", "ray"] = "processes"
    """Runner of the tasks: processes of this machine, or a Ray cluster."""
    ray_address: str | None = None
    """Address of the Ray cluster, auto for the one that this machine belongs to; null starts one on
    this machine."""
    num_workers: NumWorkers = 1
    """Number of tasks at once; 0 and 1 work in the program's own process. With Ray, 0 takes every
    CPU of the cluster. The shards do not depend on it."""
    num_parts: PositiveInt = 1
    """Number of parts of the input, such as tasks of a Slurm array."""
    part_index: NaturalInt | None = None
    """Part to read and filter, from 0, without the shards; null does the rest of all parts, and
    the shards."""
    overwrite: bool = False
    """Whether image shards already in `output_dir` are replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_part(self.part_index, self.num_parts)
        if (self.source is None) == (not self.sources):
            raise InputError(
                f"source={self.source} and sources={sorted(self.sources)}: set source to the only "
                "source of raw pairs, or name several, such as sources.web.location=FOLDER"
            )
        self.curation.rules_of({name: source.rules for name, source in self.all_sources.items()})

    @property
    def all_sources(self) -> Mapping[str, SourceConfig]:
        """Every source by its name; the only one is called `source`."""
        if self.source is None:
            return self.sources
        only = SourceConfig(
            location=self.source,
            layout=self.layout,
            image_key=self.image_key,
            caption_key=self.caption_key,
            question_key=self.question_key,
            split=self.split,
            image_list=self.image_list,
            images_root=self.images_root,
            rules=self.rules,
        )
        return {"source": only}


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
    """Folder for token shards, `manifest.json` and `codes.json`; and for `held_out/`, where the
    image shards have one."""
    codes_from: LocalInput | None = None
    """Folder of token shards of the same image shards and image tokenizer, whose codes are taken
    over: only captions are encoded, and no picture is read. null encodes the pictures."""
    keep_pixels: bool = False
    """Whether token shards also hold each picture's file, for
    model.reconstructor.kind=end_to_end: unchanged, or as PNG where a part was cut out or mirrored.
    """
    views: PositiveInt = 1
    """Number of times that each picture is encoded, each in token shards of its own. Of pictures
    larger than the tokenizer's, the first view is the centre, and the others are cut at random
    places. `held_out/` has one view."""
    horizontal_flip: bool = False
    """Whether every other view is mirrored, which makes captions with left and right, and writing
    in pictures, wrong."""
    seed: NaturalInt = 0
    """Seed of the places where views after the first are cut."""
    batch_size: PositiveInt = 64
    """Number of images encoded at once, per process."""
    device: Device = "auto"
    """Device of the image tokenizer: cpu, cuda, cuda:1 for the second GPU, or auto: every GPU of
    the machine, the CPU where there is none. Near ties between codes may differ between kinds of
    device."""
    precision: DrawingPrecision = "fp32"
    """Number format of the encoder: fp32; bf16, whose codes are compared with those of fp32 in the
    first batch of every shard; or auto: bf16 on a GPU that has it, fp32 elsewhere."""
    max_differing_codes: Fraction = 0.05
    """Largest fraction of a shard's compared codes that bf16 may change; with more the program
    stops."""
    executor: Literal["processes", "ray"] = "processes"
    """Place of the tasks: processes of this machine, or a Ray cluster."""
    ray_address: str | None = None
    """Address of the Ray cluster, auto for the one that this machine belongs to; null starts one on
    this machine."""
    num_workers: NumWorkers | None = None
    """Number of shards encoded at once; 0 and 1 work in the program's own process. null is one per
    GPU, or 1 without one; with Ray as many as the cluster's GPUs or CPUs allow. Several processes
    share the GPUs or the cores."""
    decode_threads: PositiveInt | None = None
    """Number of threads per process that decode the next pictures while the encoder runs; null is 1
    on a CPU, and a worker's share of the cores on a GPU."""
    overwrite: bool = False
    """Whether token shards already in `output_dir` are replaced."""
    num_parts: PositiveInt = 1
    """Number of parts of the shards, such as tasks of a Slurm array."""
    part_index: NaturalInt | None = None
    """Part to encode, from 0, without the manifest; null encodes the rest of all parts, and the
    manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_part(self.part_index, self.num_parts)


def _check_part(part_index: int | None, num_parts: int) -> None:
    if part_index is not None and part_index >= num_parts:
        raise InputError(
            f"part_index={part_index} with num_parts={num_parts}: set it from 0 to "
            f"{num_parts - 1}, or to null for all parts and the rest"
        )
