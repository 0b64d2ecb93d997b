"""Findings about a machine: processor, memory, disk, GPUs and programs, one finding each.

Source: proc(5), cgroups(7), getrlimit(2), and the x86 flags of Linux' cpufeatures.h.
"""

import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

_GIGABYTE = 10**9
_LEAST_MEMORY = 6 * _GIGABYTE
"""Memory of `make quickstart`, bytes."""
_LEAST_SHARED_MEMORY = 1 * _GIGABYTE
"""Space in /dev/shm that the check of a Slurm job's nodes requires too, bytes."""
_LEAST_DISK = 10 * _GIGABYTE
_LEAST_OPEN_FILES = 4096
_CGROUP = Path("/sys/fs/cgroup")
_BFLOAT16_CAPABILITY = (8, 0)
"""Lowest compute capability that multiplies bfloat16: that of the A100."""

Status = Literal["ok", "warning", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check."""

    name: str
    """Subject of the check."""
    status: Status
    """ok; warning: it works, but slower or not in every case; missing: it is not there."""
    found: str
    """Result, in words."""
    advice: str = ""
    """Meaning of a warning or of something missing, and what to do; "" if all is well."""
    is_required: bool = False
    """Whether no program works without it."""


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Return the processor's name and its units for matrices in bfloat16."""
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    values = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = set(values.get("flags", values.get("Features", "")).split())
    name = values.get("model name", os.uname().machine)
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    if "amx_bf16" in flags:
        return Finding(name="processor", status="ok", found=f"{name}: {', '.join(units)}")
    return Finding(
        name="processor",
        status="warning",
        found=f"{name}: {', '.join(units) or 'no unit for bfloat16'}, no AMX",
        advice="training on the CPU computes in fp32 (precision=auto); GPUs are not concerned",
    )


def check_cores(cgroup: Path = _CGROUP) -> Finding:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    quota = _words(cgroup / "cpu.max")
    if len(quota) == 2 and quota[0].isdigit() and int(quota[0]) < cores * int(quota[1]):
        share = int(quota[0]) / int(quota[1])
        return Finding(
            name="cores",
            status="warning",
            found=f"{cores}, limited to the time of {share:g}",
            advice="the container's limit: start it with more, and do not start more ranks",
        )
    return Finding(name="cores", status="ok", found=str(cores))


def check_memory(cgroup: Path = _CGROUP) -> Finding:
    """Return the memory of this machine, or of its container."""
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _words(cgroup / "memory.max")
    if limit and limit[0].isdigit():
        total = min(total, int(limit[0]))
    found = f"{total / _GIGABYTE:.1f} GB, {min(available, total) / _GIGABYTE:.1f} GB available"
    return _sized("memory", total, _LEAST_MEMORY, found, "make quickstart needs it: close programs")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Return the space through which data workers and ranks of one machine pass tensors."""
    if not folder.is_dir():
        return Finding(
            name="shared memory",
            status="missing",
            found=f"no {folder}",
            advice="data workers and NCCL need it: mount a tmpfs there",
        )
    free = shutil.disk_usage(folder).free
    advice = "data workers and NCCL pass tensors there: docker run --shm-size=2g or --ipc=host"
    found = f"{free / _GIGABYTE:.1f} GB free in {folder}"
    return _sized("shared memory", free, _LEAST_SHARED_MEMORY, found, advice)


def check_disk(folder: Path, refusal: str | None) -> Finding:
    """Return the free space for outputs, or why they cannot be written.

    Args:
        folder: folder of outputs, which need not exist.
        refusal: reason for which nothing can be written there, with its remedy; None if it can.
    """
    if refusal is not None:
        return Finding(
            name="outputs", status="missing", found=str(folder), advice=refusal, is_required=True
        )
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    advice = "checkpoints and shards may not fit: free some, or name another output_dir"
    found = f"{free / _GIGABYTE:.1f} GB free in {folder}"
    return _sized("outputs", free, _LEAST_DISK, found, advice)


def check_open_files() -> Finding:
    """Return how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _LEAST_OPEN_FILES:
        return Finding(name="open files", status="ok", found=f"at most {soft}")
    return Finding(
        name="open files",
        status="warning",
        found=f"at most {soft}, {hard} if asked for",
        advice=f"many data workers and shards need more: ulimit -n {max(hard, _LEAST_OPEN_FILES)}",
    )


def check_gpus(driver: Sequence[str] | None) -> Finding:
    """Return the GPUs that torch can use.

    Args:
        driver: a line per GPU as the driver lists them; None if the driver does not answer.
    """
    import torch

    if torch.cuda.is_available():
        return _torch_gpus(driver or [])
    if driver is None:
        found, advice = "the driver does not answer", "a GPU or its driver hangs: restart the node"
    elif driver:
        build = torch.version.cuda or "none"
        found = f"{len(driver)} of the driver ({driver[0]}), none of torch (CUDA {build})"
        advice = "install a build of torch for CUDA that this driver supports"
    else:
        found, advice = "none", "small models train on the CPU; base_300m and larger need GPUs"
    return Finding(name="GPUs", status="missing", found=found, advice=advice)


def _torch_gpus(driver: Sequence[str]) -> Finding:
    import torch

    indices = range(torch.cuda.device_count())
    names = sorted({torch.cuda.get_device_name(index) for index in indices})
    found = f"{len(indices)} x {' and '.join(names)}, CUDA {torch.version.cuda}"
    found += f", driver: {driver[0]}" if driver else ""
    if all(torch.cuda.get_device_capability(each) >= _BFLOAT16_CAPABILITY for each in indices):
        return Finding(name="GPUs", status="ok", found=found)
    return Finding(
        name="GPUs",
        status="warning",
        found=found,
        advice="a GPU below compute capability 8.0 has no bfloat16: set precision=fp16 or fp32",
    )


def check_collectives() -> Finding:
    """Return the libraries by which ranks exchange tensors."""
    import torch
    from torch import distributed

    has_nccl, has_gloo = distributed.is_nccl_available(), distributed.is_gloo_available()
    names = [name for name, has in (("gloo", has_gloo), ("NCCL", has_nccl)) if has]
    if has_nccl and torch.cuda.is_available():
        names[-1] += f" {'.'.join(map(str, torch.cuda.nccl.version()))}"
    found = ", ".join(names) or "neither gloo nor NCCL"
    if has_nccl and has_gloo:
        return Finding(name="collectives", status="ok", found=found)
    lacking = "gloo: ranks on CPUs" if not has_gloo else "NCCL: ranks on GPUs"
    advice = f"this build of torch lacks {lacking} cannot run"
    return Finding(name="collectives", status="missing", found=found, advice=advice)


def check_program(name: str, programs: Sequence[str], meaning: str) -> Finding:
    """Return whether programs that a task needs are on PATH.

    Args:
        name: the task.
        programs: names of programs, all of which it needs.
        meaning: what does not work without them, and what to do.
    """
    lacking = [program for program in programs if shutil.which(program) is None]
    if lacking:
        found = f"no {', '.join(lacking)}"
        return Finding(name=name, status="missing", found=found, advice=meaning)
    return Finding(name=name, status="ok", found=", ".join(programs))


def _sized(name: str, size: int, least: int, found: str, advice: str) -> Finding:
    """Return an amount of bytes, with a warning if it is small."""
    if size >= least:
        return Finding(name=name, status="ok", found=found)
    words = f"less than {least / _GIGABYTE:g} GB: {advice}"
    return Finding(name=name, status="warning", found=found, advice=words)


def _words(file: Path) -> list[str]:
    """Return the words of a kernel's file; none if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []
