"""The ranks of a replica read the same, or say that they do not."""

import dataclasses
import logging
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.damage_log import read_damage
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.training.replica_batches import ReplicaBatches, agreed_quarantine
from tests.data.token_shards import sequence_of, write_token_shards
from tests.distributed import run_distributed
from tests.training.runs import tiny_run

STEPS = 4


def read_own_shards(launch: Launch, config: PretrainConfig, folders: list[str]) -> str:
    """Read as one of two tensor ranks, from this rank's own copy of the shards."""
    device = start_processes(launch, timeout_seconds=60)
    groups = build_groups(2, 1, device)
    manifest = read_manifest(Path(config.data.token_shards), "token")
    sequence = sequence_of(
        Path(folders[launch.rank]), manifest, config.model, loader=config.data.loader
    )
    message = "agreed"
    with closing(ReplicaBatches(config, sequence, groups)) as batches:
        try:
            for step in range(1, STEPS + 1):
                batches.at(step)
        except ValueError as error:
            message = str(error)
    dist.barrier()
    return message


def skipping_run(folder: Path) -> PretrainConfig:
    config = tiny_run(folder, steps=STEPS, tensor_parallel_size=2)
    loader = dataclasses.replace(config.data.loader, damage="skip", max_damaged_fraction=1.0)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, loader=loader))


@pytest.mark.distributed
@pytest.mark.parametrize("damaged", [(0, 1), (1,)], ids=["on both nodes", "on one node"])
def test_damage_that_one_rank_alone_sees_stops_its_replica(
    tmp_path: Path, damaged: tuple[int, ...]
) -> None:
    config = skipping_run(tmp_path)
    folders = [tmp_path / "shards", tmp_path / "copy"]
    write_token_shards(folders[0], [8, 8, 8, 8])
    shutil.copytree(*folders)
    for rank in damaged:
        (folders[rank] / "tokens-00001.tar").unlink()

    messages = run_distributed(read_own_shards, 2, config, [str(folder) for folder in folders])

    if len(damaged) == 2:
        assert messages == ["agreed", "agreed"]
        assert read_damage(Path(config.run_dir) / "ledger").num_samples == 8
    else:
        assert all("ranks of replica 0 read different samples" in text for text in messages)


def read_own_quarantine(launch: Launch, folders: list[str]) -> str:
    start_processes(launch, timeout_seconds=60)
    try:
        return str(len(agreed_quarantine(Path(folders[launch.rank]), ()).entries))
    except ValueError as error:
        return str(error)


@pytest.mark.distributed
def test_ranks_with_different_quarantines_do_not_start(tmp_path: Path) -> None:
    for name, text in (("a", '{"key": "1"}\n'), ("b", '{"key": "2"}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "quarantine.jsonl").write_text(text)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    assert run_distributed(read_own_quarantine, 2, [a, a]) == ["1", "1"]
    assert all(
        "differs between ranks" in text for text in run_distributed(read_own_quarantine, 2, [a, b])
    )


def said_of_quarantine(launch: Launch, folder: str) -> list[str]:
    start_processes(launch, timeout_seconds=60)
    shards = Path(folder) / "shards"
    source = DataSource(name="main", location=str(shards), manifest=read_manifest(shards, "token"))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ernie_vilg.training.replica_batches")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    agreed_quarantine(Path(folder), [source])
    return said


@pytest.mark.distributed
def test_lines_of_a_quarantine_that_name_nothing_are_said(tmp_path: Path) -> None:
    write_token_shards(tmp_path / "shards", [4])
    (tmp_path / "quarantine.jsonl").write_text(
        '{"key": "1", "shard": "tokens-00000.tar"}\n'
        '{"key": "1", "shard": "tokens-00009.tar"}\n'
        '{"key": "1", "data_set": "other"}\n'
    )

    leader, other = run_distributed(said_of_quarantine, 2, str(tmp_path))

    shard, data_set, summary = leader
    assert "shard 'tokens-00009.tar', key '1' excludes nothing: there is no such shard" in shard
    assert "data_set 'other', key '1' excludes nothing: the run's data sets are main" in data_set
    assert "3 line(s), 1 of which can exclude samples of this run" in summary
    assert other == []
