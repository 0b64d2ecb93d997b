"""A plan takes its length from the run's settings, and the data's size from shards or settings."""

from pathlib import Path

import pytest

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.errors import InputError
from ernie_vilg.planning.report import amount
from ernie_vilg.preparation.data_size import run_length
from ernie_vilg.storage.shard_manifest import Manifest, Shard, StoredFile, write_manifest
from launch.support.composition import compose_program

WORDS = ["num_gpus=8", "gpu=h100-80gb"]


def planned(*words: str) -> PlanConfig:
    config = compose_program("plan", [*WORDS, *words])
    assert isinstance(config, PlanConfig)
    return config


def write_shards(folder: Path, *counts: int) -> str:
    """Write the manifest of token shards of these numbers of samples."""
    folder.mkdir()
    shards = tuple(
        Shard(
            file=f"{index}.tar",
            bytes=512 * count,
            sha256="0" * 64,
            samples=count,
            members=("codes.npy",),
            index=StoredFile(file=f"{index}.idx", bytes=1, sha256="0" * 64),
        )
        for index, count in enumerate(counts)
    )
    write_manifest(folder, Manifest(kind="token", shards=shards, settings={}, lineage={}))
    return f"data.token_shards={folder}"


@pytest.mark.parametrize(
    ("experiment", "pairs", "data_pairs", "epochs"),
    [
        pytest.param(
            "ernie_vilg_10b", 141_600 * 1024, 145_000_000, 1.0, id="the paper's one epoch"
        ),
        pytest.param("base_300m", 146_500 * 1024, 15_000_000, 10.0, id="ten epochs"),
        pytest.param("quickstart", 3_100 * 8, 22_000, 1.13, id="a global batch of 8"),
        pytest.param("scenes", 15_000 * 8, 84_000, 1.43, id="a mixture of two"),
    ],
)
def test_an_experiment_has_its_own_length(
    experiment: str,
    pairs: int,
    data_pairs: int,
    epochs: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # which has no token shards

    length = run_length(planned(f"experiment={experiment}"))

    assert (length.pairs, length.data_pairs) == (pairs, data_pairs)
    assert length.epochs == pytest.approx(epochs, rel=0.005)
    assert length.data_pairs_from == f"by data.expected_pairs={data_pairs}"


def test_token_shards_are_counted(tmp_path: Path) -> None:
    location = write_shards(tmp_path / "shards", 100, 24)

    first, second = run_length(planned("experiment=quickstart", location)).lines()

    assert first == (
        "length: 24,800 pairs in 3,100 steps, by training.steps=3100 x "
        "parallelism.global_batch_size=8"
    )
    assert second == f"data: 200.00 epochs of 124 pairs, counted in {tmp_path}/shards"


def test_a_folder_that_is_still_encoded_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()

    length = run_length(planned("experiment=emoji", f"data.token_shards={tmp_path}/shards"))

    assert length.data_pairs_from == "by data.expected_pairs=2980"


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    location = write_shards(tmp_path / "shards", 1)
    (tmp_path / "shards/manifest.json").write_text('{"format_version": 99}')

    with pytest.raises(InputError, match=r"format_version 99"):
        run_length(planned("experiment=quickstart", location))


def test_settings_override_both_numbers(tmp_path: Path) -> None:
    location = write_shards(tmp_path / "shards", 100)

    length = run_length(
        planned("experiment=quickstart", location, "num_pairs=81", "num_data_pairs=10")
    )

    assert length.lines() == [
        "length: 81 pairs in 11 steps, by num_pairs=81",
        "data: 8.10 epochs of 10 pairs, by num_data_pairs=10",
    ]


@pytest.mark.parametrize("location", ["/nowhere", "s3://bucket/shards"])
def test_an_unknown_size_says_what_to_set(location: str, tmp_path: Path) -> None:
    words = ["experiment=quickstart", f"data.token_shards={location}", "data.expected_pairs=null"]

    length = run_length(planned(*words, f"data.loader.cache_dir={tmp_path}"))

    assert length.epochs is None
    assert length.lines()[1] == (
        f"data: of an unknown size, since {location} cannot be counted here and "
        "data.expected_pairs=null: set num_data_pairs=N for the number of epochs"
    )


@pytest.mark.parametrize(
    ("value", "words"), [(1234.4, "1,234"), (10, "10"), (3.26, "3.3"), (0.02, "0.02"), (0, "<0.01")]
)
def test_small_hours_keep_their_decimals(value: float, words: str) -> None:
    assert amount(value) == words
