"""No file makes a program run a command.

Every case tries to create the same file, the canary.
"""

import io
import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from ernie_vilg.checkpoint.folder import MANIFEST_NAME, describe_files, write_checkpoint_manifest
from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.shards.open_shards import read_shard
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.model.weights import load_weights, save_weights
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.shard_manifest import (
    FILE_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from tests.checkpoint.checkpoint_runs import IDENTITY, FakeEngine, checkpoints_of, saved_run
from tests.data.image_shards import images_of, write_image_shards
from tests.data.token_shards import MEMBERS, MODEL, npy, sequence_of
from tests.model.tiny import CONFIG, tiny_model
from tests.security.canary import Canary

WEIGHTS = "state/weights_0.pt"


# Pickles in place of samples.


def token_shards_with(folder: Path, **members: bytes) -> Manifest:
    """Write a shard of one sample with some members replaced, and the matching hash."""
    folder.mkdir()
    sample = {
        "codes.npy": npy(np.zeros((2, 2), np.uint16)),
        "text.npy": npy(np.array([5], np.int32)),
        "json": b"{}",
    }
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        writer.write({"__key__": "0", **sample, **members})
    shard = describe_shard(folder / "a.tar", samples=1, members=MEMBERS)
    manifest = Manifest(kind="token", shards=(shard,), settings={"grid_size": 2}, lineage={})
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pt", "pth", "pyd"])
def test_a_pickle_beside_the_members_of_a_sample_is_refused(
    tmp_path: Path, canary: Canary, extension: str
) -> None:
    manifest = token_shards_with(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "a.tar", "a") as archive:
        member = tarfile.TarInfo(f"0.{extension}")
        content = canary.pickled()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    shard = describe_shard(tmp_path / "shards" / "a.tar", samples=1, members=MEMBERS)

    with pytest.raises(ValueError, match="has members"):
        read_shard(tmp_path / "shards", shard)
    assert manifest.shards[0] != shard


def test_a_manifest_that_asks_for_a_pickle_is_refused(tmp_path: Path, canary: Canary) -> None:
    token_shards_with(tmp_path / "shards")
    path = tmp_path / "shards" / FILE_NAME
    content = json.loads(path.read_text())
    content["shards"][0]["members"].append("pkl")
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="members of extension 'pkl'"):
        read_manifest(tmp_path / "shards", "token")


@pytest.mark.parametrize("member", ["codes.npy", "text.npy"])
@pytest.mark.parametrize("form", ["pickled", "saved_by_torch", "in_an_array"])
def test_a_pickle_under_the_name_of_an_array_is_damage(
    tmp_path: Path, canary: Canary, member: str, form: str
) -> None:
    content: bytes = getattr(canary, form)()
    manifest = token_shards_with(tmp_path / "shards", **{member: content})
    replica = ReplicaSlice(batch_sizes=BatchSizes(full=1), data_rank=0, data_size=1)
    sequence = sequence_of(tmp_path / "shards", manifest, MODEL)

    with (
        closing(StepSamples(sequence, replica)) as batches,
        pytest.raises(ValueError, match="sample"),
    ):
        batches.at(1)


def test_a_pickle_under_the_name_of_a_picture_is_damage(tmp_path: Path, canary: Canary) -> None:
    manifest = write_image_shards(tmp_path / "shards", [[canary.pickled()]], image_size=8)
    images = images_of(tmp_path / "shards", manifest, for_training=False)

    with closing(SampleReader(images)) as reader, pytest.raises(ValueError, match="sample"):
        reader.read(np.arange(1))


# Pickles in place of checkpoints and weights.


class TrustingEngine(FakeEngine):
    """Unpickles every file of the folder, as DeepSpeed's tools do."""

    def load(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*.pt")):
            torch.load(path, weights_only=False)
        super().load(folder)


def restored_step(run_dir: Path) -> int:
    engine: Any = TrustingEngine()
    step: int = checkpoints_of(run_dir).restore(engine)
    return step


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [WEIGHTS, "state/planted.pt"], ids=["replaced", "planted"])
def test_a_pickle_in_a_checkpoint_is_never_unpickled(
    tmp_path: Path, canary: Canary, name: str
) -> None:
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    (RunFolder(run_dir).checkpoint(20) / name).write_bytes(canary.saved_by_torch())

    assert restored_step(run_dir) == 10


@pytest.mark.usefixtures("alone")
def test_a_pickle_and_its_hash_in_an_edited_manifest_are_not_enough(
    tmp_path: Path, canary: Canary
) -> None:
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    folder = RunFolder(run_dir).checkpoint(20)
    (folder / WEIGHTS).write_bytes(canary.saved_by_torch())
    content = json.loads((folder / MANIFEST_NAME).read_text())
    (entry,) = [entry for entry in content["files"] if entry["file"] == WEIGHTS]
    entry.update(describe_files(folder, [folder / WEIGHTS])[0])
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=2))

    assert restored_step(run_dir) == 10


@pytest.mark.usefixtures("alone")
def test_a_whole_checkpoint_of_another_run_is_refused_before_it_is_unpickled(
    tmp_path: Path, canary: Canary
) -> None:
    """All its hashes are right. A checkpoint that also copies the run's identity would be loaded,
    because everyone who can write into a run folder is trusted (docs/security.md).
    """
    run_dir = tmp_path / "run"
    saved_run(run_dir)
    folder = RunFolder(run_dir).checkpoint(20)
    (folder / WEIGHTS).write_bytes(canary.saved_by_torch())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    content = json.loads((folder / MANIFEST_NAME).read_text())
    kept = {"step", "identity", "files", "format_version", "sha256"}
    write_checkpoint_manifest(
        folder,
        step=20,
        identity={**IDENTITY, "order": {"seed": 666}},
        files=describe_files(folder, files),
        about={name: value for name, value in content.items() if name not in kept},
    )

    with pytest.raises(ValueError, match="was written by a run with other settings"):
        restored_step(run_dir)


def test_a_pickle_under_the_name_of_exported_weights_is_not_unpickled(
    tmp_path: Path, canary: Canary
) -> None:
    save_weights(tmp_path, CONFIG, tiny_model().state_dict(), about={})
    (tmp_path / "model.safetensors").write_bytes(canary.saved_by_torch())
    with pytest.raises(ValueError, match="differs from the SHA-256"):
        load_weights(tmp_path)

    content = json.loads((tmp_path / "config.json").read_text())
    (described,) = describe_files(tmp_path, [tmp_path / "model.safetensors"])
    content["files"]["model.safetensors"] = described["sha256"]
    del content["sha256"]
    content["sha256"] = sha256_of_json(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(tmp_path)
