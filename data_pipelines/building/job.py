"""The job of one output folder: its work folder, its sources, the tasks of the first stage."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from data_pipelines.building.folders import PICTURES_FOLDER, ROWS_FOLDER, THUMBNAILS_FOLDER
from data_pipelines.building.inspect import CurationPlan, InspectTask
from data_pipelines.building.records import RECORDS_FOLDER
from data_pipelines.curation.preparation import PreparedCuration, prepare_curation
from data_pipelines.executor import Executor
from data_pipelines.outputs import check_output_folder
from data_pipelines.ray_tasks import software
from data_pipelines.sources.open import open_sources
from data_pipelines.sources.rows import Source
from data_pipelines.work_folder import clear_finished, remove_work_folder, work_folder
from ernie_vilg.config.curation import Rules
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import remove, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.shard_manifest import FILE_NAME
from ernie_vilg.system.worker_pool import WorkerPool

SOURCES_FOLDER, CURATION_FOLDER = "sources", "curation"
"""Folders of the work folder with the listings of the sources, and with what curation prepared."""
_FINGERPRINTS = "fingerprints.json"
_WITHOUT_EFFECT = (
    "output_dir",
    "executor",
    "ray_address",
    "num_workers",
    "num_parts",
    "part_index",
    "overwrite",
    "max_faulty_fraction",
)
"""Settings that no byte of the shards depends on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildingJob:
    """All work for one output folder."""

    config: BuildShardsConfig
    output_dir: Path
    """Output folder, with links resolved."""
    folder: Path
    """Work folder beside it."""
    tasks: list[InspectTask]
    """Parts of all sources in order."""
    executor: Executor
    model_hashes: Mapping[str, str]
    """SHA-256 of every model of curation, by setting."""

    @cached_property
    def num_rows(self) -> int | None:
        """Number of rows of all parts; None where a reader does not know it."""
        rows = [task.part.rows for task in self.tasks]
        return None if None in rows else sum(number for number in rows if number is not None)

    @property
    def where(self) -> str:
        """The sources, for messages."""
        names = self.config.all_sources
        return ", ".join(
            f"source={source.location}" if self.config.source else f"sources.{name}"
            for name, source in names.items()
        )


@contextmanager
def started_job(config: BuildShardsConfig) -> Iterator[BuildingJob]:
    """Yield the job of some settings, in a work folder that only it uses.

    Raises:
        InputError: a source, a rule or `output_dir` is wrong, or another process works on it.
    """
    rules = _rules(config)  # wrong names are refused before anything is read
    _log_rules(config)
    output_dir = check_output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=FILE_NAME,
        inputs=_inputs(config),
    )
    is_shared = config.part_index is not None
    with (
        work_folder(
            output_dir, job_settings(config), kind="building", is_shared=is_shared
        ) as folder,
        WorkerPool(config.num_workers) as pool,
    ):
        try:
            sources, prepared = _prepared(config, rules, folder)
        except InputError:
            if not is_shared and not (folder / _FINGERPRINTS).is_file():
                remove_work_folder(output_dir, "building")  # nothing is done in it
            raise
        yield BuildingJob(
            config=config,
            output_dir=output_dir,
            folder=folder,
            tasks=list(_tasks(config, sources, _plans(config, prepared), folder)),
            model_hashes=prepared.model_hashes,
            executor=Executor(
                kind=config.executor,
                num_workers=config.num_workers,
                pool=pool,
                ray_address=config.ray_address,
                shared_folder=folder,
            ),
        )


def _prepared(
    config: BuildShardsConfig, rules: list[Rules], folder: Path
) -> tuple[list[Source], PreparedCuration]:
    """Open the sources and the models, and make the work folder ready for their state.

    Raises:
        InputError: one of them is missing or wrong.
    """
    sources = open_sources(config, folder / SOURCES_FOLDER)
    (folder / CURATION_FOLDER).mkdir(exist_ok=True)
    prepared = prepare_curation(config.curation, rules, folder / CURATION_FOLDER)
    fingerprints = {f"source {source.name}": source.fingerprint() for source in sources}
    is_shared = config.part_index is not None
    packages = {
        f"package {name}": version for name, version in software().items() if name != "code"
    }
    _keep_or_clear(folder, {**fingerprints, **prepared.model_hashes, **packages}, is_shared)
    for name in (PICTURES_FOLDER, ROWS_FOLDER, THUMBNAILS_FOLDER, RECORDS_FOLDER):
        (folder / name).mkdir(exist_ok=True)
    return sources, prepared


