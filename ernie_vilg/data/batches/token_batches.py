"""From a step number to this replica's micro-batches.

Step `s`, counted from 1, takes the global batch of `B` samples from position `(s - 1) * B` on
(`sequence.order.first_position`), whatever the layout. Replica `r` of `R` takes the `r`-th of `R`
equal parts and cuts it into micro-batches. The data state of a checkpoint is therefore its step.

Source: ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.data.batches.token_reader import TokenReader, TokenSequence
from ernie_vilg.data.batches.workers import OnWait, PrefetchedSteps
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.sample_reader import Places
from ernie_vilg.data.shards.damage import DamageAccount, DamageFinding
from ernie_vilg.vocabulary import PADDING_ID


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
class Share:
    """Which positions of each step one replica takes."""

    global_batch_size: int
    """Pairs per step over all replicas."""
    data_rank: int
    """This replica. Its tensor and pipeline ranks read the same samples."""
    data_size: int
    """Number of replicas; divides the global batch."""

    def positions(self, step: int) -> np.ndarray:
        """Return the positions of a step, counted from 1, in order, int64 [pairs]."""
        count = self.global_batch_size // self.data_size
        first = first_position(step, self.global_batch_size) + self.data_rank * count
        return np.arange(first, first + count, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class TokenStep:
    """One replica's pairs of one step."""

    step: int
    """Number of the step, from 1."""
    batch: Batch
    """All of them."""
    places: Places
    """Where they come from."""
    findings: tuple[DamageFinding, ...]
    """Damage that was met."""

    def pin_memory(self) -> "TokenStep":
        """Return the same in pinned memory, from which a GPU copies while it computes."""
        pixels = self.batch.pixels
        batch = Batch(
            text=self.batch.text.pin_memory(),
            codes=self.batch.codes.pin_memory(),
            pixels=None if pixels is None else pixels.pin_memory(),
        )
        return TokenStep(step=self.step, batch=batch, places=self.places, findings=self.findings)


class TokenBatches:
    """The training sequence, cut into steps and micro-batches, read ahead by workers."""

    def __init__(
        self,
        sequence: TokenSequence,
        share: Share,
        *,
        micro_batch_size: int,
        known_damage: tuple[DamageFinding, ...] = (),
        on_step: Callable[[TokenStep, list[DamageFinding]], None] = lambda step, findings: None,
        hand_out_pixels: bool = True,
        pin_memory: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            sequence: which pair stands where, and how it is read.
            share: this replica's positions.
            micro_batch_size: pairs per batch; divides the share.
            known_damage: damage found before, which counts towards the limits.
            on_step: called with each step as it is handed out, and the damage found new in it.
            hand_out_pixels: whether batches hold the pictures that the sequence reads.
            pin_memory: whether batches are in pinned memory.

        Raises:
            InputError: the shards cannot be read with these settings.
        """
        self._share = share
        self._micro_batch_size = micro_batch_size
        self._on_step = on_step
        self._hand_out_pixels = hand_out_pixels
        self._account = DamageAccount(sequence.damage_limits, known_damage)
        self._steps = PrefetchedSteps(
            partial(_TokenSteps, sequence, share), sequence.loader, pin_memory=pin_memory
        )

    def at(self, step: int) -> list[Batch]:
        """Return this replica's micro-batches of a step.

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError: a shard differs from the manifest, or a sample from the model's sizes; or,
                with `loader.damage=skip`, too many do.
            TimeoutError: reading stalls; the message names the shard.
            RuntimeError: a worker died.
        """
        item = self._steps.at(step)
        new = self._account.add(item.findings, item.places.is_damaged)
        self._on_step(item, new)
        whole = item.batch
        pixels = whole.pixels if self._hand_out_pixels else None
        size = self._micro_batch_size
        return [
            Batch(
                text=whole.text[first : first + size],
                codes=whole.codes[first : first + size],
                pixels=None if pixels is None else pixels[first : first + size],
            )
            for first in range(0, len(whole.text), size)
        ]

    @property
    def doing(self) -> str:
        """What workers do, the shards they wait for by name; any thread may ask."""
        return self._steps.doing

    def close(self) -> None:
        """End the workers and close every file."""
        self._steps.close()


class _TokenSteps:
    """Reads one replica's share of steps, in a worker or in the rank itself."""

    def __init__(self, sequence: TokenSequence, share: Share, on_wait: OnWait) -> None:
        self._share = share
        self._reader = TokenReader(sequence, on_wait)

    def at(self, step: int) -> TokenStep:
        rows = self._reader.read(self._share.positions(step))
        return TokenStep(
            step=step,
            batch=Batch(
                text=torch.from_numpy(rows.text),
                codes=torch.from_numpy(rows.codes),
                pixels=None if rows.pixels is None else torch.from_numpy(rows.pixels),
            ),
            places=rows.places,
            findings=rows.findings,
        )

    def close(self) -> None:
        self._reader.close()
