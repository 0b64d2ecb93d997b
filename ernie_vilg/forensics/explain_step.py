"""The batch of a past step, rebuilt from the run folder and the shards.

The ledger records the positions of the step, the order of the samples, and the quarantine of the
time; the damage log records samples that could not be read. Where the result is uncertain, the
explanation says so, for single samples where possible.

Source: outliers by the modified z-score of Iglewicz and Hoaglin (How to Detect and Handle Outliers,
1993).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.pictures import decode_picture
from ernie_vilg.data.batches.token_batches import keeps_pixels
from ernie_vilg.data.records.damage_log import DamageSummary, read_damage
from ernie_vilg.data.records.ledger import StepHistory, StepRecord, read_step
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.forensics.past_batch import (
    LeftOut,
    Moved,
    PastBatch,
    past_quarantine,
    past_sequence,
)
from ernie_vilg.runs.recorded_settings import read_settings
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import parse_json
from ernie_vilg.storage.locations import shown
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import caption_ids
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import to_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer

OUTLIER_SCORE = 3.5
"""Modified z-score above which a loss is an outlier, as its source suggests."""
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text to image", "image to text"
_PICTURES_AT_ONCE = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleLosses:
    """Losses of the samples of a batch under the weights of a checkpoint."""

    checkpoint_step: int
    """Step of the checkpoint."""
    text_to_image: np.ndarray
    """Mean loss over each sample's image codes given its text, nats, float64 [samples]."""
    image_to_text: np.ndarray
    """Mean loss over each sample's text pieces given its codes, end of text included, nats, float64
    [samples]."""

    def total(self, objective: ObjectiveConfig) -> np.ndarray:
        """Return the sum of both, weighted as in the run, float64 [samples]."""
        image, text = objective.text_to_image_weight, objective.image_to_text_weight
        total: np.ndarray = image * self.text_to_image + text * self.image_to_text
        return total


MeasureLosses = Callable[[Path, int, np.ndarray, np.ndarray], SampleLosses]
"""(run folder, step, text ids [samples, text_length], codes [samples, num_image_tokens])."""