def job_settings(config: BuildShardsConfig) -> dict[str, Any]:
    """Return what the bytes of the shards depend on, besides the content of the sources."""
    settings = {
        name: value for name, value in asdict(config).items() if name not in _WITHOUT_EFFECT
    }
    for source in settings["sources"].values():
        source["location"] = _absolute(source["location"])
    settings["source"] = _absolute(config.source)
    as_json: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists
    return as_json


def _absolute(location: str | None) -> str | None:
    is_folder = location is not None and os.path.exists(location)
    return os.path.realpath(location) if is_folder and location is not None else location


def _inputs(config: BuildShardsConfig) -> dict[str, str | None]:
    """Return the places that are read, by their settings."""
    inputs: dict[str, str | None] = {}
    for name, source in config.all_sources.items():
        prefix = "" if config.source else f"sources.{name}."
        is_place = source.layout != "scenes" and os.path.exists(source.location)
        inputs["source" if config.source else f"{prefix}location"] = (
            source.location if is_place else None
        )
        inputs[f"{prefix}images_root"] = source.images_root
        inputs[f"{prefix}image_list"] = source.image_list
    return inputs


def _keep_or_clear(folder: Path, fingerprints: Mapping[str, str], is_shared: bool) -> None:
    """Remove finished work, and say so, if a source, a model or a package has changed since.

    Raises:
        InputError: other processes may be using it.
    """
    file = folder / _FINGERPRINTS
    if file.is_file() and (earlier := read_object(file)) != fingerprints:
        names = sorted(fingerprints.keys() | earlier.keys())
        changed = ", ".join(n for n in names if fingerprints.get(n) != earlier.get(n))
        if is_shared:
            raise InputError(
                f"{folder} holds work on an earlier state of the sources or models ({changed}): "
                "end the processes that work there and remove it, or name another output_dir"
            )
        logger.warning(
            "begin again: %s changed since the work in %s, which could give other shards",
            changed,
            folder,
        )
        file.unlink()
    if not file.is_file():
        if not is_shared:
            for path in folder.iterdir():
                if path.is_dir() and path.name not in (SOURCES_FOLDER, CURATION_FOLDER):
                    remove(path)
        write_json(file, dict(fingerprints))
    (folder / "shards").mkdir(exist_ok=True)


def _tasks(
    config: BuildShardsConfig,
    sources: list[Source],
    plans: Mapping[str, CurationPlan],
    folder: Path,
) -> Iterator[InspectTask]:
    numbers = count()
    for source in sources:
        for part in source.parts():
            yield InspectTask(
                number=next(numbers),
                source=source.of_part(part),
                part=part,
                plan=plans[source.name],
                config=config,
                work_folder=folder,
            )


def _plans(config: BuildShardsConfig, prepared: PreparedCuration) -> dict[str, CurationPlan]:
    """Return the rules of every source."""
    curation = prepared.config
    sha256 = sha256_of_json([asdict(curation), dict(prepared.model_hashes)])
    return {
        name: CurationPlan(sha256=sha256, name=rules or "", config=curation, rules=found)
        for (name, rules), found in zip(_names_of_rules(config), _rules(config), strict=True)
    }


def _names_of_rules(config: BuildShardsConfig) -> Iterable[tuple[str, str | None]]:
    """Return the sources and the names of their rules.

    Raises:
        InputError: as for `CurationConfig.rules_of`.
    """
    wanted = {name: source.rules for name, source in config.all_sources.items()}
    return config.curation.rules_of(wanted).items()


def _log_rules(config: BuildShardsConfig) -> None:
    """Say which rules each source has, and which rules no source has: a name may be misspelt."""
    names = dict(_names_of_rules(config))
    for source, name in names.items():
        logger.info("source %s: %s", source, f"curation.rules.{name}" if name else "no rules")
    if unused := sorted(set(config.curation.rules).difference(names.values())):
        logger.warning("no source has these rules: curation.rules.%s", ", ".join(unused))


def _rules(config: BuildShardsConfig) -> list[Rules]:
    rules = config.curation.rules
    return [Rules() if name is None else rules[name] for _, name in _names_of_rules(config)]


def finished_folder(config: BuildShardsConfig) -> Path | None:
    """Return the output folder if the same command was killed after it got its name.

    What the command left is removed.
    """
    if config.overwrite or config.part_index is not None:
        return None
    output_dir = Path(os.path.realpath(config.output_dir))
    is_finished = clear_finished(output_dir, lambda: job_settings(config), kind="building")
    return output_dir if is_finished else None
