"""The only place that reads what a launcher leaves in the environment, and adds to it.

Source: the variables are those of torchrun, which deepspeed sets too, and of Slurm's srun.
"""

import locale
import os
import re
import sys
import tempfile
from collections.abc import Mapping, MutableMapping

from ernie_vilg.config.launch import Launch
from ernie_vilg.errors import InputError

_NUMBER = re.compile(r"[0-9]{1,9}")
_REMEDY = "start with a launcher (torchrun, deepspeed, srun), or unset {} to run alone"

_LONGEST_SOCKET_PATH = 107
"""Characters of a Unix socket's path (unix(7))."""
_LONGEST_TEMPORARY_FOLDER = _LONGEST_SOCKET_PATH - len("/pymp-12345678/listener-12345678")
"""Characters before what Python's multiprocessing adds."""

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCHERS_OWN = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Variables that torchrun and deepspeed set, and that nobody sets by hand."""
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return this process's place among the others; alone if no launcher started it.

    Understands deepspeed and torchrun, and srun. A shell inside an `salloc` or `sbatch` has
    some of Slurm's variables too, but no step: a program typed there is alone.

    Raises:
        InputError: a variable is missing, no number, or out of range.
    """
    names = _place_variables(environment)
    rank, local_rank, world_size = (0, 0, 1)
    if names is not None:
        rank, local_rank, world_size = (_number(environment, name, names) for name in names)
        if world_size < 1 or rank >= world_size or local_rank >= world_size:
            place = ", ".join(f"{name}={environment[name]}" for name in names)
            raise InputError(
                f"{place}: a rank must be below the number of ranks; {_REMEDY.format(names[0])}"
            )
    return Launch(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        job=environment.get("SLURM_JOB_ID"),
        job_restarts=_number({"SLURM_RESTART_COUNT": "0", **environment}, "SLURM_RESTART_COUNT"),
        ending_file=ending_file(environment),
    )


def ending_file(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the file in which the batch script looks for how a rank ended, if there is one."""
    return environment.get("ENDING_FILE")


def prepare_process(environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that texts are UTF-8 here, and that sockets can be opened in the temporary folder.

    Python decides about the names of files when it starts, so a process without UTF-8 starts itself
    again, under the same process id, with Python's own UTF-8 mode.

    Raises:
        InputError: there is no UTF-8 in spite of that mode, or the temporary folder is too long.
    """
    encodings = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    if not encodings <= {"utf-8", "utf8"}:
        if environment.get("PYTHONUTF8") == "1":
            raise InputError(
                f"texts are {' and '.join(sorted(encodings))} here: leave out -X utf8=0, or set "
                "LC_ALL=C.UTF-8"
            )
        os.execve(sys.executable, sys.orig_argv, {**environment, "PYTHONUTF8": "1"})
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY_FOLDER:
        raise InputError(
            f"TMPDIR={folder} has {len(os.fsencode(folder))} characters: worker processes meet at "
            f"sockets below it, whose paths end at {_LONGEST_SOCKET_PATH}; set TMPDIR to a folder "
            f"of at most {_LONGEST_TEMPORARY_FOLDER} characters, such as /tmp"
        )


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether a launcher started this process, rather than a person."""
    return _place_variables(environment) is not None


def require_one_process(program: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse that torchrun or deepspeed starts several processes of a program that needs one.

    A world size alone says nothing: it may be left over from another program of the shell.

    Raises:
        InputError: it does.
    """
    count = environment.get("WORLD_SIZE", "1")
    if count != "1" and any(name in environment for name in _LAUNCHERS_OWN):
        raise InputError(
            f"launch/{program}.py is one process, and a launcher started {count} of it: start it "
            "with python alone"
        )


def add_variables(
    variables: Mapping[str, str], environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set variables for this process and those it starts; what is set already stands.

    Call it before torch is loaded: libraries below it read theirs when they are loaded, or first
    used.
    """
    for name, value in variables.items():
        environment.setdefault(name, value)


def _number(environment: Mapping[str, str], name: str, names: tuple[str, ...] = ()) -> int:
    text = environment.get(name)
    if text is None:
        raise InputError(
            f"{names[0]} is set and {name} is not: a launcher sets {', '.join(names)}; "
            f"{_REMEDY.format(names[0])}"
        )
    if not _NUMBER.fullmatch(text):
        raise InputError(
            f"{name}={text[:80]!r}: must be a whole number from 0; {_REMEDY.format(name)}"
        )
    return int(text)


def _place_variables(environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "RANK" in environment:
        return _TORCHRUN
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return _SRUN
    return None
