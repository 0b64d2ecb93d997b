"""Processes of an encoding: how many there are, and which device each of them computes on."""

import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal

import torch

from data_pipelines.executor import Executor
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.system.devices import choose_device, choose_precision


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of an encoding."""

    executor: Executor
    device: Literal["cpu", "cuda"]
    """Device of each process; on cuda its own GPU."""
    gpus: tuple[int, ...]
    """GPU of each process of this machine; empty on a CPU and with Ray, which assigns them."""
    precision: Literal["fp32", "bf16"]
    """Number format of the encoder."""
    decode_threads: int
    """Threads per process that decode pictures."""
    torch_threads: int
    """Threads per process that compute."""

    def start_arguments(self) -> tuple[int, SimpleQueue[int] | None]:
        """Return the arguments of `start_worker`."""
        if not self.gpus:
            return self.torch_threads, None
        # Each process takes the next one: a process started later cannot know its number.
        queue: SimpleQueue[int] = multiprocessing.get_context("spawn").SimpleQueue()
        for gpu in self.gpus:
            queue.put(gpu)
        return self.torch_threads, queue


def start_worker(torch_threads: int, gpus: SimpleQueue[int] | None) -> None:
    """Prepare a process: its share of the cores, and its GPU.

    Args:
        torch_threads: number of threads that compute.
        gpus: GPUs that are left to take; None where there are none or Ray has assigned one.
    """
    torch.set_num_threads(torch_threads)
    if gpus is not None:
        torch.cuda.set_device(gpus.get())


def workers_of(config: EncodeShardsConfig, shared_folder: Path) -> Workers:
    """Return the processes that settings ask for.

    Args:
        config: the settings.
        shared_folder: folder that every node of a Ray cluster must see.

    Raises:
        InputError: the device does not exist, or does not compute in the number format.
    """
    is_ray = config.executor == "ray"
    device = choose_device(config.device)
    gpus = _gpus(config.device, torch.cuda.device_count()) if device.type == "cuda" else ()
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = 0 if is_ray else max(1, len(gpus))
    is_bfloat16 = choose_precision(config.precision, device) == torch.bfloat16
    num_here = 1 if is_ray else max(1, num_workers)
    cores = max(1, len(os.sched_getaffinity(0)) // num_here)
    return Workers(
        executor=Executor(
            kind=config.executor,
            num_workers=num_workers,
            ray_address=config.ray_address,
            gpus_per_task=1.0 if is_ray and gpus else 0.0,
            shared_folder=shared_folder,
        ),
        device="cuda" if gpus else "cpu",
        gpus=() if is_ray else gpus_of_processes(gpus, num_here),
        precision="bf16" if is_bfloat16 else "fp32",
        decode_threads=config.decode_threads or (cores if gpus else 1),
        # Ray gives a task one core.
        torch_threads=1 if is_ray else max(1, torch.get_num_threads() // num_here),
    )


def gpus_of_processes(gpus: tuple[int, ...], num_processes: int) -> tuple[int, ...]:
    """Return the GPU of each process; several share one where there are more processes."""
    return tuple(gpus[process % len(gpus)] for process in range(num_processes)) if gpus else ()


def _gpus(device: str, num_gpus: int) -> tuple[int, ...]:
    """Return the GPUs of a setting: auto is all, cuda the first, cuda:1 the second."""
    if device == "auto":
        return tuple(range(num_gpus))
    _, _, index = device.partition(":")
    return (int(index or 0),)
