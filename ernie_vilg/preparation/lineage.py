"""Checks that token shards, tokenizers and model belong together.

Codes mean nothing without the codebook that made them, nor ids without their pieces. The manifest
of every data set names both tokenizers by hash; a run whose tokenizers have other hashes would
learn nonsense, and is refused. Training with `reconstructor=end_to_end` also needs the pictures
that the codes were made from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.validation import ValidationConfig
from ernie_vilg.data.batches.token_batches import keeps_pixels
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import shown
from ernie_vilg.storage.remote import TransferLimits
from ernie_vilg.storage.shard_manifest import read_manifest_at
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer

NO_VALIDATION = ValidationConfig()


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The data sets and tokenizers of a run, by hash."""

    data_sets: tuple[DataSource, ...]
    """Data sets of token shards, in the order of their names."""
    held_out: tuple[DataSource, ...] = ()
    """Sets of held-out pairs, in the order of their names."""
    text_tokenizer: str
    """SHA-256 of the text tokenizer's model."""
    image_tokenizer: str
    """SHA-256 of the image tokenizer's weights."""
    image_tokenizer_config: ImageTokenizerConfig
    """Architecture of the image tokenizer."""


def check_lineage(
    data: PretrainDataConfig,
    model: ModelConfig,
    validation: ValidationConfig = NO_VALIDATION,
) -> Lineage:
    """Check that shards, tokenizers and model fit each other.

    Args:
        data: locations of shards and tokenizers.
        model: the model to train on them.
        validation: locations of held-out pairs, which are checked like the others.

    Raises:
        InputError: they do not fit; the message says which, and what to do.
    """
    data_sets = _read_data_sets(data.locations, data.setting_of, data)
    held_out = held_out_sets(data, validation)
    named = [(each, _named(each, data.setting_of(each.name))) for each in data_sets]
    named += [(each, _named(each, validation.setting_of(each.name))) for each in held_out]
    text_tokenizer = TextTokenizer.load(Path(data.text_tokenizer))
    image_tokenizer, image_sha256 = load_image_tokenizer(Path(data.image_tokenizer))
    config = image_tokenizer.config
    for data_set, name in named:
        _check_samples(data_set, name)
        _check_hash("text_tokenizer", data_set, name, data, text_tokenizer.sha256)
        _check_hash("image_tokenizer", data_set, name, data, image_sha256)
        _check_sizes(data_set, name, data, config)
    _check_model(model, data, config, text_tokenizer.vocab_size)
    if model.reconstructor.is_end_to_end:
        for data_set, name in named:
            _check_pixels(data_set, name, data)
        _check_decoder(model, data, config)
    return Lineage(
        data_sets=data_sets,
        held_out=held_out,
        text_tokenizer=text_tokenizer.sha256,
        image_tokenizer=image_sha256,
        image_tokenizer_config=config,
    )


def with_decoder(config: PretrainConfig, tokenizer: ImageTokenizerConfig) -> PretrainConfig:
    """Return the run, with the image tokenizer's decoder if its reconstructor needs one."""
    reconstructor = config.model.reconstructor
    if not reconstructor.is_end_to_end:
        return config
    reconstructor = replace(reconstructor, decoder=tokenizer)
    return replace(config, model=replace(config.model, reconstructor=reconstructor))


def held_out_sets(data: PretrainDataConfig, validation: ValidationConfig) -> tuple[DataSource, ...]:
    """Read the manifests of a run's held-out pairs; none without validation.

    Raises:
        InputError: a manifest cannot be read.
    """
    locations = dict(sorted(validation.shards.items())) if validation.every else {}
    return _read_data_sets(locations, validation.setting_of, data)


def _read_data_sets(
    locations: Mapping[str, str], setting_of: Callable[[str], str], data: PretrainDataConfig
) -> tuple[DataSource, ...]:
    limits = TransferLimits(max_attempts=data.loader.max_attempts)
    data_sets = []
    for name, location in locations.items():
        try:
            manifest = read_manifest_at(location, "token", limits)
        except (ImportError, OSError) as error:
            raise InputError(f"{setting_of(name)}: {error}") from error
        data_sets.append(DataSource(name=name, location=location, manifest=manifest))
    return tuple(data_sets)


def _check_samples(data_set: DataSource, named: str) -> None:
    if data_set.manifest.num_samples == 0:
        raise InputError(
            f"{named} hold no samples: encode them again with "
            "launch/encode_shards.py, or leave them out"
        )


def _check_model(
    model: ModelConfig,
    data: PretrainDataConfig,
    config: ImageTokenizerConfig,
    text_vocab_size: int,
) -> None:
    for name, ours, theirs in (
        ("codebook_size", model.codebook_size, config.codebook_size),
        ("image_grid_size", model.image_grid_size, config.grid_size),
    ):
        if ours != theirs:
            raise InputError(
                f"model.{name}={ours} where data.image_tokenizer={data.image_tokenizer} has "
                f"{theirs}: set model.{name}={theirs}, or null to follow it, or name another "
                "tokenizer"
            )
    if text_vocab_size > model.text_vocab_size:
        raise InputError(
            f"model.text_vocab_size={model.text_vocab_size} is below the {text_vocab_size} ids of "
            f"data.text_tokenizer={data.text_tokenizer}: set at least that, or null to follow it"
        )


def _check_hash(
    name: str, data_set: DataSource, named: str, data: PretrainDataConfig, actual: str
) -> None:
    expected = data_set.manifest.lineage.get(name)
    if expected != actual:
        raise InputError(
            f"{named} were encoded with another {name} (SHA-256 {expected}) than "
            f"data.{name}={getattr(data, name)} ({actual}): name the one they were encoded with, "
            "or encode them again with launch/encode_shards.py"
        )


def _check_sizes(
    data_set: DataSource,
    named: str,
    data: PretrainDataConfig,
    image_tokenizer: ImageTokenizerConfig,
) -> None:
    for name in ("image_size", "grid_size", "codebook_size"):
        recorded, actual = data_set.manifest.settings.get(name), getattr(image_tokenizer, name)
        if recorded != actual:
            raise InputError(
                f"{named} have {name}={recorded} in their manifest where their "
                f"image tokenizer {data.image_tokenizer} has {actual}: the manifest was changed, "
                "encode them again with launch/encode_shards.py"
            )


def _check_pixels(data_set: DataSource, named: str, data: PretrainDataConfig) -> None:
    if not keeps_pixels(data_set.manifest):
        raise InputError(
            "model.reconstructor.kind=end_to_end learns to draw pictures, and "
            f"{named} keep no pixels: encode them again, "
            "from the folder of image shards, with python launch/encode_shards.py shards=... "
            f"text_tokenizer_dir={data.text_tokenizer} image_tokenizer_dir={data.image_tokenizer} "
            f"output_dir={shown(data_set.location)} keep_pixels=true overwrite=true, "
            "or set model.reconstructor.kind=two_stage"
        )


def _named(data_set: DataSource, setting: str) -> str:
    return f"{setting}={shown(data_set.location)}"


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
    raise InputError(
        "model.reconstructor.decoder is not the architecture of the image tokenizer "
        f"{data.image_tokenizer}: {differences}; set model.reconstructor.decoder=null, which takes "
        "the tokenizer's"
    )
