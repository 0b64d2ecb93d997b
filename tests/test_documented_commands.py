"""Every command in the documents exists and would be accepted as it is written."""

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ernie_vilg.preparation import followed_sizes
from launch.support.composition import compose_program, program_of
from launch.support.program import CONF_FOLDER
from launch.support.submitted_sweep import is_queue_option, queue_of
from launch.support.sweep import jobs_of

ROOT = CONF_FOLDER.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# Commands that are not ours and need no check beyond standing here.
_KNOWN_TOOLS = {
    "apptainer", "apt-get", "bash", "cd", "cat", "cp", "enroot", "eval", "export", "git",
    "kill", "ls", "mkdir", "open", "pip", "ray", "scancel", "squeue", "tensorboard", "wandb",
    "xdg-open",
}  # fmt: skip
_LAUNCHERS = {"python", "python3", "deepspeed", "torchrun", "srun"}
_SEPARATOR = re.compile(r"""\s*(?:&&|;)\s*(?=(?:[^"]*"[^"]*")*[^"]*$)""")  # outside quotes
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> Iterator[str]:
    """Yield each command line of the text's bash blocks, continued lines joined."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split(" #")[0].strip()
            if command and not command.startswith("#"):
                yield command


def check(command: str) -> None:
    """Raise where a command could not run as it is written."""
    for part in _SEPARATOR.split(command):
        if part:
            _check_simple(part)


def _check_simple(command: str) -> None:
    words = shlex.split(command.removeprefix("$ "))
    while words and re.match(r"^[A-Z_][A-Z0-9_]*=", words[0]):
        words = words[1:]  # environment variables before a command
    name = Path(words[0]).name if words else "export"
    if name == "sudo":
        _check_simple(shlex.join(words[1:]))
    elif name == "make":
        run = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
    elif name in _LAUNCHERS:
        _check_program(words)
    elif name == "ernie-vilg":
        _check_command(words)
    elif name == "sbatch":
        _check_batch_script(words)
    elif name == "docker":
        _check_docker(words)
    elif name in {"pytest", "ruff", "mypy", "lint-imports", "pre-commit", "chromium"}:
        return
    else:
        assert name in _KNOWN_TOOLS, f"{name}: teach tests/test_documented_commands.py what it is"


def _check_program(words: list[str]) -> None:
    found = program_of(words)
    if found is not None:
        _compose(found[0], found[1])
        return
    scripts = [word for word in words if word.endswith(".py")]
    modules = [after for word, after in itertools.pairwise(words) if word == "-m"]
    assert scripts or modules or "-c" in words, f"{shlex.join(words)} runs no program"
    for script in scripts:
        assert (ROOT / script).is_file(), f"{script} does not exist"


def _compose(name: str, options: list[str]) -> None:
    """Compose a command, or every job of a sweep."""
    single = [option for option in options if option != "--multirun"]
    if single == options:
        compose_program(name, single)
        return
    queue_options = [option for option in single if is_queue_option(option)]
    for job in jobs_of([option for option in single if option not in queue_options]):
        compose_program(name, job.options)
    if queue_options:
        queue_of(queue_options, name)


def _check_command(words: list[str]) -> None:
    found = program_of(words)
    if found is not None and "--help" not in found[1]:
        _compose(*found)
    elif found is None:
        assert words[1] in {"--help", "--version", "completion"}, shlex.join(words)


def _check_docker(words: list[str]) -> None:
    """Check that an image's Dockerfile exists, or what a container of it runs."""
    if words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file(), shlex.join(words)
        return
    assert words[1] == "run", shlex.join(words)
    (at,) = [index for index, word in enumerate(words) if re.fullmatch(r"ernie_vilg:\w+", word)]
    entry = words[words.index("--entrypoint") + 1] if "--entrypoint" in words[:at] else "ernie-vilg"
    started = [entry, *words[at + 1 :]]
    assert not [word for word in started if word.endswith(".py")], "an image has no checkout"
    check(shlex.join(started))


def _check_batch_script(words: list[str]) -> None:
    (index,) = [index for index, word in enumerate(words) if word.endswith(".sbatch")]
    assert (ROOT / words[index]).is_file(), f"{words[index]} does not exist"
    settings = [word for word in words[index + 1 :] if not word.startswith("--")]
    compose_program(Path(words[index]).stem, settings)


DOCUMENTED = [
    pytest.param(command, id=f"{document.relative_to(ROOT)}: {command[:60]}")
    for document in DOCUMENTS
    for command in commands_of(document.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_command_would_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Earlier commands of a page write the tokenizers whose sizes a later one reads.
    monkeypatch.setattr(followed_sizes, "_size", lambda name, folder: (256, ""))
    monkeypatch.setattr(shutil, "which", lambda name: name)  # Slurm's programs
    check(command)


def test_the_documents_show_commands() -> None:
    assert len(DOCUMENTED) >= 5


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("make no-such-target", id="target"),
        pytest.param("python launch/nothing.py a=1", id="program"),
        pytest.param("python benchmarks/nothing.py", id="script"),
        pytest.param("deepspeed --num_gpus 2 launch/evaluate.py weigths=w", id="setting"),
        pytest.param("sbatch launch/slurm/nothing.sbatch a=1", id="batch script"),
        pytest.param("sbatch launch/slurm/pretrain.sbatch experiment=none", id="its setting"),
        pytest.param("ernie-vilg nothing a=1", id="command"),
        pytest.param("ernie-vilg plan gpus=8", id="setting of a command"),
        pytest.param("docker build -f docker/nothing.Dockerfile .", id="Dockerfile"),
        pytest.param("docker run --rm ernie_vilg:cpu nothing a=1", id="command in a container"),
        pytest.param(
            "docker run --entrypoint deepspeed ernie_vilg:gpu launch/pretrain.py "
            "experiment=quickstart",
            id="program's file in a container",
        ),
        pytest.param(
            "python launch/pretrain.py --multirun experiment=quickstart training.steps=1,2 "
            "hydra/launcher=submitit_slurm hydra.launcher.queue=gpu",
            id="setting of a launcher",
        ),
        pytest.param("frobnicate", id="tool"),
        pytest.param("make test && frobnicate", id="tool behind another"),
    ],
)
def test_wrong_command_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        check(command)


def test_commands_are_read_from_bash_blocks_alone() -> None:
    text = "a\n```bash\nmake test  # all\n# why\npython a.py \\\n  b=1\n```\n```text\nno\n```\n"

    assert list(commands_of(text)) == ["make test", "python a.py    b=1"]
