"""An installed wheel has every program and its settings, and needs no checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ernie_vilg import __version__
from launch.support.program import CONF_FOLDER
from tests.docker.test_images import context
from tests.launch.test_draw_and_caption import PROMPT, weights

__all__ = ["weights"]  # a fixture

ROOT = CONF_FOLDER.parent
OWN = ("ernie_vilg", "data_pipelines", "launch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the tracked files, with the setuptools of this environment."""
    folder = context(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, folder], check=True)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment of its own, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A .pth file adds a folder without its own .pth files, so the checkout stays out of reach.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    return folder / "bin/ernie-vilg"


def run(command: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_all_code_settings_and_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(
            archive.read(f"ernie_vilg-{__version__}.dist-info/METADATA").decode()
        )
    suffixes = {".py", ".yaml", ".html", ".css"}
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "conf", *OWN],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    expected = {
        f"launch/{name}" if name.startswith("conf/") else name
        for name in tracked
        if Path(name).suffix in suffixes
    }

    assert {name for name in names if Path(name).suffix in suffixes} == expected
    assert metadata["Version"] == __version__


def test_an_installed_command_knows_its_version_and_settings(command: Path, tmp_path: Path) -> None:
    assert run(command, tmp_path, "--version").stdout == f"ernie-vilg {__version__}\n"

    shown = run(command, tmp_path, "pretrain", "--help")

    assert "  experiment=base_300m, emoji, " in shown.stdout, shown.stderr


@pytest.mark.slow
def test_commands_run_from_a_folder_without_a_checkout(
    command: Path, weights: Path, tmp_path: Path
) -> None:
    planned = run(command, tmp_path, "plan", "experiment=quickstart", "num_gpus=8", "gpu=h100-80gb")
    assert planned.returncode == 0, planned.stderr
    assert (tmp_path / "outputs/plan/plan.json").is_file()

    (tmp_path / "weights").symlink_to(weights)
    drawn = run(
        command, tmp_path, "generate", "weights=weights", f"prompts=[{PROMPT}]", "output_dir=drawn"
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "drawn/0_0.png").is_file()


def test_a_main_job_runs_its_stages_from_a_folder_without_a_checkout(
    command: Path, tmp_path: Path
) -> None:
    (tmp_path / "own/job").mkdir(parents=True)
    (tmp_path / "own/job/tiny.yaml").write_text(
        "name: tiny\noutput_dir: outputs/tiny\nstages:\n"
        "  - name: draw_shapes\n    outputs: [outputs/tiny/raw]\n"
        "    command: [python, launch/draw_shapes.py, output_dir=outputs/tiny/raw,\n"
        "      train_scenes=1, held_out_scenes=1, unseen_pair_scenes=1]\n"
    )

    done = run(command, tmp_path, "main_job", f"hydra.searchpath=[{tmp_path}/own]", "job=tiny")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/tiny/raw/train/captions.jsonl").is_file()
    assert f"{command.parents[1]}/lib/python" in done.stdout, "the wheel's program, by its path"
