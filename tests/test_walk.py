"""The walk of one batch, as docs/architecture.md lists it, is the walk that a step takes.

Traced from the moment the training loop asks for the batch of step 1 to the loss tensor: every file
of `ernie_vilg` of which a function runs, in this thread and in those that open shards. Nothing was
read before, so the step opens its shards. What is built before the first step does not count: the
run's parts (the reader with its order, the engine with its model) and imports. The run is that of
`tests.training.runs`: one rank, the plain engine, token shards as plain tars in a local folder, no
worker process, no damage. What only observes a step (timing, watchdog) is not attached.
"""

import dataclasses
import importlib
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.image_batches import ImageBatches
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.training.replica_batches import ReplicaBatches
from tests.data.image_shards import images_of, numbered_png, write_image_shards
from tests.data.token_shards import sequence_of, write_token_shards
from tests.distributed import run_distributed
from tests.training.runs import start, tiny_run

ROOT = Path(__file__).parents[1]
MAX_FILES, MAX_CONTAINERS = 20, 4
HOLD_NO_SAMPLES = {
    "ernie_vilg.data.shards.open_shards.OpenShard",
    "ernie_vilg.data.shards.shard_index.ShardIndex",
    "ernie_vilg.model.head.HeadOutput",
    "ernie_vilg.model.loss.Losses",
}
"""Classes with arrays of something else: a whole shard's index, and the outputs of the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """The files and containers of a trace."""

    files: set[str]
    containers: set[str]


class Tracer:
    """Notes files whose functions run, and classes with arrays that pass from file to file."""

    def __init__(self) -> None:
        self.walk = Walk(files=set(), containers=set())

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        file = file_of(frame)
        if file is None:
            return
        if event == "call":
            self.walk.files.add(file)
        if event == "return" and file_of(frame.f_back) != file:
            self.walk.containers.update(containers_in(value))


def file_of(frame: FrameType | None) -> str | None:
    """Return the path of a frame's file within the repository, None for files of others."""
    path = "" if frame is None else frame.f_code.co_filename
    package = f"{ROOT}/ernie_vilg/"
    return path.removeprefix(f"{ROOT}/") if path.startswith(package) else None


def containers_in(value: Any) -> Iterator[str]:
    """Yield the names of our classes with arrays or tensors in a value."""
    parts: list[Any] = []
    if isinstance(value, list | tuple):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        parts = list(value.values())
    kind = type(value)
    has_arrays = any(isinstance(part, np.ndarray | torch.Tensor) for part in parts)
    inside = [name for part in parts for name in containers_in(part)]
    if kind.__module__.startswith("ernie_vilg.") and (has_arrays or inside):
        yield f"{kind.__module__}.{kind.__qualname__}"
    yield from inside


@contextmanager
def traced() -> Iterator[Walk]:
    """Trace this thread and those that it starts."""
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        yield tracer.walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


class Reached(Exception):  # noqa: N818, it is no error
    """The loss is there."""


def walk_of_a_step(launch: Launch, config: PretrainConfig) -> Walk:
    """Take a step up to its loss, and return what it passed through."""
    engine: Any = start(launch, config, torch.float32)
    shards = Path(config.data.token_shards)
    sequence = sequence_of(shards, read_manifest(shards, "token"), config.model)
    objective = engine._objective

    def stop_at_loss(*arguments: Any) -> None:
        objective(*arguments)
        raise Reached

    engine._objective = stop_at_loss
    with (
        closing(ReplicaBatches(config, sequence, engine.groups)) as batches,
        pytest.raises(Reached),
        traced() as walk,
    ):
        engine.train_batch(batches.at(1), learning_rate=1e-2)
    return walk


def documented() -> Walk:
    """Return the walk as the section of docs/architecture.md lists it."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## The walk of one batch\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    return Walk(
        files=set(re.findall(r"^\d+\. `(ernie_vilg/\S+\.py)`", section, re.MULTILINE)),
        containers=set(re.findall(r"^- `(ernie_vilg\.\S+)`", section, re.MULTILINE)),
    )


def test_a_step_passes_through_the_files_that_the_page_lists(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1)
    write_token_shards(tmp_path / "shards", [8, 8, 8, 8])

    (walk,) = run_distributed(walk_of_a_step, 1, config)

    assert sorted(walk.files) == sorted(documented().files)
    assert len(walk.files) <= MAX_FILES
    assert walk.containers - HOLD_NO_SAMPLES <= documented().containers


def test_the_containers_that_the_page_lists_exist() -> None:
    containers = documented().containers

    assert 0 < len(containers) <= MAX_CONTAINERS
    for container in containers:
        module, _, name = container.rpartition(".")
        assert hasattr(importlib.import_module(module), name), container


def test_pictures_are_read_through_the_same_files(tmp_path: Path) -> None:
    files = [numbered_png(number, 8) for number in range(8)]
    sequence = images_of(tmp_path, write_image_shards(tmp_path, [files], image_size=8))
    replica = ReplicaSlice(batch_sizes=BatchSizes(full=4), data_rank=0, data_size=1)

    with closing(ImageBatches(sequence, replica)) as batches, traced() as walk:
        batches.at(1)

    own = {"image_batches.py", "pictures.py"}
    assert walk.files - documented().files == {f"ernie_vilg/data/batches/{name}" for name in own}
