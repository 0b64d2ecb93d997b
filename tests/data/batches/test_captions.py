"""A visit of a picture with several captions reads one of them, which seed and position choose."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.captions import chosen_captions, mixed_bits
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.vocabulary import END_OF_TEXT_ID, PADDING_ID
from tests.data.token_shards import MEMBERS, MODEL, npy, sequence_of, write_token_shards

SEPARATOR = [END_OF_TEXT_ID]
SEVERAL = {"max_captions_per_picture": 3, "max_text_ids_per_picture": 8}


def test_bits_are_those_of_splitmix64() -> None:
    # The first outputs of the reference implementation with the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]

    assert mixed_bits(1234567, np.arange(3)).tolist() == expected


def test_every_caption_is_chosen_equally_often() -> None:
    positions = np.arange(30_000)

    chosen = chosen_captions(5, positions, np.full(30_000, 3))

    counts = np.bincount(chosen, minlength=3)
    assert counts.sum() == 30_000
    assert abs(counts - 10_000).max() < 300  # 3.7 standard deviations
    pairs = np.bincount(3 * chosen[:-1] + chosen[1:], minlength=9)  # neighbours are independent
    assert abs(pairs - 3333).max() < 220


def test_another_seed_chooses_other_captions() -> None:
    positions, counts = np.arange(1000), np.full(1000, 5)

    agreement = (
        chosen_captions(1, positions, counts) == chosen_captions(2, positions, counts)
    ).mean()

    assert 0.14 < agreement < 0.26


def write_texts(folder: Path, texts: list[np.ndarray], **settings: Any) -> Manifest:
    """Write one shard; the k-th sample has codes [k, ...] and the k-th text."""
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = [
        {
            KEY: f"{number:08d}".encode(),
            "codes.npy": npy(np.full((2, 2), number, np.uint16)),
            "json": b"{}",
            "text.npy": npy(text),
        }
        for number, text in enumerate(texts)
    ]
    shard = write_shard(folder / "tokens-00000.tar", iter(samples), members=MEMBERS)
    assert shard is not None
    return Manifest(kind="token", shards=(shard,), settings=settings, lineage={})


def captions_of(number: int) -> list[list[int]]:
    """Return the captions of a sample: one, two or three of one to three ids."""
    return [[number + 4, *[60 + caption] * caption] for caption in range(1 + number % 3)]


def joined(captions: list[list[int]]) -> np.ndarray:
    ids = [id_ for caption in captions for id_ in (*caption, END_OF_TEXT_ID)]
    return np.array(ids[:-1], np.int32)


def rows_of(sequence: TokenSequence, positions: np.ndarray) -> list[tuple[int, list[int]]]:
    """Return the number and the slots of the samples at some positions."""
    with closing(SampleReader(sequence)) as reader:
        batch = reader.read(positions).content
    return [*zip(batch.codes[:, 0].tolist(), batch.text.tolist(), strict=True)]


@pytest.mark.parametrize(
    "settings",
    [SEVERAL, {**SEVERAL, "max_text_ids_per_picture": 4}, {"max_captions_per_picture": 3}],
    ids=["read together", "longer than the manifest says", "length not recorded"],
)
def test_a_visit_reads_the_chosen_caption(tmp_path: Path, settings: dict[str, int]) -> None:
    manifest = write_texts(tmp_path, [joined(captions_of(k)) for k in range(30)], **settings)
    positions = np.arange(600)  # twenty epochs

    rows = rows_of(sequence_of(tmp_path, manifest, MODEL, seed=3), positions)

    seen = Counter()
    for position, (number, slots) in enumerate(rows):
        captions = captions_of(number)
        chosen = int(
            chosen_captions(3, positions[position : position + 1], np.array([len(captions)]))[0]
        )
        expected = [*captions[chosen], END_OF_TEXT_ID, PADDING_ID, PADDING_ID][:3]
        assert slots == expected, (position, number)
        seen[number, chosen] += 1
    assert len(seen) == sum(len(captions_of(k)) for k in range(30)), "every caption is read"


def test_no_replica_no_worker_and_no_resume_changes_a_choice(tmp_path: Path) -> None:
    manifest = write_texts(tmp_path, [joined(captions_of(k)) for k in range(30)], **SEVERAL)

    def texts(step: int, size: int, num_workers: int) -> list[list[int]]:
        loader = LoaderConfig(num_workers=num_workers)
        sequence = sequence_of(tmp_path, manifest, MODEL, seed=3, loader=loader)
        found = []
        for rank in range(size):
            replica = ReplicaSlice(batch_sizes=BatchSizes(full=12), data_rank=rank, data_size=size)
            with closing(StepSamples(sequence, replica)) as steps:
                found += steps.at(step).content.text.tolist()
        return found

    alone = texts(4, 1, 0)
    assert texts(4, 3, 0) == alone
    assert texts(4, 1, 1) == alone
    assert texts(5, 1, 0) != alone


def test_a_mixture_reads_single_captions_as_without_it(tmp_path: Path) -> None:
    long = np.arange(4, 40, dtype=np.int32)  # beyond the slots of the model stands anything
    long[20] = END_OF_TEXT_ID
    single = write_texts(tmp_path / "single", [long] * 4)
    several = write_texts(tmp_path / "several", [joined(captions_of(2))] * 4, **SEVERAL)
    sequence = replace(
        sequence_of(tmp_path / "single", single, MODEL),
        sources=(
            DataSource(name="single", location=str(tmp_path / "single"), manifest=single),
            DataSource(name="several", location=str(tmp_path / "several"), manifest=several),
        ),
        mixture=(MixtureSegment(first_position=0, weights=(1.0, 1.0)),),
    )

    slots = {tuple(row) for _, row in rows_of(sequence, np.arange(64))}

    assert slots == {
        (4, 5, 6),
        (6, END_OF_TEXT_ID, PADDING_ID),
        (6, 61, END_OF_TEXT_ID),
        (6, 62, 62),
    }


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        pytest.param([5, *SEPARATOR, *SEPARATOR, 6], "text_shape", id="an empty caption"),
        pytest.param([*SEPARATOR, 6], "text_shape", id="an empty first caption"),
        pytest.param([5, *SEPARATOR], "text_shape", id="an end after the last caption"),
        pytest.param([], "text_shape", id="no caption"),
        pytest.param([5, 3, 6, 3, 7, 3, 8], "text_shape", id="more than the manifest says"),
        pytest.param([5, *SEPARATOR, 64], "text_range", id="an id beyond the vocabulary"),
        pytest.param([5, 5, 5, 5, 2, *SEPARATOR, 6], "text_range", id="a special id"),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64], ids=["together", "alone"])
def test_damaged_captions_are_refused_at_every_visit(
    tmp_path: Path, ids: list[int], reason: str, dtype: type
) -> None:
    manifest = write_texts(tmp_path, [np.array(ids, dtype)], **SEVERAL)
    sequence = sequence_of(tmp_path, manifest, MODEL)

    for position in range(8):  # whichever caption it chooses
        with pytest.raises(DamagedSampleError) as error:
            rows_of(sequence, np.array([position]))
        assert error.value.reason == reason


def test_two_captions_are_damage_where_the_manifest_says_one(tmp_path: Path) -> None:
    manifest = write_texts(tmp_path, [np.array([5, *SEPARATOR, 6], np.int32)])

    with pytest.raises(DamagedSampleError, match="text ids from 3 to 6"):
        rows_of(sequence_of(tmp_path, manifest, MODEL), np.array([0]))


def test_a_setting_of_one_caption_changes_no_batch(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [9, 11])
    settings = {**manifest.settings, "max_captions_per_picture": 1, "max_text_ids_per_picture": 1}
    counted = replace(manifest, settings=settings)

    rows = [rows_of(sequence_of(tmp_path, of, MODEL), np.arange(40)) for of in (manifest, counted)]

    assert rows[0] == rows[1]


ASKED = {
    "max_captions_per_picture": 2, "max_text_ids_per_picture": 12, "num_questions": 9,
}  # fmt: skip
BEGIN = 2
FIVE_SLOTS = replace(MODEL, text_length=5)


@pytest.mark.parametrize("dtype", [np.int32, np.int64], ids=["together", "alone"])
def test_questions_are_read_with_their_answers(tmp_path: Path, dtype: type) -> None:
    texts = [
        [7, BEGIN, 8],
        [9, BEGIN, 10, *SEPARATOR, 11, 12, BEGIN, 13],
        [7, 8, 9, BEGIN, 14],  # its question is cut
        [15, 16],  # a caption among them
        [7, BEGIN, 8, 9, 10, 11],  # of its question nothing is left
    ]
    manifest = write_texts(tmp_path, [np.array(ids, dtype) for ids in texts], **ASKED)

    rows = rows_of(sequence_of(tmp_path, manifest, FIVE_SLOTS), np.arange(60))

    pad = PADDING_ID
    assert {(number, *slots) for number, slots in rows} == {
        (0, 7, BEGIN, 8, END_OF_TEXT_ID, pad),
        (1, 9, BEGIN, 10, END_OF_TEXT_ID, pad),
        (1, 11, 12, BEGIN, 13, END_OF_TEXT_ID),
        (2, 7, 8, BEGIN, 14, END_OF_TEXT_ID),
        (3, 15, 16, END_OF_TEXT_ID, pad, pad),
        (4, BEGIN, 8, 9, 10, 11),
    }


def test_one_question_per_picture_is_read_whole(tmp_path: Path) -> None:
    asked = {**ASKED, "max_captions_per_picture": 1}
    manifest = write_texts(tmp_path, [np.array([*range(10, 18), BEGIN, 8], np.int32)], **asked)

    ((_, slots),) = rows_of(sequence_of(tmp_path, manifest, FIVE_SLOTS), np.array([0]))

    assert slots == [10, 11, BEGIN, 8, END_OF_TEXT_ID]


@pytest.mark.parametrize(
    ("ids", "settings", "reason"),
    [
        pytest.param([7, BEGIN, 8], SEVERAL, "text_range", id="without questions"),
        pytest.param([BEGIN, 8], ASKED, "text_shape", id="no question"),
        pytest.param([7, BEGIN], ASKED, "text_shape", id="no answer"),
        pytest.param([7, BEGIN, 8, BEGIN, 9], ASKED, "text_shape", id="two begins"),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64], ids=["together", "alone"])
def test_damaged_questions_are_refused(
    tmp_path: Path, ids: list[int], settings: dict[str, int], reason: str, dtype: type
) -> None:
    manifest = write_texts(tmp_path, [np.array(ids, dtype)], **settings)

    with pytest.raises(DamagedSampleError) as error:
        rows_of(sequence_of(tmp_path, manifest, FIVE_SLOTS), np.array([0]))
    assert error.value.reason == reason
