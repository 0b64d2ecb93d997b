"""A setting that was renamed is read from old files, and refused on a command line."""

from dataclasses import asdict

import pytest

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import FORMER_NAMES, from_json
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from launch.support.program import compose

OF_THE_LOADER = {
    former: name for former, name in FORMER_NAMES.items() if name in asdict(LoaderConfig())
}


def test_settings_of_an_older_run_are_read() -> None:
    settings = asdict(LoaderConfig(max_damaged_fraction=0.25, max_consecutive_damaged=7))
    old = {**settings}
    for former, name in OF_THE_LOADER.items():
        old[former] = old.pop(name)

    assert from_json(old, LoaderConfig, "loader") == LoaderConfig(**settings)


@pytest.mark.parametrize(("former", "name"), OF_THE_LOADER.items())
def test_an_old_name_on_a_command_line_is_refused_with_the_new_one(former: str, name: str) -> None:
    with pytest.raises(InputError, match=f"{former}.* is now {name};"):
        compose("pretrain", PretrainConfig, ["experiment=quickstart", f"data.loader.{former}=1"])


def test_an_old_name_of_a_program_without_sections_is_refused_with_the_new_one() -> None:
    with pytest.raises(InputError, match="max_rejected_fraction is now max_faulty_fraction:"):
        compose("build_shards", BuildShardsConfig, ["max_rejected_fraction=1"])
