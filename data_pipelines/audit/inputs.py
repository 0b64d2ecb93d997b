"""Folders that an audit reads: their manifests, their lineage, and the tasks they give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from data_pipelines.audit.checks import Tallies
from data_pipelines.audit.recoding import Tokenizers
from data_pipelines.audit.shard_pass import ImageShard, PassTask, TokenShard
from data_pipelines.audit.tokens import TokenSettings
from data_pipelines.captions import has_caption_lines
from data_pipelines.encoding.views import ViewSettings
from data_pipelines.metadata import HELD_OUT_FOLDER
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import (
    FILE_NAME,
    NUM_QUESTIONS,
    Manifest,
    ShardKind,
    read_manifest,
)
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card

TRAIN, HELD_OUT = "train", "held_out"

_IMAGE_SETTINGS = ("image_size",)
_TOKEN_SETTINGS = ("image_size", "grid_size", "codebook_size", "text_vocab_size")


@dataclass(kw_only=True)
class Inputs:
    """Manifests of the folders, and hashes of the tokenizers."""

    images: dict[str, tuple[Path, Manifest]] = field(default_factory=dict)
    """Folder and manifest of the image shards by split."""
    tokens: dict[str, tuple[Path, Manifest]] = field(default_factory=dict)
    """The same of the token shards."""
    tokenizer_hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the tokenizers by their name in the lineage."""
    expected_code_counts: Sequence[int] | None = None
    """Uses of each code on the image tokenizer's card, if it is given and has them."""


def read_inputs(config: AuditShardsConfig, tallies: Tallies) -> Inputs:
    """Read the manifests and the tokenizers.

    A manifest with wrong content is a problem of the data, and its shards are left out.

    Raises:
        InputError: a folder has no manifest, or a tokenizer cannot be read: a wrong setting.
    """
    found = Inputs()
    for name in ("image_shards", "token_shards"):
        place = getattr(config, name)
        if place is not None and not Path(place, FILE_NAME).is_file():
            raise InputError(f"{name}={place} has no {FILE_NAME}: name a folder of shards")
    if config.text_tokenizer_dir is not None:
        text_tokenizer = TextTokenizer.load(Path(config.text_tokenizer_dir))
        found.tokenizer_hashes["text_tokenizer"] = text_tokenizer.sha256
    if config.image_tokenizer_dir is not None:
        folder = Path(config.image_tokenizer_dir)
        _, found.tokenizer_hashes["image_tokenizer"] = load_image_tokenizer(folder)
        found.expected_code_counts = read_card(folder).code_counts
    if config.image_shards is not None:
        found.images = _manifests(Path(config.image_shards), "image", _IMAGE_SETTINGS, tallies)
    if config.token_shards is not None:
        found.tokens = _manifests(Path(config.token_shards), "token", _TOKEN_SETTINGS, tallies)
    return found


def _manifests(
    folder: Path, kind: ShardKind, needed: tuple[str, ...], tallies: Tallies
) -> dict[str, tuple[Path, Manifest]]:
    """Return the manifests of a folder and of the held-out one within it, as far as they are."""
    folders = {TRAIN: folder}
    if (folder / HELD_OUT_FOLDER).is_dir():
        folders[HELD_OUT] = folder / HELD_OUT_FOLDER
    found = {}
    for split, place in folders.items():
        manifest = _manifest(place, kind, needed, tallies)
        if manifest is not None:
            found[split] = place, manifest
    return found


def _manifest(
    folder: Path, kind: ShardKind, needed: tuple[str, ...], tallies: Tallies
) -> Manifest | None:
    problem, manifest = None, None
    try:
        manifest = read_manifest(folder, kind)
    except InputError as error:
        problem = str(error)
    else:
        missing = [name for name in needed if not manifest.settings.get(name)]
        if missing:
            problem = f"{folder / FILE_NAME} has no settings {', '.join(missing)}"
            manifest = None
    tallies["image_manifests" if kind == "image" else "token_manifest"].add(
        [problem] if problem else []
    )
    return manifest


