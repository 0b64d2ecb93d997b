"""Settings of the program that checks this machine."""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalOutput, Settings


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Settings):
    """Settings of launch/doctor.py."""

    output_dir: LocalOutput = "outputs"
    """Folder of coming outputs: its free space and the permission to write there are checked."""
    json: bool = False
    """Whether to print the findings as one JSON list, rather than a line each."""
