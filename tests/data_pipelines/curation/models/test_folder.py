from pathlib import Path

import pytest

from data_pipelines.curation.models.folder import ModelFolder
from ernie_vilg.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return ModelFolder(path=tmp_path, setting="curation.nsfw_model")


def test_hash_is_that_of_the_files_that_are_read(folder: ModelFolder) -> None:
    # printf '{}' | sha256sum; printf weights | sha256sum; then of the JSON object of both:
    # printf '{"config.json":"44...","model.safetensors":"9a..."}' | sha256sum
    assert folder.sha256() == "dbfce8d4b6e8398078e5d2509f5beb06bf820d2b7fb61bc4c686d5a1be3ab84b"
    (folder.path / "README.md").write_text("says nothing that is read")
    assert folder.sha256() == "dbfce8d4b6e8398078e5d2509f5beb06bf820d2b7fb61bc4c686d5a1be3ab84b"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocab.txt", "source.spm"])
def test_hash_changes_with_every_file_that_is_read(folder: ModelFolder, file: str) -> None:
    before = folder.sha256()
    (folder.path / file).write_bytes(b"[]")
    assert folder.sha256() != before


def test_missing_file_is_named_with_its_purpose(folder: ModelFolder) -> None:
    with pytest.raises(InputError, match=r"nsfw_model=.* has no vocab.txt, the tokens: name a"):
        folder.require("vocab.txt", "the tokens")
