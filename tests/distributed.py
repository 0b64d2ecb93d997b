"""Runs a function on several gloo processes of this machine, as a launcher would."""

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.data.batches import workers
from ernie_vilg.system.ports import free_port

TIMEOUT_SECONDS = 240


def run_distributed(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    use_gpu: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Any]:
    """Return what `function(launch, *arguments)` returned on each rank, in order of ranks.

    Args:
        function: a module-level function; it gets a `Launch` first.
        world_size: number of processes.
        arguments: passed on; must be picklable, as must be the results.
        use_gpu: whether ranks see GPUs; without, they compute on the CPU, on any machine.
        timeout_seconds: after which ranks that still run are killed.

    Raises:
        AssertionError: a rank failed; the message holds its traceback.
    """
    # Ranks are forked from a server that has imported torch, DeepSpeed and megatron-core once.
    # Not on a machine with GPUs: DeepSpeed chooses GPU or CPU when it is imported, so each rank
    # imports it itself, in the environment that it is started in.
    context: Any = multiprocessing.get_context(
        "spawn" if torch.cuda.is_available() else "forkserver"
    )
    if not torch.cuda.is_available():
        context.set_forkserver_preload(workers.PRELOADED_MODULES)
    port = free_port()
    with TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_run_rank,
                args=(function, rank, world_size, port, folder, arguments),
            )
            for rank in range(world_size)
        ]
        with nullcontext() if use_gpu else without_gpus():
            for process in processes:
                process.start()
        try:
            deadline = time.monotonic() + timeout_seconds
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        results = [_read_result(Path(folder), rank) for rank in range(world_size)]
    failures = [text for is_ok, text in results if not is_ok]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


@contextmanager
def without_gpus() -> Iterator[None]:
    """Hide the GPUs from processes that are started in the block; this one's stay as they are."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    folder: str,
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    launch = Launch(rank=rank, local_rank=rank, world_size=world_size)
    try:
        result = (True, function(launch, *arguments))
    except BaseException:
        result = (False, f"rank {rank}:\n{traceback.format_exc()}")
    Path(folder, str(rank)).write_bytes(pickle.dumps(result))


def _read_result(folder: Path, rank: int) -> tuple[bool, Any]:
    path = folder / str(rank)
    if not path.exists():
        return False, f"rank {rank} ended without a result (killed, or over time)"
    result: tuple[bool, Any] = pickle.loads(path.read_bytes())
    return result


@contextmanager
def one_process() -> Iterator[None]:
    """Make this process the only rank of a group for as long as the block runs."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
