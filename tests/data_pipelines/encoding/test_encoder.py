"""Decoding ahead keeps the order, stops at errors, and bfloat16 is compared with float32."""

import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.encoding import token_shard
from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.encoding.encoder import BATCHES_AHEAD, StartedCodes, decode_ahead
from data_pipelines.encoding.workers import gpus_of_processes
from ernie_vilg.errors import InputError
from tests.data_pipelines.encoding.test_encode import config, encode_until, folder

__all__ = ["folder"]  # a fixture


def batches(decode: object, num_threads: int, num_samples: int = 11) -> list[list[int]]:
    return [
        [*batch.indices, *batch.pixels[:, 0, 0, 0].tolist()]
        for batch in decode_ahead(
            decode,  # type: ignore[arg-type]
            num_samples,
            image_size=2,
            batch_size=4,
            num_threads=num_threads,
            pin_memory=False,
        )
    ]


def write_index(index: int, pixels: np.ndarray) -> None:
    pixels[:] = 100 + index


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_pictures_come_in_order_whatever_the_threads(num_threads: int) -> None:
    assert batches(write_index, num_threads) == [
        [0, 1, 2, 3, 100, 101, 102, 103],
        [4, 5, 6, 7, 104, 105, 106, 107],
        [8, 9, 10, 108, 109, 110],
    ]


def test_the_next_batches_are_decoded_while_one_is_encoded() -> None:
    decoded = threading.Semaphore(0)

    def decode(index: int, pixels: np.ndarray) -> None:
        decoded.release()

    ahead = decode_ahead(decode, 100, image_size=2, batch_size=4, num_threads=1, pin_memory=False)
    next(ahead)

    for _ in range(4 * (BATCHES_AHEAD + 1)):  # the encoder has asked for one batch
        assert decoded.acquire(timeout=60)
    ahead.close()


def test_an_error_in_a_thread_reaches_the_reader() -> None:
    def decode(index: int, pixels: np.ndarray) -> None:
        if index == 6:
            raise InputError("the seventh")

    with pytest.raises(InputError, match="the seventh"):
        batches(decode, 2)


def test_bfloat16_says_how_many_codes_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encode_image_shards(config(folder, "plain"))
    change_bfloat16_codes(monkeypatch)

    manifest = encode_image_shards(
        config(folder, precision="bf16", batch_size=2, max_differing_codes=0.5)
    )

    # The first batches of shards of 3, 3 and 1 pictures: 2, 2 and 1 of them, 16 codes each.
    assert manifest.settings["precision"] == "bf16"
    assert manifest.settings["bfloat16_codes"] == {"compared": 80, "differing": 9}
    assert "bfloat16_codes" not in plain.settings


def test_too_many_differing_codes_end_the_encoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_bfloat16_codes(monkeypatch)

    with pytest.raises(
        InputError,
        match=r"bf16 changes 9\.38% of 32 codes of \S+images-00000.tar, more than "
        r"max_differing_codes=0\.05.*allow it with max_differing_codes=0\.1$",
    ):
        encode_image_shards(config(folder, precision="bf16", batch_size=2))


def change_bfloat16_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bfloat16 change the first three codes of every batch, and no others."""
    original = token_shard.start_encoding

    def start(tokenizer: object, pixels: object, *, in_bfloat16: bool) -> StartedCodes:
        started = original(tokenizer, pixels, in_bfloat16=False)  # type: ignore[arg-type]
        if in_bfloat16:
            codes = started.codes.clone()
            codes.view(-1)[:3] = (codes.view(-1)[:3] + 1) % 16
            return StartedCodes(codes=codes, event=None)
        return started

    monkeypatch.setattr(token_shard, "start_encoding", start)


def test_real_bfloat16_is_another_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_until(folder, monkeypatch, stop_after=2)

    encoded = encode_until(
        folder, monkeypatch, stop_after=9, precision="bf16", max_differing_codes=1.0
    )

    assert len(encoded) == 3


def test_processes_take_the_gpus_in_turn() -> None:
    assert gpus_of_processes((0, 1, 2), 3) == (0, 1, 2)
    assert gpus_of_processes((0, 1), 5) == (0, 1, 0, 1, 0)
    assert gpus_of_processes((), 4) == ()