@dataclass(frozen=True, kw_only=True)
class ExplainedSample:
    """One sample of the batch."""

    position: int
    """Position in the training sequence."""
    data_rank: int
    """Replica that trained on the sample."""
    micro_batch: int
    """Forward pass of the replica, from 0."""
    data_set: str
    """Name of the data set."""
    epoch: int
    """Epoch of the data set, from 0."""
    shard: str
    """File of the shard."""
    index: int
    """Index of the sample in its shard."""
    key: str
    """Key of the sample."""
    caption: str
    """Caption in the data set; of several, the one that this visit read."""
    text: str
    """Text ids that the model was given, decoded."""
    left_out: LeftOut | None
    """Sample that this one replaces."""
    doubt: str
    """Reason why another sample may have been trained on; empty where the sample is certain."""
    text_to_image: float | None = None
    """Loss of the image given the text, nats per image code."""
    image_to_text: float | None = None
    """Loss of the text given the image, nats per text piece."""
    outlying: tuple[str, ...] = ()
    """Directions in which the loss is an outlier."""
    picture: np.ndarray | None = None
    """Picture decoded from the codes, uint8 [height, width, 3]; for shown samples only."""
    original: np.ndarray | None = None
    """Original pixels, where the shards keep them, uint8 [height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class StepExplanation:
    """The content of the page about a step."""

    run_dir: Path
    """Folder of the run."""
    history: StepHistory
    """Records of the step in the ledger."""
    doubts: tuple[str, ...]
    """Reasons why the rebuilt batch is uncertain; empty where it is certain."""
    sources: tuple[DataSource, ...]
    """Data sets of the run."""
    shown: tuple[ExplainedSample, ...]
    """Samples with pictures, the largest loss first if there are losses."""
    listed: tuple[ExplainedSample, ...]
    """Other samples of the batch."""
    checkpoint_step: int | None
    """Step of the checkpoint for the losses; None without losses."""
    damage: DamageSummary
    """Damage that the run has met."""

    @property
    def samples(self) -> tuple[ExplainedSample, ...]:
        """The whole batch."""
        return self.shown + self.listed


def explain_step(
    run_dir: Path,
    step: int,
    *,
    max_samples: int,
    moved: Moved,
    measure_losses: MeasureLosses | None,
) -> StepExplanation:
    """Rebuild the batch of a step.

    Args:
        run_dir: a run folder of launch/pretrain.py.
        step: the step, from 1.
        max_samples: number of samples with pictures.
        moved: present locations of the run's data.
        measure_losses: puts the batch through the model of a checkpoint; None for no losses.

    Raises:
        InputError: the folder is no run folder, its ledger has no such step, or shards or
            tokenizers are not those of the run.
    """
    config = read_settings(run_dir, PretrainConfig)
    history = read_step(RunFolder(run_dir).ledger, step)
    damage = read_damage(RunFolder(run_dir).ledger)
    quarantine, doubts = past_quarantine(run_dir, history.record)
    sequence = past_sequence(history.record, config, moved, quarantine)
    text_tokenizer, image_tokenizer = _load_tokenizers(config, moved, sequence.sources)
    batch = PastBatch(sequence, history.record, damage)
    try:
        losses, order = None, np.arange(len(batch.positions))
        if measure_losses is not None:
            pairs = batch.rows.content
            losses = measure_losses(run_dir, step, pairs.text.numpy(), pairs.codes.numpy())
            order = np.argsort(-losses.total(config.objective), kind="stable")
        samples = _with_losses(_describe(batch, history.record, text_tokenizer), losses)
        shown = _with_pictures(samples, batch, order[:max_samples].tolist(), image_tokenizer)
    finally:
        batch.close()
    return StepExplanation(
        run_dir=run_dir,
        history=history,
        doubts=(*doubts, *_doubts_about_ledger(history), *_doubts_about_samples(samples)),
        sources=sequence.sources,
        shown=shown,
        listed=tuple(samples[row] for row in order[max_samples:].tolist()),
        checkpoint_step=None if losses is None else losses.checkpoint_step,
        damage=damage,
    )


def outliers(losses: np.ndarray) -> np.ndarray:
    """Return which losses are far above the others, bool [samples].

    Args:
        losses: float64 [samples].
    """
    above = losses - np.median(losses)
    spread = np.median(np.abs(above))
    # The median of |x| is 0.6745 standard deviations in a normal distribution.
    is_outlying: np.ndarray = (0.6745 * above > OUTLIER_SCORE * spread) & (spread > 0)
    return is_outlying


def _load_tokenizers(
    config: PretrainConfig, moved: Moved, sources: Sequence[DataSource]
) -> tuple[TextTokenizer, VQGAN]:
    """Load both tokenizers, and check that the shards were encoded with them."""
    text_folder = moved.text_tokenizer or config.data.text_tokenizer
    image_folder = moved.image_tokenizer or config.data.image_tokenizer
    text_tokenizer = TextTokenizer.load(Path(text_folder))
    image_tokenizer, image_sha256 = load_image_tokenizer(Path(image_folder))
    for name, folder, sha256 in (
        ("text_tokenizer", text_folder, text_tokenizer.sha256),
        ("image_tokenizer", image_folder, image_sha256),
    ):
        for source in sources:
            expected = source.manifest.lineage.get(name)
            if sha256 != expected:
                raise InputError(
                    f"{folder} is not the {name} that {shown(source.location)} was encoded with "
                    f"(SHA-256 {sha256}, not {expected}): restore it, or say where it is with "
                    f"{name}_dir=FOLDER"
                )
    return text_tokenizer, image_tokenizer


def _describe(
    batch: PastBatch, record: StepRecord, tokenizer: TextTokenizer
) -> list[ExplainedSample]:
    """Describe every sample of the batch."""
    per_replica = record.num_positions // record.data_parallel_size
    samples = []
    for row, position in enumerate(batch.positions.tolist()):
        source, place, members = batch.source(row), batch.place(row), batch.members(row)
        samples.append(
            ExplainedSample(
                position=position,
                data_rank=row // per_replica,
                micro_batch=row % per_replica // record.micro_batch_size,
                data_set=source.name,
                epoch=place.epoch,
                shard=source.manifest.shards[place.shard_index].file,
                index=place.index,
                key=members[KEY].decode("utf-8", "replace"),
                caption=_caption(members, batch.caption_index(row)),
                text=_decode(tokenizer, batch.rows.content.text[row].numpy()),
                left_out=batch.left_out(row),
                doubt=batch.doubt(row),
            )
        )
    return samples


def _with_losses(
    samples: list[ExplainedSample], losses: SampleLosses | None
) -> list[ExplainedSample]:
    """Return the samples with their losses."""
    if losses is None:
        return samples
    directions = {TEXT_TO_IMAGE: losses.text_to_image, IMAGE_TO_TEXT: losses.image_to_text}
    outlying = {name: outliers(values) for name, values in directions.items()}
    return [
        replace(
            sample,
            text_to_image=float(losses.text_to_image[row]),
            image_to_text=float(losses.image_to_text[row]),
            outlying=tuple(name for name in directions if outlying[name][row]),
        )
        for row, sample in enumerate(samples)
    ]


def _with_pictures(
    samples: list[ExplainedSample], batch: PastBatch, rows: list[int], tokenizer: VQGAN
) -> tuple[ExplainedSample, ...]:
    """Return some samples of the batch with their pictures."""
    pictures = _pictures(tokenizer, batch.rows.content.codes[rows].numpy())
    return tuple(
        replace(samples[row], picture=picture, original=_original(batch, row))
        for row, picture in zip(rows, pictures, strict=True)
    )


def _doubts_about_ledger(history: StepHistory) -> tuple[str, ...]:
    if not history.num_unreadable_lines:
        return ()
    return (
        f"{history.num_unreadable_lines} line(s) of the ledger cannot be read, and may be later "
        "records of this step",
    )


def _doubts_about_samples(samples: Sequence[ExplainedSample]) -> tuple[str, ...]:
    count = sum(bool(sample.doubt) for sample in samples)
    if not count:
        return ()
    return (f"{count} of its {len(samples)} samples may have been others; they say why",)


def _caption(members: Sample, caption_index: int) -> str:
    """Return the caption that was read from a sample's JSON, which training does not read."""
    try:
        content = parse_json(members["json"], "its JSON")
    except (InputError, KeyError):
        return ""
    if not isinstance(content, dict):
        return ""
    caption = content.get("caption")
    if caption_index > 0:
        several = content.get("captions")
        captions = several if isinstance(several, list) else []
        caption = captions[caption_index] if caption_index < len(captions) else None
    return caption if isinstance(caption, str) else ""


