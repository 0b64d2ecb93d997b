"""Shared memory, through which data workers hand over batches, is large enough and clean.

Workers put batches into files of /dev/shm, which containers often make small. A batch that does not
fit kills the worker with a bus error, or never arrives, and neither error names the reason; so the
bytes are added up before any worker starts. Files of killed processes stay there until the machine
restarts; they are removed where no process has them open.
"""

import fcntl
import os
import re
import shutil
from pathlib import Path

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.errors import InputError

SHARED_MEMORY = Path("/dev/shm")

_LEFTOVERS = re.compile(r"torch_\d+_\d+_\d+|deepspeed_allreduce_buffer_.+|sem\.mp-\w+")
"""Names of the files that killed processes of torch, DeepSpeed and multiprocessing leave there."""
_ID_BYTES = 8
_BESIDE_PREFETCH = 2
"""Steps in memory in addition to those read ahead: the one in training, and the one in copying."""


def step_bytes(sequence: TokenSequence, num_pairs: int) -> int:
    """Return the bytes of a replica's part of a step in shared memory.

    Args:
        sequence: the training sequence, with the sizes of text, codes and pictures.
        num_pairs: pairs of the part.
    """
    model = sequence.model
    per_pair = _ID_BYTES * (model.text_length + model.num_image_tokens)
    if sequence.image_size is not None:
        per_pair += 3 * sequence.image_size**2
    return num_pairs * per_pair


def check_shared_memory(
    loader: LoaderConfig,
    bytes_per_step: int,
    *,
    num_readers: int,
    folder: Path = SHARED_MEMORY,
) -> None:
    """Check that the steps read ahead by workers fit into shared memory.

    Args:
        loader: settings with the number of workers and of steps read ahead.
        bytes_per_step: bytes of one rank's part of a step.
        num_readers: ranks on this machine.
        folder: mount of the shared memory.

    Raises:
        InputError: they do not fit.
    """
    if loader.num_workers == 0:
        return
    num_steps = loader.num_workers * loader.prefetch_steps + _BESIDE_PREFETCH
    needed = num_readers * num_steps * bytes_per_step
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder} has {free:,} bytes free, and {num_readers} rank(s) with "
            f"data.loader.num_workers={loader.num_workers} and data.loader.prefetch_steps="
            f"{loader.prefetch_steps} need {needed:,} for batches of {bytes_per_step:,} bytes: "
            "make it larger (docker run --shm-size, mount -o remount,size=), lower one of the two, "
            "or set data.loader.num_workers=0, which uses none"
        )


def remove_leftovers(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Remove files of this user's killed processes that no process has open.

    Args:
        folder: mount of the shared memory.

    Returns:
        the removed files.
    """
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if _LEFTOVERS.fullmatch(path.name) and _remove_if_unused(path)
    ]


def _remove_if_unused(path: Path) -> bool:
    """Remove a file of this user unless a process has it open, in any container.

    The kernel grants a lease for writing only on a file that no other process has open or mapped,
    processes of other containers included.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # removed meanwhile, or not readable for this user
        return False
    try:
        if os.fstat(file).st_uid != os.getuid():
            return False
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        path.unlink()
    except OSError:  # in use, or a file system without leases
        return False
    finally:
        os.close(file)
    return True
