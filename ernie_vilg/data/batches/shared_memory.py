"""Whether the memory through which data workers hand over batches is large enough, and clean.

Workers put batches into files of /dev/shm, which containers often make small. What does not fit
kills the worker with a bus error, or never arrives, and neither says why; so it is added up before
any worker is started. Files that killed processes have left behind there stay until the machine is
restarted; they are removed where nobody has them open.

Source: ours.
"""

import fcntl
import os
import re
import shutil
from pathlib import Path

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.errors import InputError

SHARED_MEMORY = Path("/dev/shm")

_LEFTOVERS = re.compile(r"torch_\d+_\d+_\d+|deepspeed_allreduce_buffer_.+|sem\.mp-\w+")
"""What torch, DeepSpeed and Python's multiprocessing leave there when they are killed."""
_ID_BYTES = 8
_BESIDE_PREFETCH = 2
"""Steps in memory besides those read ahead: the one trained on, and the one being copied."""


def step_bytes(sequence: TokenSequence, num_pairs: int) -> int:
    """Return the size of a replica's share of a step in shared memory.

    Args:
        sequence: gives the sizes of text, codes and pictures.
        num_pairs: of the share.
    """
    model = sequence.model
    per_pair = _ID_BYTES * (model.text_length + model.num_image_tokens)
    if sequence.with_pixels:
        per_pair += 3 * int(sequence.sources[0].manifest.settings["image_size"]) ** 2
    return num_pairs * per_pair


def check_shared_memory(
    loader: LoaderConfig,
    bytes_per_step: int,
    *,
    num_readers: int,
    folder: Path = SHARED_MEMORY,
) -> None:
    """Check that what workers read ahead fits into shared memory.

    Args:
        loader: says how far they read ahead.
        bytes_per_step: of one rank's share.
        num_readers: ranks on this machine.
        folder: where shared memory is mounted.

    Raises:
        InputError: it does not fit.
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
    """Remove files of killed processes of this user that nobody has open.

    Args:
        folder: where shared memory is mounted.

    Returns:
        what was removed.
    """
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if _LEFTOVERS.fullmatch(path.name) and _remove_if_unused(path)
    ]


def _remove_if_unused(path: Path) -> bool:
    """Remove a file of ours unless a process has it open, in whatever container that is.

    The kernel grants a lease for writing only on a file that nobody else has open or mapped, which
    also holds for processes that cannot be seen from here.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, or not ours to read
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
