"""Reads the environment variables that launchers set, and sets further ones.

No other module does. torchrun and deepspeed set the same variables; Slurm's srun has its own.
"""

import getpass
import locale
import os
import re
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from ernie_vilg.config.launch import Launch
from ernie_vilg.errors import InputError

_NUMBER = re.compile(r"[0-9]{1,9}")
_REMEDY = "start with a launcher (torchrun, deepspeed, srun), or unset {} to run alone"

_LONGEST_SOCKET_PATH = 107
"""Most characters of a Unix socket's path (unix(7))."""
_LONGEST_TEMPORARY_FOLDER = _LONGEST_SOCKET_PATH - len("/pymp-12345678/listener-12345678")
"""Most characters of a folder to which Python's multiprocessing appends a socket's name."""

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables with the settings of torch's allocator; the second is the name before 2.9."""
_KERNELS = "TORCHINDUCTOR_CACHE_DIR"

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCHERS_OWN = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Variables that only torchrun and deepspeed set."""
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return this process's rank and world size; 0 of 1 without a launcher.

    The launchers are deepspeed, torchrun and srun. A shell inside an `salloc` or `sbatch` has some
    of Slurm's variables too, but no step: a program started there runs alone.

    Raises:
        InputError: a variable is missing, no number, or out of range.
    """
    names = _rank_variables(environment)
    rank, local_rank, world_size = (0, 0, 1)
    if names is not None:
        rank, local_rank, world_size = (_number(environment, name, names) for name in names)
        if world_size < 1 or rank >= world_size or local_rank >= world_size:
            given = ", ".join(f"{name}={environment[name]}" for name in names)
            raise InputError(
                f"{given}: a rank must be below the number of ranks; {_REMEDY.format(names[0])}"
            )
    return Launch(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        job=_job(environment),
        job_restarts=_number({"SLURM_RESTART_COUNT": "0", **environment}, "SLURM_RESTART_COUNT"),
        ending_file=ending_file(environment),
    )


def _job(environment: Mapping[str, str]) -> str | None:
    """Return the number of the Slurm job; of an array only this task, which alone is requeued."""
    if {"SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"} <= environment.keys():
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def ending_file(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the file from which the batch script reads how a rank ended, if there is one."""
    return environment.get("ENDING_FILE")


def prepare_process(environment: Mapping[str, str] = os.environ) -> None:
    """Ensure UTF-8 texts, and a temporary folder in which sockets can be opened.

    Python chooses the encoding of file names when it starts. A process without UTF-8 therefore
    executes itself again, under the same process id, in Python's UTF-8 mode.

    Raises:
        InputError: that mode is off, or the name of the temporary folder is too long.
    """
    encodings = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    if not encodings <= {"utf-8", "utf8"}:
        if environment.get("PYTHONUTF8") == "1":
            raise InputError(
                f"texts are {' and '.join(sorted(encodings))}, not UTF-8: remove -X utf8=0, or "
                "set LC_ALL=C.UTF-8"
            )
        os.execve(sys.executable, sys.orig_argv, {**environment, "PYTHONUTF8": "1"})
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY_FOLDER:
        raise InputError(
            f"TMPDIR={folder} has {len(os.fsencode(folder))} characters: worker processes open "
            f"sockets in it, whose paths have at most {_LONGEST_SOCKET_PATH}; set TMPDIR to a "
            f"folder of at most {_LONGEST_TEMPORARY_FOLDER} characters, such as /tmp"
        )


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher started this process, rather than a person."""
    return _rank_variables(environment) is not None


def require_one_process(program: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse several processes of a program that is one process.

    A world size alone proves nothing: the shell may have it from another program.

    Raises:
        InputError: torchrun or deepspeed started several processes.
    """
    count = environment.get("WORLD_SIZE", "1")
    if count != "1" and any(name in environment for name in _LAUNCHERS_OWN):
        raise InputError(
            f"launch/{program}.py is one process, and a launcher started {count} of it: start it "
            "with python, without a launcher"
        )


def add_variables(
    variables: Mapping[str, str], environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set variables for this process and its children; variables that are set keep their values.

    Call it before torch is loaded: libraries read their variables when they are loaded or first
    used.

    Args:
        variables: values by name; $USER in a value stands for the name of the user.
        environment: variables of this process.
    """
    for name, value in variables.items():
        environment.setdefault(name, value.replace("$USER", _user()) if "$USER" in value else value)


def prepare_gpu(
    environment: MutableMapping[str, str] = os.environ, *, tensor_parallel_size: int = 1
) -> None:
    """Set what torch and CUDA read before they use a GPU; check the folder of compiled kernels.

    Args:
        environment: variables of this process.
        tensor_parallel_size: number of ranks that share each layer.

    Raises:
        InputError: other users can write into the folder of compiled kernels.
    """
    if not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"  # less fragmentation
    # Equal sums in every start: cuBLAS may choose by the size of its workspace. 8 buffers of 4 MiB
    # are torch's own choice on a Hopper.
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if tensor_parallel_size > 1:
        # With one queue into the GPU, collectives start before the products that hide them. CUDA
        # reads it once, and DeepSpeed's import already counts GPUs.
        environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if _KERNELS in environment:
        _check_own_folder(_KERNELS, Path(environment[_KERNELS]))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())


def _check_own_folder(name: str, folder: Path) -> None:
    """Make a folder for this user, or refuse it: kernels in it are code, which runs."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise InputError(
            f"{name}={folder}: no folder can be made there ({error.strerror}): set it to one on "
            f"the node's own disk, as in ++cluster.environment.{name}=/tmp/kernels-$USER"
        ) from error
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise InputError(
            f"{name}={folder}: other users can write into this folder, and compiled kernels in it "
            "are run: choose a folder of your own, or chmod go-w it"
        )


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's variables with others set, and this Python's programs first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, **variables}


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


def _rank_variables(environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "RANK" in environment:
        return _TORCHRUN
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return _SRUN
    return None
