"""The Dockerfiles pass their linter, hold no secrets, and install working packages.

There is no Docker engine here. The test executes every ENV, COPY and `pip` line of the CPU image's
two stages, each in a fresh virtual environment, the first in a copy of the build context, but not
FROM, useradd, USER and the schedule of HEALTHCHECK. It does not run the GPU image.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
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


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, the arguments before the first one left out."""
    found: list[list[tuple[str, str]]] = []
    for keyword, rest in instructions(dockerfile):
        if keyword == "FROM":
            found.append([])
        if found:
            found[-1].append((keyword, rest))
    return found


def settings(steps: list[tuple[str, str]], keyword: str) -> dict[str, str]:
    """Return the values that ENV, ARG or LABEL set, by name."""
    words = [word for each, rest in steps if each == keyword for word in shlex.split(rest)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def bases_of(dockerfile: Path) -> list[str]:
    """Return the base images of a Dockerfile."""
    values = settings(instructions(dockerfile), "ARG")
    return [value for name, value in values.items() if name.endswith("BASE")]


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
    assert found["ENTRYPOINT"] == '["ernie-vilg"]'
    assert found["CMD"] == '["--help"]'
    assert "HEALTHCHECK" in found
    for base in bases_of(path):
        assert re.search(r":[\d.]+[\w.-]+$", base), "a tag that says which"
    secrets = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
    assert not [line for line in path.read_text().splitlines() if secrets.search(line)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_image_is_labelled_with_the_version_of_its_wheel(path: Path) -> None:
    image = stages(path)[-1]

    labels = settings(image, "LABEL")
    assert settings(image, "ARG")["VERSION"] == __version__
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    assert labels["org.opencontainers.image.revision"] == "${REVISION}"
    (installed,) = [rest for keyword, rest in image if "/wheels/" in rest and keyword == "RUN"]
    assert '"/wheels/ernie_vilg-${VERSION}-py3-none-any.whl[${EXTRAS}]"' in installed


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_image_has_the_wheel_and_no_source(path: Path) -> None:
    *_, image = stages(path)

    assert [rest for keyword, rest in image if keyword == "COPY"] == [
        "constraints.txt ./",
        "--from=wheel /wheels /wheels",
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_extras_of_the_image_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    asked = settings(stages(path)[-1], "ARG")["EXTRAS"].split(",")

    assert set(asked) <= set(project["optional-dependencies"])


def test_the_build_sees_code_and_nothing_else(tmp_path: Path) -> None:
    copied = context(tmp_path)

    assert {path.name for path in copied.iterdir()} == {
        "LICENSE", "README.md", "conf", "constraints.txt", "data_pipelines", "ernie_vilg", "launch",
        "pyproject.toml",
    }  # fmt: skip


class Stage:
    """A stage of a build: a fresh environment, in which its steps are executed."""

    def __init__(self, steps: list[tuple[str, str]], folder: Path, wheels: Path) -> None:
        venv.create(folder / "python", with_pip=True)
        self._wheels, self.steps = wheels, steps
        self.folder = folder / "work"
        self.folder.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **settings(steps, "ENV"),
            **settings(steps, "ARG"),
            "PATH": f"{folder}/python/bin{os.pathsep}{os.environ['PATH']}",
            # The only argument that is not the Dockerfile's: the packages of this machine.
            "TORCH_INDEX": os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"),
        }

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self._environment,
            check=True,
            capture_output=True,
            text=True,
        )

    def build(self) -> None:
        """Execute the steps that install packages."""
        for keyword, rest in self.steps:
            if keyword == "COPY" and rest == "constraints.txt ./":
                shutil.copy2(ROOT / "constraints.txt", self.folder)
            elif keyword == "COPY" and rest == ". .":
                context(self.folder)
            elif keyword == "RUN" and "pip " in rest:
                self.run("bash", "-euc", rest.replace("/wheels", str(self._wheels)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_cpu_image_installs_works(tmp_path: Path) -> None:
    names = ("wheel", "image")
    for name in names:
        (tmp_path / name).mkdir()
    built, image = (
        Stage(steps, tmp_path / name, tmp_path / "wheels")
        for name, steps in zip(names, stages(FOLDER / "cpu.Dockerfile"), strict=True)
    )
    built.build()
    image.build()

    health = dict(image.steps)["HEALTHCHECK"]
    image.run(*json.loads(health.partition("CMD ")[2]))
    (entry,) = json.loads(dict(image.steps)["ENTRYPOINT"])
    assert image.run(entry, "--version").stdout.split()[1] == __version__
    assert "pretrain" in image.run(entry, *json.loads(dict(image.steps)["CMD"])).stdout
    image.run(entry, "draw_shapes", "output_dir=outputs/pairs", "train_scenes=4",
              "held_out_scenes=2", "unseen_pair_scenes=2")  # fmt: skip
    assert len(list((image.folder / "outputs" / "pairs").rglob("*.png"))) > 0
    dry_run = ["pretrain", "experiment=ernie_vilg_10b", "dry_run=true", "world_size=64"]
    assert "64 rank" in image.run(entry, *dry_run).stdout
    # What `--entrypoint torchrun` and `--entrypoint deepspeed` run, from a folder without launch/.
    for launcher in ("torchrun", "deepspeed"):
        assert image.run("which", launcher).stdout.startswith(str(tmp_path / "image"))
    started = ["torchrun", "--standalone", "--nproc-per-node", "1", "-m", "launch.pretrain"]
    image.run(*started, "experiment=quickstart", "dry_run=true")
