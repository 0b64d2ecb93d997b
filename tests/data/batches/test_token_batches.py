"""A step's samples do not depend on how many replicas read them."""

import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.shards.open_shards import Sample, read_shard
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.vocabulary import END_OF_TEXT_ID, PADDING_ID
from tests.data.token_shards import MEMBERS, MODEL, npy, sequence_of, write_token_shards

GLOBAL_BATCH = 12


def step_of(
    folder: Path,
    manifest: Manifest,
    step: int = 1,
    *,
    rank: int = 0,
    size: int = 1,
    model: ModelConfig = MODEL,
    with_pixels: bool = False,
) -> list[Batch]:
    """Return the micro-batches, of one pair, that a replica gets in a step."""
    steps = StepSamples(
        sequence_of(folder, manifest, model, seed=3, with_pixels=with_pixels),
        ReplicaSlice(batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=rank, data_size=size),
    )
    with closing(steps):
        return steps.at(step).content.split(1)


def samples_at(folder: Path, manifest: Manifest, step: int, size: int) -> list[int]:
    """Return the first code of every sample of a step, replica by replica."""
    return [
        int(batch.codes[0, 0])
        for rank in range(size)
        for batch in step_of(folder, manifest, step, rank=rank, size=size)
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_any_number_of_replicas_reads_the_same_global_batch(tmp_path: Path, size: int) -> None:
    manifest = write_token_shards(tmp_path, [9, 11, 5, 8])

    for step in range(1, 7):  # two epochs and a bit
        assert samples_at(tmp_path, manifest, step, size) == samples_at(tmp_path, manifest, step, 1)


def test_an_epoch_reads_every_sample_once(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [9, 11, 5, 11])  # 36 samples, three steps

    seen = [code for step in (1, 2, 3) for code in samples_at(tmp_path, manifest, step, 2)]

    assert sorted(seen) == list(range(36))


def test_a_batch_holds_what_the_shard_holds(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [GLOBAL_BATCH])

    for batch in step_of(tmp_path, manifest):
        number = int(batch.codes[0, 0])
        assert batch.codes.tolist() == [[number] * 4]
        assert batch.text.tolist() == [[number + 4, END_OF_TEXT_ID, PADDING_ID]]
        assert batch.codes.dtype == batch.text.dtype == torch.int64


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        pytest.param([60, 61, 62], [60, 61, 62], id="no room for the end"),
        pytest.param([60, 61, 62, 63], [60, 61, 62], id="cut after a piece"),
        pytest.param([300, 236, 188, 188], [300, PADDING_ID, PADDING_ID], id="two bytes of three"),
        pytest.param([236, 188, 188, 300], [236, 188, 188], id="cut after a character"),
        pytest.param([300] * 1100 + [301], [300] * 3, id="parsed alone"),
    ],
)
def test_no_cut_falls_within_a_character(tmp_path: Path, ids: list[int], slots: list[int]) -> None:
    manifest = write_token_shards(tmp_path, [1])
    (sample,) = read_shard(tmp_path, manifest.shards[0])
    sample["text.npy"] = npy(np.array(ids, np.int32))
    shard = write_shard(tmp_path / "cut.tar", iter([sample]), members=MEMBERS)
    assert shard is not None

    batch, *_ = step_of(
        tmp_path, replace(manifest, shards=(shard,)), model=replace(MODEL, text_vocab_size=320)
    )

    assert batch.text.tolist() == [slots]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 5}, "image code .* where model.codebook_size=5"),
        ({"text_vocab_size": 9}, r"text ids .* where 4 to model.text_vocab_size - 1 = 8"),
        ({"image_grid_size": 3}, r"codes of shape \(2, 2\) where model.image_grid_size=3"),
    ],
)
def test_samples_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    manifest = write_token_shards(tmp_path, [GLOBAL_BATCH])
    model = replace(MODEL, **change)

    with pytest.raises(ValueError, match=message):
        step_of(tmp_path, manifest, model=model)


def with_picture(sample: Sample) -> Sample:
    """Add a picture 4 pixels high and wide, of the sample's number in green."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (0, int(sample["__key__"]), 255)).save(buffer, "PNG")
    return {**sample, "png": buffer.getvalue()}


def write_shards_with_pixels(folder: Path, sizes: list[int]) -> Manifest:
    manifest = write_token_shards(folder, sizes)
    shards = []
    for shard in manifest.shards:
        samples = map(with_picture, read_shard(folder, shard))
        written = write_shard(folder / shard.file, samples, members=(*shard.members, "png"))
        assert written is not None
        shards.append(written)
    settings = {**manifest.settings, "image_size": 4, "pixels": True}
    return replace(manifest, shards=tuple(shards), settings=settings)


def test_a_samples_pixels_are_its_own_picture(tmp_path: Path) -> None:
    manifest = write_shards_with_pixels(tmp_path, [GLOBAL_BATCH])

    for batch in step_of(tmp_path, manifest, with_pixels=True):
        number = int(batch.codes[0, 0])
        assert batch.pixels is not None
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (1, 3, 4, 4))
        assert batch.pixels[0, :, 1, 2].tolist() == [0, number, 255]


def test_pixels_that_nobody_asks_for_change_no_batch(tmp_path: Path) -> None:
    plain = write_token_shards(tmp_path / "plain", [GLOBAL_BATCH])
    kept = write_shards_with_pixels(tmp_path / "kept", [GLOBAL_BATCH])

    (batches, expected) = (
        step_of(tmp_path / name, manifest) for name, manifest in (("kept", kept), ("plain", plain))
    )

    assert all(batch.pixels is None for batch in batches)
    assert [batch.codes.tolist() for batch in batches] == [
        batch.codes.tolist() for batch in expected
    ]


def test_shards_from_before_pixels_could_be_kept_are_refused(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [GLOBAL_BATCH])
    assert "pixels" not in manifest.settings

    with pytest.raises(ValueError, match=r"keep no pixels.*encode_shards.py .*keep_pixels=true"):
        step_of(tmp_path, manifest, with_pixels=True)
