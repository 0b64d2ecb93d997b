"""Every rank reads its own slice of the same batches, cut and mirrored by position alone."""

import multiprocessing
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.image_batches import ImageBatches, ImageSequence
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest
from tests.data.image_shards import images_of, numbered_png, write_image_shards

SIZE = 8
SPARE = 2
NUM_PICTURES = 24
GLOBAL_BATCH = 8
STEPS_PER_EPOCH = NUM_PICTURES // GLOBAL_BATCH


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Four shards of six pictures; each has SPARE rows and columns more than SIZE."""
    folder = tmp_path_factory.mktemp("images")
    files = [numbered_png(number, SIZE + SPARE) for number in range(NUM_PICTURES)]
    return folder, write_image_shards(
        folder,
        [files[first : first + 6] for first in range(0, NUM_PICTURES, 6)],
        image_size=SIZE + SPARE,
    )


def replica(rank: int = 0, ranks: int = 1) -> ReplicaSlice:
    return ReplicaSlice(batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=rank, data_size=ranks)


def steps_of(
    sequence: ImageSequence, first: int, last: int, *, ranks: int = 1
) -> list[torch.Tensor]:
    """Return the global batches of the steps after `first`, the ranks' shares side by side."""
    shares: list[list[torch.Tensor]] = [[] for _ in range(first, last)]
    for rank in range(ranks):
        with closing(ImageBatches(sequence, replica(rank, ranks))) as batches:
            for step, parts in enumerate(shares, start=first + 1):
                parts.append(batches.at(step))
    return [torch.cat(parts) for parts in shares]


def numbers(pictures: torch.Tensor) -> list[int]:
    assert pictures.dtype == torch.uint8
    return [int(number) for number in pictures[:, 0, 0, 0]]


def rows_of(sequence: ImageSequence, count: int, *, for_training: bool) -> np.ndarray:
    with closing(SampleReader(replace(sequence, for_training=for_training))) as reader:
        return reader.read(np.arange(count)).content.numpy()


def test_an_epoch_holds_every_picture_once(shards: tuple[Path, Manifest]) -> None:
    epochs = [
        [number for batch in steps_of(images_of(*shards), first, first + 3) for number in batch]
        for first in (0, STEPS_PER_EPOCH)
    ]

    first, second = (numbers(torch.stack(epoch)) for epoch in epochs)
    assert sorted(first) == sorted(second) == list(range(NUM_PICTURES))
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_batches_depend_on_neither_ranks_nor_workers(
    shards: tuple[Path, Manifest], ranks: int, workers: int
) -> None:
    loader = LoaderConfig(num_workers=workers)
    alone = images_of(*shards, image_size=SIZE, horizontal_flip=True)
    shared = images_of(*shards, image_size=SIZE, horizontal_flip=True, loader=loader)

    expected = steps_of(alone, 0, 4)

    found = steps_of(shared, 0, 4, ranks=ranks)
    assert all(map(torch.equal, found, expected))
    resumed = steps_of(shared, 2, 4, ranks=ranks)
    assert all(map(torch.equal, resumed, expected[2:]))


def test_same_picture_is_cut_differently_in_another_epoch(shards: tuple[Path, Manifest]) -> None:
    pictures = rows_of(images_of(*shards, image_size=SIZE), 2 * NUM_PICTURES, for_training=True)

    places: dict[int, list[tuple[int, int]]] = {}
    for picture in pictures:
        corner = int(picture[1, 0, 0]), int(picture[2, 0, 0])
        places.setdefault(int(picture[0, 0, 0]), []).append(corner)
    assert sum(first != second for first, second in places.values()) > NUM_PICTURES / 2


def test_pictures_are_cut_at_every_place(shards: tuple[Path, Manifest]) -> None:
    pictures = rows_of(images_of(*shards, image_size=SIZE), 900, for_training=True)

    for picture in pictures:
        top, left = int(picture[1, 0, 0]), int(picture[2, 0, 0])
        assert picture[1, :, 3].tolist() == list(range(top, top + SIZE))
        assert picture[2, 5].tolist() == list(range(left, left + SIZE))
    corners = Counter((int(picture[1, 0, 0]), int(picture[2, 0, 0])) for picture in pictures)
    assert set(corners) == {(top, left) for top in range(3) for left in range(3)}
    # 900 draws of 9 places: 100 each, with a standard deviation of 9.4.
    assert all(60 < count < 140 for count in corners.values())


def test_every_other_picture_is_mirrored(shards: tuple[Path, Manifest]) -> None:
    whole = SIZE + SPARE
    pictures = rows_of(images_of(*shards, horizontal_flip=True), 400, for_training=True)

    columns = Counter(tuple(picture[2, 4].tolist()) for picture in pictures)

    forward, backward = tuple(range(whole)), tuple(reversed(range(whole)))
    assert set(columns) == {forward, backward}
    assert 150 < columns[backward] < 250  # 200, with a standard deviation of 10
    assert all(picture[1, :, 0].tolist() == list(range(whole)) for picture in pictures)


