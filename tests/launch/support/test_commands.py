"""`ernie-vilg` runs every program from any folder, names what it does not know, and completes."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from ernie_vilg import __version__
from ernie_vilg.config.exit_codes import ExitCode
from launch.support.commands import _SHELLS, programs, run
from launch.support.completion import SCRIPTS
from launch.support.composition import program_of
from launch.support.places import CONF_FOLDER, PROGRAMS_FOLDER, has_settings, program_path

ROOT = PROGRAMS_FOLDER.parent
COMMAND = [sys.executable, "-m", "launch.support.commands"]
TAB_SECONDS = 20.0


def test_the_overview_has_a_sentence_about_every_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([]) is None

    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert set(named) == {path.stem for path in (ROOT / "launch").glob("[!_]*.py")}
    assert named["main_job"] == "Run a main job, stage by stage"
    assert named["generate"] == "Draw pictures for prompts"
    assert all(len(sentence) > 20 for sentence in named.values())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) is None

    assert capsys.readouterr().out == f"ernie-vilg {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ernie_vilg.__version__"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plna"], "plna: no such command: did you mean plan?"),
        (["drawshapes"], "drawshapes: no such command: did you mean draw_shapes?"),
        (["support/help"], "support/help: no such command: "),
        (["xyzzy"], "xyzzy: no such command: ernie-vilg --help lists them"),
        (["completion", "csh"], "completion csh: write ernie-vilg completion bash or zsh"),
    ],
)
def test_an_unknown_command_is_named_with_its_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == ExitCode.BAD_SETTINGS

    said = capsys.readouterr().err
    assert said.startswith(f"ernie-vilg: {message}")
    assert said.count("\n") == 1


def test_a_command_writes_in_the_callers_folder(tmp_path: Path) -> None:
    words = ["draw-shapes", "output_dir=pairs", "train_scenes=1", "held_out_scenes=1"]
    done = subprocess.run(
        [*COMMAND, *words, "unseen_pair_scenes=1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pairs/train/captions.jsonl").is_file()


def test_a_wrong_setting_of_a_command_ends_it_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "plan", "num_gpus=none"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr.startswith("plan: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python launch/plan.py a=1", ("plan", ["a=1"])),
        ("torchrun --nproc-per-node 2 -m launch.pretrain a=1", ("pretrain", ["a=1"])),
        ("deepspeed --num_gpus 2 --module launch.pretrain", ("pretrain", [])),
        ("ernie-vilg draw-shapes a=1", ("draw_shapes", ["a=1"])),
        ("python -m launch.supervise --run-dir r -- python launch/pretrain.py", ("pretrain", [])),
        ("ernie-vilg supervise --run-dir r -- ernie-vilg pretrain b=2", ("pretrain", ["b=2"])),
        ("ernie-vilg --version", None),
        ("python -m json.tool launch.plan", None),
    ],
)
def test_the_program_of_a_command(command: str, expected: tuple[str, list[str]] | None) -> None:
    assert program_of(command.split()) == expected


def test_a_programs_file_is_found_from_another_folder(tmp_path: Path) -> None:
    assert program_path("launch/plan.py", ROOT) == "launch/plan.py"
    assert program_path("launch/plan.py", tmp_path) == str(ROOT / "launch/plan.py")
    for word in ("launch/nothing.py", "launch", "plan=launch/plan.py", "conf/plan.yaml"):
        assert program_path(word, tmp_path) == word


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    settings = {name: has_settings(name) for name in programs()}
    for shell, script in SCRIPTS.items():
        (folder / f"ernie-vilg.{shell}").write_text(script(settings))
    return {shell: folder / f"ernie-vilg.{shell}" for shell in SCRIPTS}


def in_bash(script: Path, line: str, folder: Path) -> str:
    """Return a line of an interactive bash after the tab key, as the shell shows it."""
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "dumb", "PS1": "> ", "INPUTRC": "/dev/null"}
        os.execvp("bash", ["bash", "--noprofile", "--norc", "-i"])
    try:
        os.write(terminal, f"source {script}; PS1='ready'' '\n".encode())
        read_until(terminal, "ready ")
        os.write(terminal, f"{line}\t#end".encode())
        return re.sub(r"[\r\x07]", "", read_until(terminal, "#end")).removesuffix("#end")
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(process_id, 0)


ZSHRC = """\
unsetopt PROMPT_SP
PS1='ready '
source {script}
tell() {{ print -rn -- "<$BUFFER>" > /dev/tty }}
zle -N tell
bindkey '^X' tell
unset zle_bracketed_paste
"""


def in_zsh(script: Path, line: str, folder: Path) -> str:
    """Return a line of an interactive zsh after the tab key, from the editor's own buffer."""
    (folder / ".zshrc").write_text(ZSHRC.format(script=script))
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "dumb", "ZDOTDIR": str(folder)}
        os.execvp("zsh", ["zsh", "-d", "-i"])  # -d: no files of the system
    try:
        read_until(terminal, "ready ")
        os.write(terminal, f"{line}\t\x18".encode())
        return read_until(terminal, ">").rpartition("<")[2].removesuffix(">")
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(process_id, 0)


