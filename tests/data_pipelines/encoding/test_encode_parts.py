"""Parts that separate processes encode make the same token shards."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipelines.encoding.encode import encode_image_shards, encode_part
from data_pipelines.work_folder import work_folder
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import remove
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.data_pipelines.encoding.test_encode import config, encode_until, folder, tiny_vqgan

__all__ = ["folder"]  # a fixture


def test_parts_and_then_the_rest_equal_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [encode_part(config(folder, num_parts=2, part_index=index)) for index in (1, 0)]

    assert sizes == [1, 2]
    assert not (folder / "tokens").exists()
    assert encode_until(folder, monkeypatch, stop_after=9) == []
    whole = encode_image_shards(config(folder, "whole"))
    assert read_manifest(folder / "tokens", "token") == whole


@pytest.mark.parametrize("number", [1, 2])
def test_a_program_killed_after_the_folder_has_its_name_says_what_it_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    removed: list[Path] = []

    def remove_or_die(path: Path) -> None:
        removed.append(path)
        if len(removed) == number:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr("data_pipelines.work_folder.remove", remove_or_die)
    with suppress(KeyboardInterrupt):
        encode_image_shards(config(folder))
    monkeypatch.undo()
    assert len(removed) == number  # of records, and then of the rest of the work folder
    manifest = read_manifest(folder / "tokens", "token")

    assert encode_image_shards(config(folder)) == manifest
    assert list(folder.glob(".*")) == []
    with pytest.raises(InputError, match="already exists: set overwrite=true"):
        encode_image_shards(config(folder))


def test_a_part_removes_nothing_of_another_job(folder: Path) -> None:
    encode_part(config(folder, num_parts=2, part_index=0))
    save_image_tokenizer(tiny_vqgan(8, seed=1), folder / "vqgan")

    with pytest.raises(ValueError, match="belongs to another job"):
        encode_part(config(folder, num_parts=2, part_index=1))

    assert (folder / ".encoding-tokens" / "records" / "00000.json").is_file()


def test_processes_that_begin_together_work_in_one_folder(tmp_path: Path) -> None:
    def work(_: int) -> Path:
        with work_folder(tmp_path / "out", {"a": 1}, kind="encoding", is_shared=True) as folder:
            return folder

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(work, range(64)))

    assert set(folders) == {tmp_path / ".encoding-out"}
    assert [path.name for path in tmp_path.iterdir()] == [".encoding-out"]


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="part_index=2 with num_parts=2: set it from 0 to 1"):
        EncodeShardsConfig(
            shards="s",
            text_tokenizer_dir="t",
            image_tokenizer_dir="i",
            output_dir="o",
            num_parts=2,
            part_index=2,
        )
