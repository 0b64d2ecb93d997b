"""Saves an engine to a folder without the commit protocol of checkpoints."""

from pathlib import Path

import torch

from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.snapshot import Snapshot


def save_to(engine: Engine, folder: Path) -> None:
    """Write this rank's files; all ranks must call."""
    snapshot = Snapshot()
    engine.save(snapshot)
    for name, content in snapshot.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    torch.distributed.barrier()
