"""Say what this machine can do: packages, processor, memory, GPUs, disk, Slurm, W&B.

Each line is ok, warning or missing, with what it means and what to do. Nothing is changed and no
network is used. Exit codes: 0, or 1 if something is missing without which no program works.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_pipelines.outputs import check_output
from ernie_vilg.config.doctor import DoctorConfig
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.errors import InputError
from ernie_vilg.system import installation, machine
from ernie_vilg.system.machine import Finding
from ernie_vilg.tracking.wandb_login import has_login
from launch.cluster.node_record import list_gpus
from launch.support.places import PROGRAMS_FOLDER
from launch.support.program import program

_DRIVER_SECONDS = 4.0
"""Time for the GPU driver to answer; one that hangs must not hold up the other lines."""


@program("doctor", DoctorConfig)
def main(config: DoctorConfig) -> None:
    """Print the findings; exit with 1 if something required is missing."""
    findings = list(examine(Path(config.output_dir)))
    if config.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(lines_of(findings)))
    if any(finding.is_required and finding.status == "missing" for finding in findings):
        sys.exit(ExitCode.FAILED)


def examine(output_dir: Path) -> Iterator[Finding]:
    """Yield the findings about this machine.

    Args:
        output_dir: folder of coming outputs.
    """
    yield installation.check_python()
    yield from installation.check_packages()
    pins = installation.check_pins(PROGRAMS_FOLDER.parent / "constraints.txt")
    if pins is not None:
        yield pins
    torch = installation.check_torch()
    yield torch
    yield machine.check_processor()
    yield machine.check_cores()
    yield machine.check_memory()
    if torch.status == "ok":
        yield machine.check_gpus(list_gpus(_DRIVER_SECONDS))
        yield machine.check_collectives()
    yield machine.check_shared_memory()
    yield machine.check_disk(output_dir, _refusal(output_dir))
    yield machine.check_open_files()
    yield machine.check_program(
        "compiler", ["cc", "ninja"], "only torch.compile and operators of DeepSpeed need one"
    )
    yield machine.check_program(
        "Slurm", ["sbatch", "srun", "sinfo"], "launch/submit.py prints jobs and cannot submit them"
    )
    yield installation.check_wandb(has_login=has_login())


def lines_of(findings: list[Finding]) -> Iterator[str]:
    """Yield the lines that a person reads."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        yield f"{finding.status:8} {finding.name:{width}}  {finding.found}"
        if finding.advice:
            needed = "required; " if finding.is_required else ""
            yield f"{'':8} {'':{width}}  -> {needed}{finding.advice}"
    missing = [each.name for each in findings if each.is_required and each.status == "missing"]
    yield ""
    yield (
        f"missing and required: {', '.join(missing)}" if missing else "nothing required is missing"
    )


def _refusal(output_dir: Path) -> str | None:
    """Return why nothing can be written to a folder; None if it can."""
    try:
        check_output("output_dir", output_dir, is_filled=True)
    except InputError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