IN_SHELL = {"bash": in_bash, "zsh": in_zsh}


def read_until(terminal: int, mark: str) -> str:
    deadline, text = time.monotonic() + TAB_SECONDS, ""
    while not text.endswith(mark):
        readable, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert readable, f"no {mark!r} in time: {text!r}"
        text += os.read(terminal, 4096).decode()
    return text


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(
            shell,
            marks=pytest.mark.skipif(
                shutil.which(shell) is None, reason=f"no {shell} here: apt-get install {shell}"
            ),
        )
        for shell in IN_SHELL
    ],
)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        pytest.param("ernie-vilg pla", "ernie-vilg plan ", id="command"),
        pytest.param("ernie-vilg compl", "ernie-vilg completion ", id="completion itself"),
        pytest.param("ernie-vilg completion z", "ernie-vilg completion zsh ", id="shell"),
        pytest.param("ernie-vilg plan num_g", "ernie-vilg plan num_gpus=", id="setting"),
        pytest.param(
            "ernie-vilg pretrain training.st", "ernie-vilg pretrain training.steps=", id="nested"
        ),
        pytest.param("ernie-vilg plan gpu=v", "ernie-vilg plan gpu=v100-32gb ", id="group"),
        pytest.param(
            "ernie-vilg pretrain precision=bf", "ernie-vilg pretrain precision=bf16 ", id="choice"
        ),
        pytest.param("ernie-vilg doctor json=t", "ernie-vilg doctor json=true ", id="boolean"),
        pytest.param(
            "ernie-vilg draw-shapes varie", "ernie-vilg draw-shapes variety=", id="hyphens"
        ),
        pytest.param(
            "ernie-vilg generate weights=my_w", "ernie-vilg generate weights=my_weights/", id="path"
        ),
        pytest.param("ernie-vilg plan nothing=", "ernie-vilg plan nothing=my_weights/", id="none"),
    ],
)
def test_a_shell_completes(
    shell: str, scripts: dict[str, Path], typed: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "my_weights").mkdir()

    assert IN_SHELL[shell](scripts[shell], typed, tmp_path) == expected


def test_every_shell_that_the_command_names_has_a_script() -> None:
    assert tuple(SCRIPTS) == _SHELLS


def test_the_script_for_bash_passes_its_linter(scripts: dict[str, Path]) -> None:
    program = Path(sys.executable).parent / "shellcheck"

    done = subprocess.run(
        [program, "--shell=bash", scripts["bash"]], capture_output=True, text=True, check=False
    )

    assert done.stdout == ""


def test_conf_is_reached_within_the_package() -> None:
    assert (PROGRAMS_FOLDER / "conf").is_symlink()
    assert CONF_FOLDER == ROOT / "conf"
