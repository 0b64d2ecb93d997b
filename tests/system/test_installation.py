"""Packages are compared with the project's declaration and with the pins."""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ernie_vilg.system import installation

DECLARED = [
    "torch>=2.10",
    "numpy>=2",
    "ray[default]>=2.60; extra == 'ray'",
    "aiohttp>=3; extra == 'remote'",
    "pytest>=9; extra == 'checks'",
]


def install(monkeypatch: pytest.MonkeyPatch, versions: Mapping[str, str]) -> None:
    """Let the environment hold these packages and no other."""

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(installation, "version", version)
    monkeypatch.setattr(installation, "requires", lambda name: DECLARED)


def test_packages_of_the_project_are_required_and_those_of_extras_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, {"torch": "2.8.0+cu128", "ray": "2.61"})

    own, ray, remote = installation.check_packages()

    assert (own.name, own.status, own.is_required) == ("packages", "missing", True)
    assert own.found == "torch 2.8.0+cu128, not >=2.10, no numpy"
    assert own.advice == "pip install 'torch>=2.10' 'numpy>=2'"
    assert (ray.name, ray.status) == ("packages of [ray]", "ok")
    assert (remote.status, remote.is_required) == ("missing", False)
    assert remote.advice == "pip install 'ernie-vilg[remote]'"


def test_a_development_version_of_torch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"torch": "2.13.0a0+git1", "numpy": "2.4"})

    assert installation.check_packages()[0].status == "ok"


def test_a_project_that_is_not_installed_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "requires", requires)

    (finding,) = installation.check_packages()

    assert (finding.status, finding.is_required) == ("warning", False)


def test_other_versions_than_the_pinned_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# a comment\nnumpy==2.4.1\ntorch==2.13.0  # why\nabsent==1\n")
    install(monkeypatch, {"numpy": "2.4.0", "torch": "2.13.0+cpu"})

    finding = installation.check_pins(pins)

    assert finding is not None
    assert finding.status == "warning"
    assert finding.found == "1 of 2 packages as in constraints.txt"
    assert finding.advice.endswith("numpy 2.4.0 (pinned 2.4.1)")
    assert installation.check_pins(tmp_path / "none.txt") is None


def test_an_old_python_is_missing() -> None:
    assert installation.check_python("3.11").status == "ok"
    old = installation.check_python(f"3.{sys.version_info.minor + 1}")

    assert (old.status, old.is_required) == ("missing", True)


def test_a_torch_that_cannot_be_loaded_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    assert installation.check_torch().status == "ok"
    monkeypatch.setattr(installation.importlib, "import_module", fail)

    finding = installation.check_torch()

    assert (finding.status, finding.is_required) == ("missing", True)
    assert "libcudart.so.12" in finding.found
