"""One canary per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.canary import Canary


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    canary = Canary(tmp_path / "canary")
    yield canary
    assert not canary.is_there