def _decode(tokenizer: TextTokenizer, slots: np.ndarray) -> str:
    """Return the text of a sample's slots.

    A model's vocabulary may be padded beyond its text tokenizer's, to divide over devices.
    """
    ids = caption_ids(slots.tolist())
    try:
        return tokenizer.decode(ids)
    except InputError:
        return f"(ids that the text tokenizer lacks: {ids})"


@torch.inference_mode()
def _pictures(tokenizer: VQGAN, codes: np.ndarray) -> list[np.ndarray]:
    """Decode codes [samples, num_image_tokens] into pictures, uint8 [height, width, 3] each."""
    grids = torch.from_numpy(codes).unflatten(1, (tokenizer.config.grid_size, -1))
    return [
        picture.permute(1, 2, 0).numpy()
        for part in grids.split(_PICTURES_AT_ONCE)
        for picture in to_bytes(tokenizer.decode(part))
    ]


def _original(batch: PastBatch, row: int) -> np.ndarray | None:
    """Return the original pixels, uint8 [height, width, 3], where the shards keep them."""
    manifest = batch.source(row).manifest
    if not keeps_pixels(manifest):
        return None
    try:
        pixels = decode_picture(batch.members(row), int(manifest.settings["image_size"]))
    except DamagedSampleError as error:  # training without pixels does not notice it
        logger.warning("no original of position %d: %s", batch.positions[row], error)
        return None
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
