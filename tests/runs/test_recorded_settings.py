"""Recorded settings are read back unchanged, with locations that hold in every folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.data import MixtureChangeConfig, MixtureDataSetConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ReconstructorConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.recorded_settings import read_settings, write_run
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from tests.training.runs import tiny_run


def mixed_run(folder: Path) -> PretrainConfig:
    """Return settings with every form of value."""
    config = tiny_run(folder, steps=4)
    decoder = ImageTokenizerConfig(attention_resolutions=(32,))
    return replace(
        config,
        model=replace(
            config.model, reconstructor=ReconstructorConfig(kind="end_to_end", decoder=decoder)
        ),
        data=replace(
            config.data,
            token_shards=None,
            mixture={
                "a": MixtureDataSetConfig(token_shards=str(folder / "a"), weight=1.0),
                "b": MixtureDataSetConfig(token_shards="s3://bucket/b", weight=3.0),
            },
            mixture_changes=(
                MixtureChangeConfig(step=10, weights={"a": 1.0, "b": 0.0}),
                MixtureChangeConfig(step=20, weights={"a": 0.5, "b": 0.5}),
            ),
            text_tokenizer=str(folder / "t"),
            image_tokenizer=str(folder / "i"),
            loader=replace(config.data.loader, cache_dir=str(folder / "cache")),
        ),
    )


def test_settings_come_back_equal(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    write_run(config)

    assert read_settings(Path(config.run_dir), PretrainConfig) == config


def test_local_folders_are_recorded_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixed_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_run(mixed_run(Path("x/..")))

    assert read_settings(Path("run"), PretrainConfig) == config


def test_what_is_secret_in_a_url_is_not_recorded(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    mixture = {
        **config.data.mixture,
        "b": MixtureDataSetConfig(token_shards="https://me:canary@host/b?key=canary", weight=1.0),
    }
    write_run(replace(config, data=replace(config.data, mixture=mixture)))

    assert "canary" not in (tmp_path / "run/run.json").read_text()


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    config = mixed_run(tmp_path)
    write_run(config)
    path = tmp_path / "run/run.json"
    content = read_json(path)
    content["settings"]["training"]["patience"] = 3
    write_json(path, content)

    with pytest.raises(
        ValueError, match=r"settings.training has patience, which this version does not know"
    ):
        read_settings(tmp_path / "run", PretrainConfig)


@pytest.mark.parametrize("content", ["[]", "null", "5", "[" * 100_000, '{"settings": 1}', "{"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)

    with pytest.raises(InputError, match=r"run\.json"):
        read_settings(tmp_path, PretrainConfig)


@pytest.mark.parametrize("name", ["settings", "text_tokenizer", "image_tokenizer"])
@pytest.mark.parametrize("value", [[], 5, None])
def test_a_list_where_an_object_or_a_text_belongs_is_named(
    tmp_path: Path, name: str, value: object
) -> None:
    config = mixed_run(tmp_path)
    write_run(config)
    path = tmp_path / "run/run.json"
    write_json(path, {**read_json(path), name: value})

    with pytest.raises(InputError, match=rf"run\.json: {name} is .* belongs"):
        read_settings(tmp_path / "run", PretrainConfig)
