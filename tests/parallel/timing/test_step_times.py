"""The parts of a step add up to its seconds, and collectives are recorded."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, Work

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.split_linear import RowLinear, ranks_of
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication, describe_members
from ernie_vilg.parallel.timing.step_times import instrument
from tests.distributed import run_distributed
from tests.training.runs import MODEL, start, tiny_run

STEPS = 3
SLOW_SECONDS = 0.2
PARTS = {"data", "forward", "backward", "optimizer", "communication", "other"}


def batches(config: PretrainConfig, count: int) -> list[Batch]:
    pairs = config.parallelism.micro_batch_size
    return [
        Batch(
            text=torch.ones(pairs, MODEL.text_length, dtype=torch.int64),
            codes=torch.ones(pairs, MODEL.num_image_tokens, dtype=torch.int64),
        )
        for _ in range(count)
    ]


def timed_steps(launch: Launch, config: PretrainConfig) -> dict[str, Any]:
    """Take steps, before each of which the last rank sleeps; return the measurements."""
    engine = start(launch, config, torch.float32)
    untouched = vars(ProcessGroup)["allreduce"], vars(Work)["wait"], dict(vars(engine))
    inner = set(vars(engine.deepspeed_engine))
    with Communication(engine.groups) as communication:
        with instrument(engine, communication) as times:
            with times.reading():
                pass
            engine.train_batch(batches(config, engine.num_micro_batches), 1e-3)
            assert times.read().keys() == {f"{part}_seconds_per_step" for part in PARTS}
            began = time.perf_counter()
            for _ in range(STEPS):
                with times.reading():
                    if launch.rank == launch.world_size - 1:
                        time.sleep(SLOW_SECONDS)
                engine.train_batch(batches(config, engine.num_micro_batches), 1e-3)
            wall = time.perf_counter() - began
            with times.paused():
                time.sleep(SLOW_SECONDS)
                dist.barrier()
            read = times.read()
            assert times.read() == {}, "no step since"
        counts, last = communication.counts(), communication.last
    assert vars(ProcessGroup)["allreduce"] is untouched[0]
    assert vars(Work)["wait"] is untouched[1]
    added = set(vars(engine.deepspeed_engine)) - inner
    assert not added & {"forward", "backward", "step", "_INSTRUCTION_MAP"}
    return {
        "seconds": {name.removesuffix("_seconds_per_step"): s for name, s in read.items()},
        "wall": wall / STEPS,
        "work": times.work_seconds_per_step,
        "counts": counts,
        "last": str(last),
    }


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({}, id="plain engine"),
        pytest.param({"pipeline_parallel_size": 2}, id="pipeline engine"),
    ],
)
def test_the_parts_of_a_step_add_up_and_waiting_is_communication(
    tmp_path: Path, layout: dict[str, int]
) -> None:
    config = tiny_run(tmp_path, steps=STEPS, **layout)

    fast, slow = run_distributed(timed_steps, 2, config)

    for rank in (fast, slow):
        parts = rank["seconds"]
        # The sum lacks the Python around the loop; it must lack the time in `paused`.
        assert sum(parts.values()) == pytest.approx(rank["wall"], rel=0.1, abs=0.02)
        for part in ("forward", "backward", "optimizer"):
            assert parts[part] > 0
        work = rank["wall"] - parts["communication"]
        assert rank["work"] == pytest.approx(work, rel=0.1, abs=0.02)
    assert slow["seconds"]["data"] == pytest.approx(SLOW_SECONDS, rel=0.5)
    assert fast["seconds"]["data"] < SLOW_SECONDS / 5
    assert fast["seconds"]["communication"] > SLOW_SECONDS / 5, "it waits for the other"
    assert fast["last"].startswith("barrier of all ranks (number ")
    assert fast["last"] == slow["last"]
    shared = fast["counts"].keys() & slow["counts"].keys()
    assert "all ranks, 2 from 0 to 1" in shared
    for key in shared:
        assert fast["counts"][key] == slow["counts"][key]


def groups_in_words(launch: Launch) -> dict[str, Any]:
    groups = build_groups(2, 2, start_processes(launch, timeout_seconds=60))
    with Communication(groups) as communication:
        dist.all_reduce(torch.ones(3), group=groups.tensor_group)
        said = [str(communication.last)]
        work = dist.all_reduce(torch.ones(5), group=groups.tensor_group, async_op=True)
        assert communication.current is None, "nobody waits in it yet"
        assert work is not None
        work.wait()
        said.append(str(communication.last))
        if launch.rank in (0, 2):
            peer = 2 - launch.rank
            (dist.send if launch.rank == 0 else dist.recv)(torch.ones(7), peer)
            said.append(str(communication.last))
        seconds = communication.clock.read()
    assert all(span.is_communication for span in seconds)
    members = [(0, 1, 2, 3), (0, 2), (1, 0), (0, 3), (2,)]
    return {"said": said, "words": [describe_members(group, groups) for group in members]}


@pytest.mark.distributed
def test_collectives_are_described_and_counted() -> None:
    first, second, third, _ = run_distributed(groups_in_words, 4)

    tensor = ["all_reduce of the tensor group (number 1, 12 bytes)"]
    tensor += ["all_reduce of the tensor group (number 2, 20 bytes)"]
    assert second["said"] == tensor
    assert first["said"] == [*tensor, "send to rank 2 (number 1, 28 bytes)"]
    assert third["said"] == [*tensor, "receive from rank 0 (number 1, 28 bytes)"]
    assert first["words"] == [
        "all ranks",
        "the pipeline group",
        "the tensor group",
        "the tensor and pipeline group",
        "the one-rank group",
    ]


def functional_collectives(launch: Launch, folder: Path, backend: str) -> dict[str, Any]:
    """Run a product of a split layer; rank 0 joins once rank 1 was seen waiting for it."""
    groups = build_groups(2, 1, start_processes(launch, timeout_seconds=60))
    layer = RowLinear(ranks_of(groups.tensor_group, split_tokens=False), 4, 3)
    # An object, not its module's `compile`, so that the compiled code is the layer's own.
    product = layer if backend == "eager" else torch.compile(layer, backend=backend, fullgraph=True)
    untouched = torch.ops._c10d_functional.wait_tensor.default._op
    hidden, waits = torch.ones(5, 2), folder / "rank 1 waits"
    with Communication(groups) as communication:
        product(hidden)  # compiled
        dist.barrier()
        before = communication.counts()
        communication.clock.read()
        seen: list[str] = []

        def watch() -> None:
            while communication.current is None:
                time.sleep(0.01)
            seen.append(str(communication.current))
            waits.touch()

        if launch.rank == 1:
            watcher = threading.Thread(target=watch)
            watcher.start()
            product(hidden)
            watcher.join()
        else:
            while not waits.exists():
                time.sleep(0.01)
            product(hidden)
        counts = {key: count - before[key] for key, count in communication.counts().items()}
        seconds = sum(communication.clock.read().values())
        assert communication.current is None
    assert torch.ops._c10d_functional.wait_tensor.default._op is untouched
    return {"counts": counts, "seen": seen, "seconds": seconds}


@pytest.mark.distributed
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_rank_waiting_in_a_split_layer_is_seen(tmp_path: Path, backend: str) -> None:
    late, waiting = run_distributed(functional_collectives, 2, tmp_path, backend)

    assert late["counts"] == waiting["counts"]
    assert list(waiting["counts"].values()) == [1]
    # The first was the one before the barrier.
    assert waiting["seen"] == ["all_reduce of all ranks (number 3, 60 bytes)"]
    assert waiting["seconds"] > 0
