"""From a step number to this replica's micro-batches.

The global batch of step `s` is the samples at positions `s * B` to `(s + 1) * B - 1` of the
order, whatever the layout. Replica `r` of `R` takes the `r`-th of `R` equal runs of them and
cuts it into micro-batches.

Ids and codes are kept decoded, a shard at a time. Pictures stay encoded until their batch is
asked for: decoded they take a hundred times the memory of their codes, at 64 pixels of 3 bytes
for one code of 2.

Source: ours.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.images import decode_picture
from ernie_vilg.data.order import SampleOrder
from ernie_vilg.data.reader import KEY, Sample, read_shard
from ernie_vilg.manifest import Manifest
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS, PADDING_ID, UNKNOWN_ID, text_slots

PICTURE_MEMBERS = ("png", "jpg")
"""Extensions of pictures in shards."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some pairs, ready for the model, on the CPU."""

    text: Tensor
    """Text ids, int64 [batch, text_length], end of text and padding included."""
    codes: Tensor
    """Image codes in raster order, int64 [batch, num_image_tokens]."""
    pixels: Tensor | None = None
    """The pictures, uint8 [batch, 3, height, width]; only where they were asked for."""

    @property
    def num_text_targets(self) -> int:
        """Text slots to be predicted: all but padding."""
        return int((self.text != PADDING_ID).sum())


@dataclass(frozen=True, kw_only=True)
class _DecodedShard:
    """What is kept of a shard."""

    text: np.ndarray
    """Text ids, int32 [samples, text_length]."""
    codes: np.ndarray
    """Image codes, uint16 [samples, num_image_tokens]."""
    pictures: tuple[Sample, ...]
    """Each sample's key and picture file; empty where no pixels were asked for."""


def keeps_pixels(manifest: Manifest) -> bool:
    """Return whether token shards also hold pictures; those of before this setting do not."""
    return bool(manifest.settings.get("pixels", False))


class TokenBatches:
    """The training sequence of a folder of token shards, cut into steps."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        model: ModelConfig,
        order: SampleOrder,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        with_pixels: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            folder: where the shards are.
            manifest: the folder's manifest.
            model: gives the number of slots and the vocabularies' sizes.
            order: which sample stands where.
            global_batch_size: pairs per step over all replicas.
            micro_batch_size: pairs per batch.
            data_rank: this replica. Its tensor and pipeline ranks read the same samples.
            data_size: number of replicas.
            with_pixels: whether batches hold pictures too.

        Raises:
            ValueError: pixels are asked for and the shards keep none.
        """
        if with_pixels and not keeps_pixels(manifest):
            raise ValueError(
                f"token shards {folder} keep no pixels, which with_pixels=True needs: encode them "
                "again with launch/encode_shards.py ... keep_pixels=true overwrite=true"
            )
        self._folder = folder
        self._manifest = manifest
        self._model = model
        self._order = order
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._replica_batch_size = global_batch_size // data_size
        self._data_rank = data_rank
        self._with_pixels = with_pixels
        # A block of the order and the first shard of the next.
        self._shard = lru_cache(maxsize=order.shuffle_block_shards + 1)(self._decode_shard)

    def at(self, step: int) -> list[Batch]:
        """Return this replica's micro-batches of a step.

        Args:
            step: from 0.

        Raises:
            ValueError: a shard differs from the manifest, or a sample from the model's sizes,
                or a picture from its size in the manifest.
        """
        first = step * self._global_batch_size + self._data_rank * self._replica_batch_size
        return [
            self._batch(range(start, start + self._micro_batch_size))
            for start in range(first, first + self._replica_batch_size, self._micro_batch_size)
        ]

    def _batch(self, positions: range) -> Batch:
        text, codes, pictures = [], [], []
        for position in positions:
            location = self._order.locate(position)
            shard = self._shard(location.shard_index)
            text.append(shard.text[location.index])
            codes.append(shard.codes[location.index])
            if self._with_pixels:
                pictures.append(shard.pictures[location.index])
        return Batch(
            text=torch.from_numpy(np.stack(text).astype(np.int64)),
            codes=torch.from_numpy(np.stack(codes).astype(np.int64)),
            pixels=self._decode_pictures(pictures) if self._with_pixels else None,
        )

    def _decode_pictures(self, pictures: list[Sample]) -> Tensor:
        """Return pictures as uint8 [batch, 3, height, width]."""
        image_size = int(self._manifest.settings["image_size"])
        return torch.from_numpy(
            np.stack([decode_picture(picture, image_size) for picture in pictures])
        )

    def _decode_shard(self, shard_index: int) -> _DecodedShard:
        shard = self._manifest.shards[shard_index]
        samples = read_shard(self._folder, shard)
        text = np.empty((len(samples), self._model.text_length), dtype=np.int32)
        codes = np.empty((len(samples), self._model.num_image_tokens), dtype=np.uint16)
        for row, sample in enumerate(samples):
            name = f"sample {sample[KEY].decode()!r} of {shard.file}"
            token_ids = _load_array(sample["text.npy"])
            self._check_text(token_ids, name)
            text[row] = text_slots(token_ids.tolist(), self._model.text_length)
            sample_codes = _load_array(sample["codes.npy"])
            self._check_codes(sample_codes, name)
            codes[row] = sample_codes.ravel()
        pictures = tuple(map(_picture_alone, samples)) if self._with_pixels else ()
        return _DecodedShard(text=text, codes=codes, pictures=pictures)

    def _check_text(self, token_ids: np.ndarray, name: str) -> None:
        is_special = (token_ids < NUM_SPECIAL_IDS) & (token_ids != UNKNOWN_ID)
        if (is_special | (token_ids >= self._model.text_vocab_size)).any():
            raise ValueError(
                f"{name} has text ids from {token_ids.min()} to {token_ids.max()} where "
                f"{NUM_SPECIAL_IDS} to model.text_vocab_size - 1 = "
                f"{self._model.text_vocab_size - 1} are legal: encode the shards again"
            )

    def _check_codes(self, codes: np.ndarray, name: str) -> None:
        grid = self._model.image_grid_size
        if codes.shape != (grid, grid):
            raise ValueError(
                f"{name} has codes of shape {codes.shape} where model.image_grid_size={grid} "
                f"needs {(grid, grid)}: encode the shards again, or change the model"
            )
        if codes.max() >= self._model.codebook_size:
            raise ValueError(
                f"{name} has the image code {codes.max()} where model.codebook_size="
                f"{self._model.codebook_size}: encode the shards again, or change the model"
            )


def _picture_alone(sample: Sample) -> Sample:
    return {name: sample[name] for name in (KEY, *PICTURE_MEMBERS) if name in sample}


def _load_array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)
