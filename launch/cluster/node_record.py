"""Record of a node: versions, GPUs, commit and the launcher's variables, without secrets."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "ernie-vilg")
_PREFIXES = ("SLURM_", "SLURMD_", "NCCL_", "TORCH_", "CUDA_", "OMP_", "MASTER_", "GLOO_", "UCX_")
"""Prefixes of the variables that decide how ranks run. An allow-list, since a secret may have any
name."""
_SECRETS = ("JWT", "TOKEN", "KEY", "PASSWORD", "SECRET")
_GPU_FIELDS = "name,memory.total,driver_version,uuid"
_SECONDS = 30.0
_KILLED_SECONDS = 1.0


def record_node(node: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts about a node that may explain its run later."""
    return {
        "node": node,
        "time": time.time(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "num_cores": len(os.sched_getaffinity(0)),
        "open_files_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "gpus": list_gpus(),
        "environment": launch_variables(environment),
    }


def list_gpus(seconds: float | None = None) -> list[str] | None:
    """Return a line per GPU; None if the driver does not answer in time.

    Args:
        seconds: timeout of the driver's answer; None: half a minute.
    """
    query = ("nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader")
    try:
        answer = _output(*query, seconds=seconds)
    except subprocess.TimeoutExpired:
        return None
    return answer.splitlines() if answer else []


def launch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that decide how ranks run, by name."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(_PREFIXES) and not any(part in name for part in _SECRETS)
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str, seconds: float | None = None) -> str | None:
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except FileNotFoundError:
        return None
    try:
        answer, _ = process.communicate(timeout=_SECONDS if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs inside a driver does not end
            process.wait(_KILLED_SECONDS)
        if process.stdout is not None:
            process.stdout.close()
        raise
    return answer.strip() if process.returncode == 0 else None
