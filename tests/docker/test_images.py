"""The Dockerfiles pass their linter, hold no secrets, and install working packages.

There is no Docker engine here. The test executes every ENV and every `pip` line of the CPU image,
in a fresh virtual environment and a copy of the build context, but not FROM, useradd, USER and the
schedule of HEALTHCHECK. It does not run the GPU image.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ernie_vilg import __version__
from launch.support.program import CONF_FOLDER

ROOT = CONF_FOLDER.parent
FOLDER = ROOT / "docker"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = (line.partition(" ") for line in joined.splitlines() if line)
    return [(keyword, rest.strip()) for keyword, _, rest in words]


def base_of(dockerfile: Path) -> str:
    """Return the base image of a Dockerfile."""
    bases = [rest.partition("=")[2] for keyword, rest in instructions(dockerfile)
             if keyword == "ARG" and rest.startswith("BASE=")]  # fmt: skip
    return bases[0]


def context(target: Path) -> Path:
    """Copy the build context: the tracked files that .dockerignore does not exclude."""
    patterns = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()
                if line.startswith("!")]  # fmt: skip
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in files.splitlines():
        if any(fnmatch.fnmatch(name, p) or name.startswith(f"{p}/") for p in patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfile_passes_its_linter(path: Path) -> None:
    program = Path(sys.executable).parent / "hadolint"

    done = subprocess.run(
        [program, "--no-color", path], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_image_runs_as_nobody_in_particular_and_is_watched(path: Path) -> None:
    found = dict(instructions(path))

    assert int(found["USER"]) >= 1000
    assert found["ENTRYPOINT"] == '["/ernie_vilg/docker/entrypoint.sh"]'
    assert "HEALTHCHECK" in found
    assert re.search(r":[\d.]+[\w.-]+$", base_of(path)), "a tag that says which"
    secrets = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
    assert not [line for line in path.read_text().splitlines() if secrets.search(line)]


def test_the_build_sees_code_and_nothing_else(tmp_path: Path) -> None:
    copied = context(tmp_path)

    assert {path.name for path in copied.iterdir()} == {
        "LICENSE", "README.md", "conf", "constraints.txt", "data_pipelines", "docker",
        "ernie_vilg", "launch", "pyproject.toml",
    }  # fmt: skip
    assert [path.name for path in (copied / "docker").iterdir()] == ["entrypoint.sh"]


def test_entrypoint_runs_programs_by_name_and_any_command(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [FOLDER / "entrypoint.sh", *words],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert "pretrain" in run().stdout.split("\n")[0].split()
    assert run("echo", "a b").stdout == "a b\n"
    refused = run("draw_shapes", "output_dri=o")
    assert refused.returncode == 2
    assert "output_dri" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_the_cpu_image_installs_works(tmp_path: Path) -> None:
    folder = context(tmp_path / "ernie_vilg")
    venv.create(tmp_path / "python", with_pip=True)
    programs = tmp_path / "python" / "bin"
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        # The only argument that is not the Dockerfile's: the packages of this machine.
        "TORCH_INDEX": os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"),
    }
    environment.pop("PYTHONPATH", None)
    steps = instructions(FOLDER / "cpu.Dockerfile")
    for word in " ".join(rest for keyword, rest in steps if keyword == "ENV").split():
        name, _, value = word.partition("=")
        environment[name] = value
    environment["EXTRAS"] = next(
        rest.partition("=")[2] for _, rest in steps if rest.startswith("EXTRAS=")
    )

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words, cwd=folder, env=environment, check=True, capture_output=True, text=True
        )

    installed = [rest for keyword, rest in steps if keyword == "RUN" and "pip install" in rest]
    assert len(installed) == 1
    for command in installed:
        run("bash", "-euc", command)
    health = next(rest for keyword, rest in steps if keyword == "HEALTHCHECK")
    run(*json.loads(health.partition("CMD ")[2]))
    assert run("docker/entrypoint.sh", "ernie-vilg", "--version").stdout.split()[1] == __version__
    run("docker/entrypoint.sh", "draw_shapes", "output_dir=outputs/pairs", "train_scenes=4",
        "held_out_scenes=2", "unseen_pair_scenes=2")  # fmt: skip
    assert len(list((folder / "outputs" / "pairs").rglob("*.png"))) > 0
    planned = run("docker/entrypoint.sh", "pretrain", "experiment=ernie_vilg_10b",
                  "dry_run=true", "world_size=64")  # fmt: skip
    assert "64 rank" in planned.stdout
