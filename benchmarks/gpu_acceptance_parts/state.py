"""The state file: how every stage ended, so that a second call goes on where the first stopped."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_acceptance_parts.stages import Record, Status
from benchmarks.support.measurer import Result
from benchmarks.support.results import ROOT
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json

STATE_NAME = "state.json"


class State:
    """Records of stages by name, in a file that is written whole after every change."""

    def __init__(self, path: Path, code: str, *, carried: Path | None = None) -> None:
        """Read the file if it exists.

        Args:
            path: the file.
            code: fingerprint of the code.
            carried: a state file from another machine, read if there is none here.
        """
        self.code = code
        self._path = path
        self._records: dict[str, Record] = {}
        found = next((file for file in (path, carried) if file and file.is_file()), None)
        if found is not None:
            for name, content in read_json(found).items():
                self._records[name] = Record(**{**content, "status": Status(content["status"])})

    def put(self, name: str, record: Record) -> None:
        """Keep the end of a stage."""
        self._records[name] = record
        content: dict[str, Any] = {name: asdict(record) for name, record in self._records.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, content)

    def record(self, name: str) -> Record | None:
        """Return the end of a stage, None for one that has not run."""
        return self._records.get(name)

    def status(self, name: str) -> Status | None:
        """Return how a stage ended, None for one that has not run."""
        record = self.record(name)
        return None if record is None else record.status

    def passed(self, name: str) -> list[Result]:
        """Return the figures of a stage, none if it has not passed."""
        record = self.record(name)
        return record.rows if record is not None and record.status is Status.PASSED else []

    def figures(self) -> dict[str, Result]:
        """Return the figures of all stages that passed, by metric."""
        rows = [row for name in self._records for row in self.passed(name)]
        return {row["metric"]: row for row in rows if "metric" in row}


def fingerprint(root: Path = ROOT) -> str:
    """Return a hash of the code and settings; a copy without Git's data has it too."""
    digest = hashlib.sha256()
    for folder in ("benchmarks", "conf", "ernie_vilg", "launch", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".yaml"}:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
