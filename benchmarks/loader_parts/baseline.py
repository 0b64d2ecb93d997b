"""The same reads by webdataset's own pipelines; run by `benchmarks/loader.py`.

The pipelines use everything that makes them faster within webdataset's interface: they skip unused
members before reading them, decode a sample with one function instead of the general decoder, which
looks at every member's name, and convert types batch by batch. With the general decoder they reach
about two thirds of this speed. They verify no hashes.

Source: https://webdataset.github.io/webdataset.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from benchmarks.support.measurer import Result, Task, answer, tasks
from benchmarks.support.timing import Stopwatch
from ernie_vilg.vocabulary import END_OF_TEXT_ID, PADDING_ID

TEXT_LENGTH = 64
"""Text slots."""
SHUFFLE_BUFFER = 1000
"""Samples, as in webdataset's examples."""

Bytes = dict[str, bytes]


def token_pipeline(files: Sequence[Path], batch_size: int, *, is_shuffled: bool) -> Any:
    """Return an iterable of int64 [batch, 1024] codes and int64 [batch, 64] text slots."""
    samples = _samples(files, (".codes.npy", ".text.npy"), is_shuffled=is_shuffled)
    return samples.map(_decode_tokens).batched(batch_size).map(_token_batch)


def image_pipeline(files: Sequence[Path], batch_size: int, *, is_shuffled: bool) -> Any:
    """Return an iterable of uint8 [batch, 3, height, width], each in a tuple."""
    samples = _samples(files, (".png", ".jpg"), is_shuffled=is_shuffled)
    return samples.map(_decode_picture).batched(batch_size).map(_image_batch)


def _samples(files: Sequence[Path], members: tuple[str, ...], *, is_shuffled: bool) -> Any:
    """Return an iterable of samples, each a dictionary of the bytes of these members."""
    pipeline = webdataset.WebDataset(
        [str(file) for file in files],
        shardshuffle=len(files) if is_shuffled else False,
        select_files=lambda name: name.endswith(members),
    )
    return pipeline.shuffle(SHUFFLE_BUFFER) if is_shuffled else pipeline


def _decode_tokens(sample: Bytes) -> tuple[np.ndarray, ...]:
    return _array(sample["codes.npy"]).reshape(-1), text_slots(_array(sample["text.npy"]))


def _array(content: bytes) -> np.ndarray:
    # np.load would first detect the kind of file, which costs a fifth.
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


def text_slots(ids: np.ndarray) -> np.ndarray:
    """Do what `ernie_vilg.vocabulary.text_slots` does, in numpy, int64 [text_length]."""
    slots = np.full(TEXT_LENGTH, PADDING_ID, np.int64)
    count = min(len(ids), TEXT_LENGTH)
    slots[:count] = ids[:count]
    if count < TEXT_LENGTH:
        slots[count] = END_OF_TEXT_ID
    return slots


def _token_batch(batch: Any) -> tuple[Tensor, ...]:
    codes, text = batch
    return torch.from_numpy(np.asarray(codes).astype(np.int64)), torch.from_numpy(np.asarray(text))


def _decode_picture(sample: Bytes) -> tuple[np.ndarray, ...]:
    content = sample["png"] if "png" in sample else sample["jpg"]
    return (np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),)


def _image_batch(batch: Any) -> tuple[Tensor, ...]:
    # [batch, height, width, 3] to [batch, 3, height, width]
    pictures = np.asarray(batch[0]).transpose(0, 3, 1, 2)
    return (torch.from_numpy(np.ascontiguousarray(pictures)),)


PIPELINES = {"tokens": token_pipeline, "images": image_pipeline}


def read(task: Task) -> Result:
    """Make batches of all samples of some shards."""
    files = sorted(Path(task["folder"]).glob("*.tar"))
    part = files[task["first_shard"] :][: task["num_shards"]]
    num_samples = 0
    stopwatch = Stopwatch()
    pipeline = PIPELINES[task["measure"]]
    for batch in pipeline(part, task["batch_size"], is_shuffled=task["is_shuffled"]):
        num_samples += len(batch[0])
    return stopwatch.per_sample(num_samples)


def main() -> None:
    """Answer tasks."""
    torch.set_num_threads(1)
    for task in tasks():
        answer(read(task))


if __name__ == "__main__":
    main()
