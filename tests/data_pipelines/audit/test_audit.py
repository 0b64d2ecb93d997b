"""Every kind of damage fails the check that is there for it, and no other one."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.audit.audit import Audit, audit_shards
from data_pipelines.audit.checks import Outcome
from data_pipelines.shard_writer import write_shard
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.data.shards.open_shards import Sample
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest
from tests.data_pipelines.audit.damages import (
    IMAGE_DAMAGE,
    TOKEN_DAMAGE,
    edit_json,
    flip_a_bit,
    npy,
    rewrite,
)
from tests.data_pipelines.audit.made import (
    encode,
    write_all,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_all(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


IMAGES_ALONE: dict[str, Any] = {
    "token_shards": None, "text_tokenizer_dir": None, "image_tokenizer_dir": None,
}  # fmt: skip


def audit(folder: Path, **settings: Any) -> Audit:
    names = {
        "image_shards": "images",
        "token_shards": "tokens",
        "text_tokenizer_dir": "text",
        "image_tokenizer_dir": "vqgan",
    }
    given = {name: str(folder / place) for name, place in names.items()}
    config = AuditShardsConfig(**{**given, "output_dir": str(folder / "out"), **settings})
    found = audit_shards(config, folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".writing")]
    return found


def failed(found: Audit) -> dict[str, str]:
    """Return the first problem of every failed check."""
    return {check.name: check.problems[0] for check in found.failed}


def outcome_of(found: Audit, name: str) -> Outcome:
    (check,) = [check for check in found.checks if check.name == name]
    return check.outcome


def test_a_sound_set_passes_every_check(folder: Path) -> None:
    found = audit(folder, text_length=20)

    assert found.failed == []
    assert [check.name for check in found.checks if check.outcome != Outcome.PASSED] == ["drift"]
    assert outcome_of(found, "drift") == Outcome.NOT_CHECKED  # 3 shards are too few


def name_of(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("damage", "expected"), IMAGE_DAMAGE, ids=name_of)
def test_damaged_images_or_metadata_fail_their_check(
    folder: Path, damage: Callable[[Path], None], expected: dict[str, str]
) -> None:
    damage(folder)

    check(failed(audit(folder, **IMAGES_ALONE)), expected)


@pytest.mark.parametrize(("damage", "expected"), TOKEN_DAMAGE, ids=name_of)
def test_damaged_tokens_fail_their_check(
    folder: Path, damage: Callable[[Path], None], expected: dict[str, str]
) -> None:
    damage(folder)

    check(failed(audit(folder)), expected)


def check(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    assert found.keys() == expected.keys(), found
    for name, words in expected.items():
        assert words in found[name]


def test_one_flipped_bit_is_one_problem(folder: Path) -> None:
    """The samples of a shard that cannot be trusted are not missed anywhere else."""
    flip_a_bit(folder / "images" / "images-00000.tar")

    found = audit(folder)

    assert {each.name: each.num_problems for each in found.failed} == {"image_files": 1}
    assert outcome_of(found, "kept_rows") == Outcome.PASSED


def test_what_is_not_given_is_said(folder: Path) -> None:
    found = audit(folder, **IMAGES_ALONE)

    details = {each.name: each.detail for each in found.checks}
    assert found.failed == []
    assert details["codes"] == "token_shards is not given"
    assert outcome_of(found, "codes") == Outcome.NOT_CHECKED
    found = audit(folder, image_shards=None, image_tokenizer_dir=None)
    details = {each.name: each.detail for each in found.checks}
    assert found.failed == []
    assert details["kept_rows"] == "image_shards is not given"
    assert details["recoding"] == "image_shards is not given"
    assert details["codes"] == "7 samples"


def test_shards_of_another_program_need_no_metadata(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        if path.name in ("metadata", "held_out"):
            shutil.rmtree(path)
        elif path.name in ("curation.json", "examples.parquet"):
            path.unlink()
    edit_json(
        folder / "images" / "manifest.json", lambda content: content["settings"].pop("captions")
    )

    found = audit(folder, **IMAGES_ALONE)

    assert found.failed == []
    (rows,) = [each for each in found.checks if each.name == "rows"]
    assert rows.detail == "launch/build_shards.py wrote no metadata here"


def test_captions_that_would_be_cut_fail(folder: Path) -> None:
    found = failed(audit(folder, text_length=5))

    # Of 8 captions, those of 6 and 7 ids are cut.
    assert "2 of 8 captions (25.00%) are longer than text_length=5" in found["truncation"]
    assert "7 slots would do (7 cut none)" in found["truncation"]


def test_a_folder_without_a_manifest_is_a_wrong_setting(folder: Path) -> None:
    with pytest.raises(InputError, match=r"token_shards=\S+ has no manifest.json: name a folder"):
        audit(folder, token_shards=str(folder / "text"))


def test_every_view_is_compared_with_its_part_of_the_picture(folder: Path) -> None:
    encode(folder, views=2, horizontal_flip=True)

    found = audit(folder)

    assert found.failed == []
    assert found.recoded is not None
    assert found.recoded.num_pictures == 2 * 6 + 1  # held-out pictures have one view
    assert found.tokens is not None
    assert found.tokens.num_pictures == 13


def set_codes(folder: Path, changed: int) -> None:
    """Change one code of each of some pictures of the first token shard."""

    def change(samples: list[Sample]) -> None:
        for each in samples[:changed]:
            content = bytearray(each["codes.npy"])
            content[-2] = (content[-2] + 1) % 16  # the last code's lower byte
            each["codes.npy"] = bytes(content)

    rewrite(folder / "tokens", change)


def test_near_ties_may_differ_in_few_codes_and_in_more_of_bfloat16(folder: Path) -> None:
    set_codes(folder, 2)  # 2 of 112
    manifest = folder / "tokens" / "manifest.json"

    assert "98.21% of the sampled codes are equal" in failed(audit(folder))["recoding"]
    assert "recoding" not in failed(audit(folder, min_equal_codes=0.98))
    compared = {"compared": 100, "differing": 5}
    edit_json(manifest, lambda content: content["settings"].update(bfloat16_codes=compared))
    assert "recoding" not in failed(audit(folder))


def test_a_shard_of_other_codes_is_worth_a_look_and_fails_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "tokens").mkdir()
    shards = []
    for number in range(9):
        codes = noise.integers(0, 16, (8, 4, 4)) if number != 4 else np.full((8, 4, 4), 3)
        samples: list[Sample] = [
            {
                "__key__": f"{number:04d}{at:04d}".encode(),
                "codes.npy": npy(grid, np.uint16),
                "text.npy": npy([9], np.int32),
                "json": b"{}",
            }
            for at, grid in enumerate(codes)
        ]
        path = tmp_path / "tokens" / f"tokens-{number:05d}.tar"
        shard = write_shard(path, samples, members=("codes.npy", "json", "text.npy"))
        assert shard is not None
        shards.append(shard)
    settings = {"image_size": 8, "grid_size": 4, "codebook_size": 16, "text_vocab_size": 300}
    write_manifest(
        tmp_path / "tokens",
        Manifest(kind="token", shards=tuple(shards), settings=settings, lineage={}),
    )

    found = audit(tmp_path, image_shards=None, text_tokenizer_dir=None, image_tokenizer_dir=None)

    assert found.failed == []
    (drift,) = [each for each in found.checks if each.outcome == Outcome.LOOK]
    assert drift.name == "drift"
    assert len(drift.problems) == 1
    assert drift.problems[0].startswith("tokens-00004.tar uses other codes than the rest")
