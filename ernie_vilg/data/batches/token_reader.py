"""From positions of the training sequence to pairs, as arrays.

Source: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.pictures import EncodedPicture, fetch_picture
from ernie_vilg.data.batches.token_decoder import TokenDecoder, TokenHeaders
from ernie_vilg.data.sequence.sample_reader import Places, PositionReader, SampleSequence
from ernie_vilg.data.shards.damage import DamagedSampleError, DamageFinding
from ernie_vilg.data.shards.open_shards import OpenShard, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class TokenSequence(SampleSequence):
    """A sequence of pairs for one model."""

    model: ModelConfig
    """Gives the number of slots and the vocabularies' sizes."""
    with_pixels: bool
    """Whether pictures are read too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for source in self.sources:
            if self.with_pixels and not keeps_pixels(source.manifest):
                raise InputError(
                    f"token shards {source.location} keep no pixels, which with_pixels=True needs: "
                    "encode them again with launch/encode_shards.py ... keep_pixels=true "
                    "overwrite=true"
                )


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The pairs of some positions."""

    text: np.ndarray
    """Text ids, int64 [pairs, text_length], end of text and padding included."""
    codes: np.ndarray
    """Image codes in raster order, int64 [pairs, num_image_tokens]."""
    pixels: np.ndarray | None
    """The pictures, uint8 [pairs, 3, height, width]; only where they were asked for."""
    places: Places
    """Where the pairs come from."""
    findings: tuple[DamageFinding, ...]
    """Damage that was met on the way, each finding once."""


def keeps_pixels(manifest: Manifest) -> bool:
    """Return whether token shards also hold pictures; those of before this setting do not."""
    return bool(manifest.settings.get("pixels", False))


class TokenReader:
    """Reads pairs by their positions."""

    def __init__(
        self, sequence: TokenSequence, on_wait: Callable[[str], None] = lambda what: None
    ) -> None:
        """Open nothing yet.

        Args:
            sequence: what stands where.
            on_wait: told what is being waited for before each wait for a shard, and "" after.

        Raises:
            InputError: a location cannot be read with these settings.
        """
        self._sequence = sequence
        self._samples = PositionReader(sequence, on_wait)
        self._headers = TokenHeaders(sequence.model)

    def read(self, positions: np.ndarray) -> TokenRows:
        """Read the pairs of some positions.

        Args:
            positions: of the training sequence, int64 [pairs], increasing.

        Raises:
            DamagedShardError, DamagedSampleError: with `loader.damage=stop`, a shard differs from
                its manifest, or a sample from the model's sizes or vocabularies.
            InputError: no usable sample was found for a position.
            OSError: a shard cannot be read.
        """
        decoder: TokenDecoder = TokenDecoder(self._sequence.model, self._headers, len(positions))
        pixels = None
        if self._sequence.with_pixels:
            size = int(self._sequence.sources[0].manifest.settings["image_size"])
            pixels = np.empty((len(positions), 3, size, size), np.uint8)
            decoder = _PixelDecoder(self._sequence.model, self._headers, len(positions), pixels)
        places, findings = self._samples.read(positions, decoder)
        return TokenRows(
            text=decoder.text, codes=decoder.codes, pixels=pixels, places=places, findings=findings
        )

    def sample(self, data_set: int, shard_index: int, index: int) -> Sample:
        """Read all members of one sample.

        Raises:
            DamagedShardError, DamagedSampleError: it cannot be used.
        """
        return self._samples.sample(data_set, shard_index, index)

    def close(self) -> None:
        """Close every file and end every thread."""
        self._samples.close()


class _PixelDecoder(TokenDecoder):
    """Reads pictures too."""

    def __init__(
        self, model: ModelConfig, headers: TokenHeaders, count: int, pixels: np.ndarray
    ) -> None:
        super().__init__(model, headers, count)
        self._pixels = pixels
        self._pictures: dict[int, EncodedPicture] = {}

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        super().fetch(data_set, opened, indices, rows)
        for row, index in zip(rows, indices, strict=True):
            self._pictures[row] = fetch_picture(opened, index)

    def decode(self, rows: list[int]) -> dict[int, DamagedSampleError]:
        failed = super().decode(rows)
        for row in rows:
            try:
                self._pixels[row] = self._pictures[row].decode(self._pixels.shape[-1])
            except DamagedSampleError as error:
                failed.setdefault(row, error)
        return failed
