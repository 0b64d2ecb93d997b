"""Each finding about a machine is ok, a warning or missing, and says what to do."""

import resource
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from ernie_vilg.system import machine

_Usage = namedtuple("_Usage", "total used free")
GIGABYTE = 10**9


@pytest.mark.parametrize(
    ("flags", "status", "found"),
    [
        ("fpu amx_bf16 avx512_bf16 amx_tile", "ok", "Xeon: amx_bf16, avx512_bf16"),
        ("fpu avx512_bf16", "warning", "Xeon: avx512_bf16, no AMX"),
        ("fpu avx2", "warning", "Xeon: no unit for bfloat16, no AMX"),
    ],
)
def test_units_for_bfloat16_are_read_from_the_kernel(
    flags: str, status: str, found: str, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Xeon\nflags\t\t: {flags}\n\n" * 2)

    finding = machine.check_processor(file)

    assert (finding.status, finding.found) == (status, found)
    assert ("precision=auto" in finding.advice) == (status == "warning")


def test_a_containers_share_of_the_cores_is_named(tmp_path: Path) -> None:
    assert machine.check_cores(tmp_path).status == "ok"

    (tmp_path / "cpu.max").write_text("50000 100000\n")
    limited = machine.check_cores(tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")

    assert limited.status == "warning"
    assert limited.found.endswith(", limited to the time of 0.5")
    assert machine.check_cores(tmp_path).status == "ok"


def test_a_containers_memory_counts_rather_than_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * GIGABYTE}\n")

    finding = machine.check_memory(tmp_path)

    assert finding.status == "warning"
    assert finding.found.startswith("2.0 GB, ")
    assert finding.advice.startswith("less than 6 GB")


@pytest.mark.parametrize(("free", "status"), [(GIGABYTE, "ok"), (GIGABYTE - 1, "warning")])
def test_shared_memory_and_disk_are_compared_with_what_runs_need(
    free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _Usage(0, 0, free))
    assert machine.check_shared_memory(tmp_path).status == status

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _Usage(0, 0, free * 10))
    assert machine.check_disk(tmp_path / "new/folder", None).status == status


def test_no_shared_memory_is_missing(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "shm").status == "missing"


def test_outputs_that_cannot_be_written_are_required(tmp_path: Path) -> None:
    finding = machine.check_disk(tmp_path, "output_dir=x cannot be written: name another")

    assert (finding.status, finding.is_required) == ("missing", True)
    assert finding.advice == "output_dir=x cannot be written: name another"


@pytest.mark.parametrize(
    ("limits", "status", "advice"),
    [
        ((1024, 65536), "warning", "ulimit -n 65536"),
        ((4096, 4096), "ok", ""),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
    ],
)
def test_a_low_limit_of_open_files_is_a_warning(
    limits: tuple[int, int], status: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: limits)

    finding = machine.check_open_files()

    assert finding.status == status
    assert finding.advice.endswith(advice)


@pytest.mark.parametrize(
    ("driver", "found", "advice"),
    [
        ([], "none", "train on the CPU"),
        (None, "the driver does not answer", "restart the node"),
        (
            ["H200, 143771 MiB"],
            "1 of the driver (H200, 143771 MiB), none of torch",
            "build of torch",
        ),
    ],
)
def test_gpus_that_torch_cannot_use_are_missing(
    driver: list[str] | None, found: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    finding = machine.check_gpus(driver)

    assert (finding.status, finding.is_required) == ("missing", False)
    assert finding.found.startswith(found)
    assert advice in finding.advice


@pytest.mark.parametrize(("capability", "status"), [((9, 0), "ok"), ((7, 0), "warning")])
def test_gpus_are_named_and_judged_by_bfloat16(
    capability: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)

    finding = machine.check_gpus(["A card, 80 GB, 580.1"])

    assert finding.status == status
    assert finding.found.startswith("2 x A card, CUDA ")
    assert finding.found.endswith("driver: A card, 80 GB, 580.1")


def test_a_build_without_nccl_says_which_ranks_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    without = machine.check_collectives()
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    both = machine.check_collectives()

    assert (without.status, without.found) == ("missing", "gloo")
    assert without.advice == "this build of torch lacks NCCL: ranks on GPUs cannot run"
    assert (both.status, both.found) == ("ok", "gloo, NCCL")


def test_programs_that_are_not_on_the_path_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert machine.check_program("Slurm", ["srun"], "advice").status == "ok"
    lacking = machine.check_program("Slurm", ["sbatch", "srun"], "advice")

    assert (lacking.status, lacking.found, lacking.advice) == ("missing", "no sbatch", "advice")