def check_lineage(inputs: Inputs, tallies: Tallies) -> None:
    """Compare the hashes that the token shards record with those of their sources."""
    for split, (folder, manifest) in inputs.tokens.items():
        wanted = dict(inputs.tokenizer_hashes)
        if split in inputs.images:
            wanted["image_shards"] = inputs.images[split][1].digest()
        for name, sha256 in wanted.items():
            recorded = manifest.lineage.get(name)
            problems = []
            if recorded != sha256:
                problems = [
                    f"{folder} was made with {name} {recorded!s:.16}..., the given one is "
                    f"{sha256:.16}...: name the one that it was made with, or encode the shards "
                    "again"
                ]
            tallies["lineage"].add(problems)


def pass_tasks(
    config: AuditShardsConfig, inputs: Inputs, scratch: Path, tallies: Tallies
) -> list[PassTask]:
    """Return a task for every image shard with its token shard, if it has one."""
    tokenizers = Tokenizers(
        text=_path(config.text_tokenizer_dir),
        image=_path(config.image_tokenizer_dir),
        device=config.device,
    )
    pairs: list[tuple[ImageShard | None, tuple[TokenShard, ...]]] = []
    for split in (TRAIN, HELD_OUT):
        images, tokens = _image_shards(split, inputs), _token_shards(split, inputs)
        if images and tokens and len(images) != len(tokens):
            tallies["token_keys"].add(
                [
                    f"{inputs.tokens[split][0]} has token shards of {len(tokens)} image shards, "
                    f"{inputs.images[split][0]} has {len(images)}: encode the shards again"
                ]
            )
        pairs += [(image, views or ()) for image, views in zip_longest(images, tokens)]
    return [
        PassTask(
            number=number,
            images=image,
            tokens=token,
            tokenizers=tokenizers,
            num_samples=config.samples_per_shard,
            scratch=scratch,
        )
        for number, (image, token) in enumerate(pairs)
    ]


def _image_shards(split: str, inputs: Inputs) -> list[ImageShard]:
    if split not in inputs.images:
        return []
    folder, manifest = inputs.images[split]
    return [
        ImageShard(
            folder=folder,
            shard=shard,
            split=split,
            position=position,
            image_size=manifest.settings["image_size"],
            has_caption_lines=has_caption_lines(manifest),
            is_ours="captions" in manifest.settings,
        )
        for position, shard in enumerate(manifest.shards)
    ]


def _token_shards(split: str, inputs: Inputs) -> list[tuple[TokenShard, ...]]:
    """Return the token shards of every image shard: one per view, which follow one another."""
    if split not in inputs.tokens:
        return []
    folder, manifest = inputs.tokens[split]
    settings = TokenSettings(
        grid_size=manifest.settings["grid_size"],
        codebook_size=manifest.settings["codebook_size"],
        vocab_size=manifest.settings["text_vocab_size"],
        views=_views(manifest),
        has_questions=bool(manifest.settings.get(NUM_QUESTIONS, 0)),
    )
    count = settings.views.count
    shards = [
        TokenShard(folder=folder, shard=shard, settings=settings, split=split, view=number % count)
        for number, shard in enumerate(manifest.shards)
    ]
    return [tuple(shards[first : first + count]) for first in range(0, len(shards), count)]


def _views(manifest: Manifest) -> ViewSettings:
    """Return the views that token shards say they hold; older ones hold whole pictures."""
    settings = manifest.settings
    cuts = settings.get("cuts") or {}
    return ViewSettings(
        count=settings.get("views", 1),
        horizontal_flip=cuts.get("horizontal_flip", False),
        seed=cuts.get("seed", 0),
        source_size=cuts.get("from", settings["image_size"]),
        image_size=settings["image_size"],
    )


def _path(place: str | None) -> Path | None:
    return None if place is None else Path(place)
