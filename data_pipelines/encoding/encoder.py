"""Pictures to codes, a batch at a time, while threads decode the pictures of the next batches.

On a GPU the encoder also runs while codes of the batch before are written: copies go through pinned
memory and wait for nothing, and only the reader of the codes waits for them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_bytes

BATCHES_AHEAD = 2
"""Batches that are decoded while one is encoded."""

Extra = TypeVar("Extra")


@dataclass(frozen=True, kw_only=True)
class DecodedPictures:
    """Some pictures of a shard, ready for the encoder."""

    pixels: Tensor
    """The pictures, uint8 [batch, height, width, 3]; pinned for a GPU."""
    indices: range
    """Their samples' indices in the shard."""


def decode_ahead(
    decode: Callable[[int, np.ndarray], None],
    num_samples: int,
    *,
    image_size: int,
    batch_size: int,
    num_threads: int,
    pin_memory: bool,
) -> Iterator[DecodedPictures]:
    """Yield the pictures of a shard in batches, in order, decoded by threads ahead of their use.

    Args:
        decode: writes the picture of a sample into an array, uint8 [height, width, 3]; runs in
            threads.
        num_samples: number of samples.
        image_size: pixels per side.
        batch_size: pictures per batch.
        num_threads: number of threads.
        pin_memory: whether the batches are in pinned memory.
    """
    waiting: deque[tuple[DecodedPictures, list[Future[None]]]] = deque()
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for first in range(0, num_samples, batch_size):
            indices = range(first, min(first + batch_size, num_samples))
            shape = (len(indices), image_size, image_size, 3)
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            parts = [
                threads.submit(_decode_part, decode, indices, pixels.numpy(), part, num_threads)
                for part in range(min(num_threads, len(indices)))
            ]
            waiting.append((DecodedPictures(pixels=pixels, indices=indices), parts))
            if len(waiting) > BATCHES_AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        threads.shutdown(cancel_futures=True)


def _decode_part(
    decode: Callable[[int, np.ndarray], None],
    indices: range,
    pixels: np.ndarray,
    part: int,
    num_parts: int,
) -> None:
    for row in range(part, len(indices), num_parts):
        decode(indices[row], pixels[row])


def _finished(batch: DecodedPictures, parts: list[Future[None]]) -> DecodedPictures:
    wait(parts)
    for part in parts:
        part.result()
    return batch


@dataclass(frozen=True, kw_only=True)
class StartedCodes:
    """Codes that a GPU may still be computing."""

    codes: Tensor
    """Codes, int64 [batch, grid, grid], on the CPU."""
    event: torch.cuda.Event | None
    """Event that the codes wait for; None on a CPU."""

    def result(self) -> np.ndarray:
        """Return the codes, uint16 [batch, grid, grid], once they are there."""
        if self.event is not None:
            self.event.synchronize()
        return self.codes.numpy().astype(np.uint16)


def start_encoding(tokenizer: VQGAN, pixels: Tensor, *, in_bfloat16: bool) -> StartedCodes:
    """Start to encode pictures.

    Args:
        tokenizer: the frozen image tokenizer.
        pixels: uint8 [batch, height, width, 3], on the CPU.
        in_bfloat16: whether the encoder's layers compute in bfloat16; distances to the codes are
            always computed in float32.
    """
    device = next(tokenizer.parameters()).device
    on_device = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
        codes = tokenizer.encode(from_bytes(on_device))
    grid = tokenizer.config.grid_size
    assert codes.shape == (len(pixels), grid, grid), codes.shape
    if device.type == "cpu":
        return StartedCodes(codes=codes, event=None)
    on_cpu = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True)
    on_cpu.copy_(codes, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return StartedCodes(codes=on_cpu, event=event)


def one_behind(started: Iterable[tuple[Extra, StartedCodes]]) -> Iterator[tuple[Extra, np.ndarray]]:
    """Yield the codes of each batch once the next batch is started."""
    previous: tuple[Extra, StartedCodes] | None = None
    for extra, codes in started:
        if previous is not None:
            yield previous[0], previous[1].result()
        previous = extra, codes
    if previous is not None:
        yield previous[0], previous[1].result()
