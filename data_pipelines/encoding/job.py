"""The work of an encoding: the sets of token shards, their lineage, and a task per shard."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.captions import has_caption_lines
from data_pipelines.encoding.reuse import captions_stand_twice, check_reusable
from data_pipelines.encoding.task import EncodingSettings, EncodingTask
from data_pipelines.encoding.views import ViewSettings
from data_pipelines.encoding.workers import Workers
from data_pipelines.images import image_settings
from data_pipelines.metadata import HELD_OUT_FOLDER
from data_pipelines.shard_writer import shard_name
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.shard_manifest import FILE_NAME, Manifest, read_manifest
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer

SHARD_PREFIX = "tokens"
_CROP_SETTINGS = {
    name for kind in ("png", "jpeg") for name in image_settings(image_size=1, image_format=kind)
}
"""Settings of image shards that decide about pixels; the others are of captions and counts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodingSet:
    """Token shards of one folder: all but the held-out samples, or those."""

    name: str
    """Folder within the output; empty for the output itself."""
    tasks: tuple[EncodingTask, ...]
    """A task per token shard, in order."""
    settings: Mapping[str, Any]
    """Settings of the manifest that the samples do not change."""
    lineage: Mapping[str, str]
    """Lineage of the manifest."""
    old: Manifest | None
    """Token shards whose codes are taken over."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the bytes of the token shards depend on, by name."""
        prefix = f"{self.name}." if self.name else ""
        codes_from = None if self.old is None else self.old.digest()
        parts = {**self.lineage, **self.settings, "codes_from": codes_from}
        return {f"{prefix}{name}": value for name, value in parts.items()}

    def in_folder(self, work: Path) -> "EncodingSet":
        """Return the same set with the files of its tasks in a work folder."""
        prefix = f"{self.name}-" if self.name else ""
        tasks = tuple(
            replace(
                task,
                output=work / "shards" / self.name / shard_name(SHARD_PREFIX, index),
                record=work / "records" / f"{prefix}{index:05d}.json",
                lock=work / "records" / f"{prefix}{index:05d}.lock",
            )
            for index, task in enumerate(self.tasks)
        )
        return replace(self, tasks=tasks)


def sets_to_encode(config: EncodeShardsConfig, workers: Workers) -> tuple[EncodingSet, ...]:
    """Return the token shards that settings ask for; the files of their tasks are not set.

    Raises:
        InputError: the image shards or a tokenizer cannot be read, or do not fit together.
    """
    tokenizers = _Tokenizers.load(config)
    made = [_set_of(config, "", tokenizers, workers)]
    held_out = Path(config.shards, HELD_OUT_FOLDER)
    if (held_out / FILE_NAME).is_file():
        if read_manifest(held_out, "image").shards:
            logger.info(
                "%s is encoded too, to %s", held_out, Path(config.output_dir, HELD_OUT_FOLDER)
            )
            made.append(_set_of(config, HELD_OUT_FOLDER, tokenizers, workers))
        else:
            logger.warning("%s holds no samples, and gives no token shards", held_out)
    return tuple(made)


@dataclass(frozen=True, kw_only=True)
class _Tokenizers:
    """Both tokenizers, and the hashes that identify them."""

    text: TextTokenizer
    image: VQGAN
    hashes: Mapping[str, str]

    @staticmethod
    def load(config: EncodeShardsConfig) -> "_Tokenizers":
        text = TextTokenizer.load(Path(config.text_tokenizer_dir))
        image, sha256 = load_image_tokenizer(Path(config.image_tokenizer_dir))
        hashes = {"text_tokenizer": text.sha256, "image_tokenizer": sha256}
        return _Tokenizers(text=text, image=image, hashes=hashes)