def test_mirroring_moves_no_cut(shards: tuple[Path, Manifest]) -> None:
    plain = rows_of(images_of(*shards, image_size=SIZE), 50, for_training=True)
    mirrored = rows_of(
        images_of(*shards, image_size=SIZE, horizontal_flip=True), 50, for_training=True
    )

    for one, other in zip(plain, mirrored, strict=True):
        assert np.array_equal(one, other) or np.array_equal(one, other[:, :, ::-1])


def test_another_seed_cuts_elsewhere(shards: tuple[Path, Manifest]) -> None:
    def corners(seed: int) -> list[list[int]]:
        sequence = images_of(*shards, image_size=SIZE, seed=seed)
        return rows_of(sequence, 50, for_training=True)[:, 1:, 0, 0].tolist()

    assert corners(3) == corners(3)
    assert corners(3) != corners(4)


def test_pictures_are_evaluated_at_the_centre_and_never_mirrored(
    shards: tuple[Path, Manifest],
) -> None:
    sequence = images_of(*shards, image_size=SIZE, horizontal_flip=True)

    with closing(ImageBatches(sequence, replica())) as batches:
        pictures = batches.for_evaluation(0, 50)

    assert all(int(number) == 1 for number in pictures[:, 1, 0, 0])  # SPARE / 2 rows left out
    assert all(picture[2, 4].tolist() == list(range(1, 1 + SIZE)) for picture in pictures)


@pytest.mark.parametrize(
    "cache_bytes",
    [
        pytest.param(5 * 3 * (SIZE + SPARE) ** 2, id="some are kept"),
        pytest.param(1 << 20, id="all are kept"),
    ],
)
def test_cache_changes_no_batch(shards: tuple[Path, Manifest], cache_bytes: int) -> None:
    settings = {"image_size": SIZE, "horizontal_flip": True}
    plain = images_of(*shards, **settings)  # type: ignore[arg-type]
    cached = images_of(*shards, **settings, cache_bytes=cache_bytes)  # type: ignore[arg-type]

    found, expected = steps_of(cached, 0, 7), steps_of(plain, 0, 7)  # into the third epoch

    assert all(map(torch.equal, found, expected))


def test_cache_holds_no_more_than_its_bytes(shards: tuple[Path, Manifest]) -> None:
    picture_bytes = 3 * (SIZE + SPARE) ** 2
    sequence = images_of(*shards, cache_bytes=5 * picture_bytes + 1)

    with closing(SampleReader(sequence)) as reader:
        reader.read(np.arange(12))
        rows: Any = reader._new_rows(np.arange(0))
        kept = rows._cache._pictures

    assert sum(picture.nbytes for picture in kept.values()) == 5 * picture_bytes


def test_pictures_in_quarantine_are_replaced_and_no_other_changes(
    shards: tuple[Path, Manifest],
) -> None:
    unwanted = Quarantine(entries=(QuarantineEntry(key="000007"),))

    plain = rows_of(images_of(*shards), NUM_PICTURES, for_training=True)
    clean = rows_of(images_of(*shards, quarantine=unwanted), NUM_PICTURES, for_training=True)

    before, after = plain[:, 0, 0, 0].tolist(), clean[:, 0, 0, 0].tolist()
    (changed,) = [row for row in range(NUM_PICTURES) if before[row] != after[row]]
    assert before[changed] == 7
    assert 7 not in after


def test_closing_leaves_neither_processes_nor_threads(shards: tuple[Path, Manifest]) -> None:
    before = {*multiprocessing.active_children()}, {*threading.enumerate()}
    batches = ImageBatches(images_of(*shards, loader=LoaderConfig(num_workers=2)), replica())
    batches.at(1)
    batches.for_evaluation(0, 4)
    during = {*multiprocessing.active_children()} - before[0]

    batches.close()

    assert len(during) == 2
    assert not any(process.is_alive() for process in during)
    deadline = time.monotonic() + 10  # threads that feed queues end a moment after their workers
    while {*threading.enumerate()} - before[1] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {*threading.enumerate()} <= before[1]


def test_stopping_names_the_picture_and_its_shard(tmp_path: Path) -> None:
    write_image_shards(tmp_path, [[numbered_png(0, 9)]], image_size=SIZE)
    manifest = read_manifest(tmp_path, "image")

    with pytest.raises(
        ValueError, match=r"sample '000000' of .*images-00000.tar has 9 x 9 pixels where the manif"
    ):
        rows_of(images_of(tmp_path, manifest), 1, for_training=True)
