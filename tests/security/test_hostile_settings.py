"""No setting makes a program run a command.

Every case tries to create the same file, the canary; the first test shows that it would be there if
the attempt reached a shell or an unpickler.
"""

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.runs.recorded_settings import read_settings, write_run
from ernie_vilg.storage.shard_manifest import (
    FILE_NAME,
    read_manifest,
    read_manifest_at,
)
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.data.token_shards import write_token_shards
from tests.security.canary import Canary
from tests.training.runs import tiny_run

ROOT = CONF_FOLDER.parent


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda canary: os.system(canary.command), id="a shell"),
        pytest.param(lambda canary: pickle.loads(canary.pickled()), id="pickle"),
        pytest.param(
            lambda canary: torch.load(io.BytesIO(canary.saved_by_torch()), weights_only=False),
            id="torch",
        ),
        pytest.param(
            lambda canary: np.load(io.BytesIO(canary.in_an_array()), allow_pickle=True), id="numpy"
        ),
    ],
)
def test_the_payloads_work_where_they_are_let(
    tmp_path: Path, attempt: Callable[[Canary], Any]
) -> None:
    canary = Canary(tmp_path / "canary")

    attempt(canary)

    assert canary.is_there


@pytest.mark.parametrize("form", ["pipe:{}", "pipe: {} |", "file://x;{}", "http://x/`{}`"])
@pytest.mark.parametrize("setting", ["token_shards", "mixture"])
def test_a_command_is_no_location(canary: Canary, form: str, setting: str) -> None:
    location = form.format(canary.command)
    words = {
        "token_shards": [f"data.token_shards='{location}'"],
        "mixture": [
            "data.token_shards=null",
            f"+data.mixture={{a:{{token_shards:'{location}',weight:1}}}}",
        ],
    }

    with pytest.raises(ValueError, match="location that begins with") as caught:
        compose_program("pretrain", ["experiment=quickstart", *words[setting]])

    assert canary.command not in str(caught.value.__cause__)  # it may hold a password
    with pytest.raises(ValueError, match="location that begins with"):
        read_manifest_at(location, "token")


@pytest.mark.parametrize(
    "name", ["pipe:{}", "a.tar|{}", "$({})", "../../{}", "{}\n"], ids=lambda name: repr(name)
)
def test_a_command_is_no_shard(tmp_path: Path, canary: Canary, name: str) -> None:
    write_token_shards(tmp_path / "shards", [3])
    path = tmp_path / "shards" / FILE_NAME
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = name.format(canary.command)
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="which is no plain file name"):
        read_manifest(tmp_path / "shards", "token")


# Names of functions in place of settings.

TARGETS = ["os.system", "logging.os.system", "builtins.eval"]


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize("group", ["", "optimizer."], ids=["top", "group"])
def test_a_target_on_the_command_line_is_an_unknown_key(
    canary: Canary, group: str, target: str
) -> None:
    words = [f"+{group}_target_={target}", f"+{group}command='{canary.command}'"]

    with pytest.raises(ValueError, match="refuses these settings") as caught:
        compose_program("pretrain", ["experiment=quickstart", *words])

    said = caught.value.__cause__
    assert "Key '" in f"{said} {said.__cause__ if said else None}"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_in_a_configuration_file_is_an_unknown_key(
    tmp_path: Path, canary: Canary, target: str
) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "fast.yaml").write_text(
        f"_target_: {target}\ncommand: {canary.command}\nlearning_rate: 1.0\n"
    )

    with pytest.raises(ValueError, match="refuses these settings"):
        compose_program(
            "pretrain",
            ["experiment=quickstart", f"hydra.searchpath=[file://{tmp_path}]", "optimizer=fast"],
        )


def test_a_callback_of_hydra_itself_runs_no_command(canary: Canary) -> None:
    """Hydra calls its targets before our checks; Hydra 1.3.8 refuses commands and aliases."""
    callback = "+hydra.callbacks.a._target_=logging.os.system"
    done = subprocess.run(
        [
            *(sys.executable, "launch/pretrain.py", "experiment=quickstart", "dry_run=true"),
            *(callback, f"+hydra.callbacks.a.command='{canary.command}'"),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "hydra.callbacks.a" in done.stderr


def test_a_target_in_a_recorded_run_is_an_unknown_setting(tmp_path: Path, canary: Canary) -> None:
    config = tiny_run(tmp_path, steps=1)
    write_run(config)
    path = Path(config.run_dir) / "run.json"
    content = json.loads(path.read_text())
    content["settings"]["model"] |= {"_target_": "os.system", "command": canary.command}
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match=r"settings\.model has _target_, command"):
        read_settings(Path(config.run_dir), PretrainConfig)