def _set_of(
    config: EncodeShardsConfig, name: str, tokenizers: _Tokenizers, workers: Workers
) -> EncodingSet:
    """Return the token shards of the image shards, or of those in a folder within."""
    source = Path(config.shards, name)
    images = read_manifest(source, "image")
    if not images.shards:
        raise InputError(f"shards={source} hold no samples: build the shards again")
    views = _views(config, images, tokenizers.image, is_held_out=bool(name))
    manifest_settings = {
        "image_size": views.image_size,
        "grid_size": tokenizers.image.config.grid_size,
        "codebook_size": tokenizers.image.config.codebook_size,
        "text_vocab_size": tokenizers.text.vocab_size,
        "pixels": config.keep_pixels,
        "precision": workers.precision,
        **views.as_settings(),
        **{key: images.settings[key] for key in ("captions",) if key in images.settings},
    }
    lineage = {**tokenizers.hashes, **_lineage_of(images, views)}
    old, old_folder = None, None
    if config.codes_from is not None:
        old_folder = Path(config.codes_from, name)
        old = check_reusable(old_folder, lineage, manifest_settings, images)
    settings = _encoding_settings(
        config, workers, images, views=views, lineage=lineage, network=tokenizers.image.config
    )
    return EncodingSet(
        name=name,
        tasks=_tasks(source, images, settings, old_folder, old),
        settings=manifest_settings,
        lineage=lineage,
        old=old,
    )


def _encoding_settings(
    config: EncodeShardsConfig,
    workers: Workers,
    images: Manifest,
    *,
    views: ViewSettings,
    lineage: Mapping[str, str],
    network: ImageTokenizerConfig,
) -> EncodingSettings:
    return EncodingSettings(
        text_tokenizer=Path(config.text_tokenizer_dir),
        image_tokenizer=Path(config.image_tokenizer_dir),
        lineage=lineage,
        views=views,
        grid_size=network.grid_size,
        codebook_size=network.codebook_size,
        has_caption_lines=has_caption_lines(images),
        has_captions_twice=captions_stand_twice(images),
        keep_pixels=config.keep_pixels,
        precision=workers.precision,
        max_differing_codes=config.max_differing_codes,
        device=workers.device,
        batch_size=config.batch_size,
        decode_threads=workers.decode_threads,
    )


def _lineage_of(images: Manifest, views: ViewSettings) -> dict[str, str]:
    """Return the part of the lineage that comes from the image shards."""
    crop = {key: images.settings[key] for key in _CROP_SETTINGS if key in images.settings}
    cuts = views.as_settings()["cuts"]
    return {
        "crop_settings": sha256_of_json(crop if cuts is None else {**crop, "cuts": cuts}),
        "image_shards": images.digest(),
    }


def _views(
    config: EncodeShardsConfig, images: Manifest, tokenizer: VQGAN, *, is_held_out: bool
) -> ViewSettings:
    size, required = images.settings["image_size"], tokenizer.config.image_size
    if size < required:
        raise InputError(
            f"shards={config.shards} hold images of {size} pixels, image_tokenizer_dir="
            f"{config.image_tokenizer_dir} was trained on {required}: build shards with "
            f"image_size={required} or more, or name a tokenizer trained on {size}"
        )
    return ViewSettings(
        count=1 if is_held_out else config.views,
        horizontal_flip=config.horizontal_flip and not is_held_out,
        seed=config.seed,
        source_size=size,
        image_size=required,
    )


def _tasks(
    source: Path,
    images: Manifest,
    settings: EncodingSettings,
    old_folder: Path | None,
    old: Manifest | None,
) -> tuple[EncodingTask, ...]:
    """Return a task per view of each image shard; all views of a shard follow one another."""
    count = settings.views.count
    return tuple(
        EncodingTask(
            source=source,
            shard=shard,
            view=view,
            output=Path(),
            record=Path(),
            lock=Path(),
            settings=settings,
            codes_folder=old_folder,
            codes_shard=None if old is None else old.shards[index * count + view],
        )
        for index, shard in enumerate(images.shards)
        for view in range(count)
    )
