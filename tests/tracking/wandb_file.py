"""Reader of the file in which W&B keeps a run on this machine, `wandb/*run-*/run-*.wandb`.

It shows without a network or an account what W&B was given:

    from tests.tracking.wandb_file import logged_history
    logged_history(Path("outputs/quickstart/pretrain/wandb/offline-run-.../run-....wandb"))

Source: the record format of LevelDB's log (github.com/google/leveldb, doc/log_format.md), with
CRC-32 for CRC-32C and W&B's own header; records are protobuf messages of `wandb.proto`.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from ernie_vilg.errors import InputError

_FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_RECORD_HEADER = struct.Struct("<IHB")  # CRC-32 of what follows the length, length, type
_BLOCK_BYTES = 32 << 10
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def logged_history(path: Path) -> list[dict[str, Any]]:
    """Return the logged values, one entry per step in order, with W&B's own `_step`.

    A picture is W&B's entry for it: file, size and caption.

    Args:
        path: a .wandb file; a truncated last record is ignored.

    Raises:
        InputError: the file is not of this format, or damaged.
    """
    entries = []
    for record in _records(path):
        if record.HasField("history"):
            entries.append({"_step": record.history.step.num, **_values(record.history.item)})
    return entries


def logged_config(path: Path) -> dict[str, Any]:
    """Return the settings in the file.

    Raises:
        InputError: the file is not of this format, or damaged.
    """
    settings: dict[str, Any] = {}
    for record in _records(path):
        settings |= _values([*record.run.config.update, *record.config.update])
    return settings


def logged_run(path: Path) -> dict[str, Any]:
    """Return what W&B shows of a run beside its curves: name, group, job type, tags and notes.

    Raises:
        InputError: the file is not of this format, or damaged.
    """
    (run,) = [record.run for record in _records(path) if record.HasField("run")]
    return {
        "name": run.display_name,
        "group": run.run_group,
        "job_type": run.job_type,
        "tags": list(run.tags),
        "notes": run.notes,
    }


def num_system_samples(path: Path) -> int:
    """Return the number of samples of the machine's statistics in the file."""
    return sum(record.HasField("stats") for record in _records(path))


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """Return JSON values by name; each part of a nested value is an item of its own."""
    values: dict[str, Any] = {}
    for item in items:
        *groups, name = item.nested_key or [item.key]
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = json.loads(item.value_json)
    return values


def _records(path: Path) -> Iterator[Any]:
    content = path.read_bytes()
    if not content.startswith(_FILE_HEADER):
        raise InputError(f"{path} does not begin as W&B's files do: name a run-*.wandb file")
    message = b""
    for kind, part in _parts(path, content):
        message = part if kind in (_FULL, _FIRST) else message + part
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record


def _parts(path: Path, content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each part of a record; no part crosses the end of a block."""
    position = len(_FILE_HEADER)
    while True:
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _RECORD_HEADER.size:
            position += left  # a block ends with zeros if it has no room for another header
        if position + _RECORD_HEADER.size > len(content):
            return
        checksum, length, kind = _RECORD_HEADER.unpack_from(content, position)
        start = position + _RECORD_HEADER.size
        part = content[start : start + length]
        if len(part) < length or kind == 0:
            return
        if (
            kind not in (_FIRST, _MIDDLE, _LAST, _FULL)
            or zlib.crc32(content[start - 1 : start + length]) != checksum
        ):
            raise InputError(f"{path} is damaged at byte {position}: take the file before it")
        yield kind, part
        position = start + length
