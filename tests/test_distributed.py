"""Ranks of tests see GPUs only if the test says so, from their first import on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed, without_gpus

ROOT = Path(__file__).parents[1]

VISIBLE_AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")
"""GPUs visible to this process when it imported this module, and so torch and DeepSpeed."""


def visible_at_import(_launch: Any) -> str | None:
    return VISIBLE_AT_IMPORT


def test_a_rank_on_the_cpu_sees_no_gpu_from_its_first_import_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # ranks are then spawned

    assert run_distributed(visible_at_import, 1) == [""]
    assert run_distributed(visible_at_import, 1, use_gpu=True) == ["0,1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_hidden_gpus_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    with without_gpus():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_plugin_of_rented_machines_does_not_end_pytest(tmp_path: Path) -> None:
    """pytest-benchmark warns while it is configured, and warnings are errors here."""
    module = (
        "import warnings\ndef pytest_configure(config):\n    warnings.warn('xdist is active')\n"
    )
    (tmp_path / "noisy_plugin.py").write_text(module)
    information = tmp_path / "noisy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[pytest11]\nbenchmark = noisy_plugin\n")
    (tmp_path / "test_one.py").write_text("def test_one() -> None:\n    pass\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "test_one.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr
