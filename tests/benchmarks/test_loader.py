"""Both sides of the loader's benchmark do the same work on the same files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.loader_parts.baseline import image_pipeline, token_pipeline
from benchmarks.loader_parts.data_sets import RESUMED, TOKENS, DataSettings, make_data
from benchmarks.loader_parts.ours import image_batches, token_batches
from ernie_vilg.storage.shard_manifest import read_manifest, verify_shard

SETTINGS = DataSettings(
    token_shards=2,
    token_samples=8,
    stream_shards=3,
    resumed_shards=5,
    resumed_samples=4,
    resumed_files=2,
    png_shards=1,
    jpeg_shards=1,
    image_samples=4,
)


leaves_files_open = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
"""webdataset leaves files open until they are collected."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "data"
    make_data(folder, SETTINGS)
    return folder


def sorted_rows(batches: Sequence[Tensor]) -> list[list[int]]:
    return sorted(torch.cat(list(batches)).flatten(1).tolist())


@leaves_files_open
@pytest.mark.parametrize("is_shuffled", [True, False])
def test_both_sides_make_the_same_pairs(data: Path, is_shuffled: bool) -> None:
    files = sorted((data / TOKENS).glob("*.tar"))
    theirs = [torch.cat(batch, 1) for batch in token_pipeline(files, 4, is_shuffled=is_shuffled)]

    batches = token_batches(data / TOKENS, 4, num_workers=0)
    steps = [batches.at(step) for step in range(1, 5)]
    batches.close()
    ours = [torch.cat([batch.codes, batch.text], 1) for step in steps for batch in step]

    assert sorted_rows(ours) == sorted_rows(theirs)
    assert {batch.dtype for batch in ours} == {batch.dtype for batch in theirs} == {torch.int64}


@leaves_files_open
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_both_sides_make_the_same_pictures(data: Path, kind: str) -> None:
    files = sorted((data / kind).glob("*.tar"))
    theirs = [batch for (batch,) in image_pipeline(files, 2, is_shuffled=True)]

    batches = image_batches(data / kind, 2)
    ours = [batches.at(step) for step in (1, 2)]
    batches.close()

    assert sorted_rows(ours) == sorted_rows(theirs)
    assert ours[0].shape == theirs[0].shape == (2, 3, 256, 256)


def test_a_large_data_set_is_links_that_hold_what_its_manifest_says(data: Path) -> None:
    manifest = read_manifest(data / RESUMED, "token")

    assert manifest.num_samples == 5 * 4
    for shard in manifest.shards:
        verify_shard(data / RESUMED, shard)
    assert len({(data / RESUMED / shard.file).stat().st_ino for shard in manifest.shards}) == 2


def test_data_of_the_same_settings_is_reused(data: Path) -> None:
    before = (data / TOKENS / "manifest.json").stat()

    make_data(data, SETTINGS)

    assert (data / TOKENS / "manifest.json").stat() == before
