"""A checkpoint's file is on the device with its intended content, or the save fails."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch

from ernie_vilg.checkpoint.writer import write_proven


def test_size_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    size, sha256 = write_proven(path, {"weight": torch.arange(3_000_000)})  # several blocks

    assert size == path.stat().st_size > 24_000_000
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.load(path)["weight"].equal(torch.arange(3_000_000))


def test_a_run_that_ends_does_not_wait_for_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    monkeypatch.setattr(threading, "main_thread", lambda: ended)

    with pytest.raises(OSError, match="the run has ended"):
        write_proven(tmp_path / "a.pt", [torch.zeros(3)])
