"""Findings about the installation: Python, packages by purpose, and the pinned versions."""

import importlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ernie_vilg.system.machine import Finding

_PACKAGE = "ernie-vilg"
_FOR_DEVELOPERS = "checks"
"""Extra of the tests, which a user does not need."""


def check_torch() -> Finding:
    """Return whether torch can be loaded, and how it was built."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a library of CUDA may lack
        return Finding(
            name="torch",
            status="missing",
            found=f"cannot be loaded: {error}",
            advice="install it again for this machine: https://pytorch.org/get-started",
            is_required=True,
        )
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding(name="torch", status="ok", found=f"{torch.__version__}, {build}")


def check_packages() -> list[Finding]:
    """Return whether Python and the packages are those that the installed project declares."""
    try:
        declared = [Requirement(line) for line in requires(_PACKAGE) or ()]
    except PackageNotFoundError:
        return [
            Finding(
                name="packages",
                status="warning",
                found=f"{_PACKAGE} is not installed, so nothing says which versions it needs",
                advice="install it: make environment, or pip install --editable .",
            )
        ]
    purposes: dict[str, list[Requirement]] = {}
    for requirement in declared:
        purposes.setdefault(_extra_of(requirement), []).append(requirement)
    extras = {name: each for name, each in purposes.items() if name != _FOR_DEVELOPERS}
    return [_of_purpose(purpose, requirements) for purpose, requirements in sorted(extras.items())]


def check_python(least: str = "3.11") -> Finding:
    """Return Python's version."""
    found, numbers = platform.python_version(), platform.python_version_tuple()
    if tuple(map(int, numbers[:2])) >= tuple(map(int, least.split("."))):
        return Finding(name="Python", status="ok", found=found)
    advice = f"Python {least} or newer is needed: make PYTHON=python{least} environment"
    return Finding(name="Python", status="missing", found=found, advice=advice, is_required=True)


def check_pins(constraints: Path) -> Finding | None:
    """Return whether installed packages have their pinned versions.

    Args:
        constraints: file of pins, a `name==version` per line; without it there is no finding.
    """
    if not constraints.is_file():
        return None
    pins = dict(_pins(constraints.read_text(encoding="utf-8")))
    installed = {name: _version(name) for name in pins}
    present = {name: each for name, each in installed.items() if each is not None}
    others = [
        f"{name} {each} (pinned {pins[name]})"
        for name, each in present.items()
        if each.partition("+")[0] != pins[name].partition("+")[0]
    ]
    found = f"{len(present) - len(others)} of {len(present)} packages as in {constraints.name}"
    if not others:
        return Finding(name="pins", status="ok", found=found)
    advice = f"the suite passed with other versions: {', '.join(others)}"
    return Finding(name="pins", status="warning", found=found, advice=advice)


def check_wandb(*, has_login: bool) -> Finding:
    """Return where a run's metrics go, as far as it can be known without the network.

    Args:
        has_login: whether a key for W&B is on this machine.
    """
    if has_login:
        return Finding(name="W&B", status="ok", found="a login is here, runs are sent (not tried)")
    return Finding(
        name="W&B",
        status="missing",
        found="no login",
        advice="runs record to a folder, for wandb sync later: wandb login, or WANDB_API_KEY",
    )


def _of_purpose(purpose: str, requirements: list[Requirement]) -> Finding:
    """Return whether the packages of the project, or of one of its extras, are installed."""
    name = f"packages of [{purpose}]" if purpose else "packages"
    wrong = {str(each): found for each in requirements if (found := _problem(each)) is not None}
    if not wrong:
        found = f"all {len(requirements)} in the required versions"
        return Finding(name=name, status="ok", found=found)
    words = " ".join(f"'{each.split(';')[0].strip()}'" for each in wrong)
    return Finding(
        name=name,
        status="missing",
        found=", ".join(wrong.values()),
        advice=f"pip install {words}" if not purpose else f"pip install 'ernie-vilg[{purpose}]'",
        is_required=not purpose,
    )


def _problem(requirement: Requirement) -> str | None:
    """Return what is wrong with an installed package; None if nothing is."""
    found = _version(requirement.name)
    if found is None:
        return f"no {requirement.name}"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found}, not {requirement.specifier}"
    return None


def _extra_of(requirement: Requirement) -> str:
    """Return the extra that a requirement belongs to; "" for the project's own."""
    marker = str(requirement.marker or "")
    return marker.partition('extra == "')[2].rstrip('"')


def _pins(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, pinned = line.partition("#")[0].strip().partition("==")
        if equals:
            yield name, pinned


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
