"""A snapshot does not change when training continues."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG, Engine
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.runs.run_folder import RunFolder
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step
from tests.training.runs import checkpoints_of, tiny_run


class Scaler:
    """A fake of the objects that DeepSpeed saves beside tensors."""

    def __init__(self) -> None:
        self.scale = 2.0


def test_the_copy_does_not_change_with_the_original() -> None:
    weight, scaler = torch.tensor([1.0, 2.0]), Scaler()
    content = {"groups": [(weight, {"betas": [0.9]})], "scaler": scaler, "empty": torch.empty(0)}
    snapshot = Snapshot()

    snapshot.take("a", content)
    weight.add_(1)
    scaler.scale = 1.0
    content["groups"][0][1]["betas"][0] = 0.5  # type: ignore[index]

    copied = snapshot.files["a"]
    assert copied["groups"][0][0].tolist() == [1.0, 2.0]
    assert copied["groups"][0][1] == {"betas": [0.9]}
    assert copied["scaler"].scale == 2.0
    assert copied["empty"].shape == (0,)
    assert snapshot.num_bytes == 8


def test_only_the_elements_of_a_view_are_copied() -> None:
    flat = torch.arange(1000.0)
    snapshot = Snapshot()

    snapshot.take("a", {"part": flat[10:12], "columns": flat.view(500, 2)[:2].t()})

    assert snapshot.num_bytes == 2 * 4 + 4 * 4
    assert snapshot.files["a"]["columns"].tolist() == [[0, 2], [1, 3]]


def test_tied_weights_stay_one_tensor() -> None:
    weight = nn.Parameter(torch.ones(3))
    snapshot = Snapshot()

    snapshot.take("a", {"embedding": weight, "head": weight.detach(), "slice": weight[:2]})

    copied = snapshot.files["a"]
    assert copied["embedding"] is copied["head"]
    assert copied["slice"].shape == (2,)
    assert not copied["embedding"].requires_grad


def test_the_next_snapshot_uses_the_same_memory() -> None:
    snapshot = Snapshot()
    snapshot.take("a", [torch.ones(4), torch.ones(5)])
    first = [tensor.data_ptr() for tensor in snapshot.files["a"]]

    snapshot.clear()
    assert snapshot.files == {}
    snapshot.take("a", [torch.zeros(4), torch.zeros(6)])

    second = [tensor.data_ptr() for tensor in snapshot.files["a"]]
    assert second[0] == first[0]  # of the same size
    assert [tensor.tolist() for tensor in snapshot.files["a"]] == [[0] * 4, [0] * 6]
    assert snapshot.num_bytes == 4 * (4 + 6)


class OnGpu(Tensor):
    """Stands for a tensor on a GPU."""

    is_cuda = True


def test_tensors_of_a_gpu_go_to_pinned_memory_whose_size_is_reported() -> None:
    asked = []

    def pin(num_bytes: int) -> Tensor:
        asked.append(num_bytes)
        return torch.empty(100 * num_bytes, dtype=torch.uint8)  # as pages are larger

    weight, step = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor(5)
    content = [weight.as_subclass(OnGpu), step.as_subclass(OnGpu), torch.empty(0), torch.ones(2)]
    snapshot = Snapshot(pin)

    snapshot.take("a", content)
    first = [tensor.data_ptr() for tensor in snapshot.files["a"]]
    snapshot.take("a", content)

    assert asked == [12, 8]
    assert [tensor.data_ptr() for tensor in snapshot.files["a"]] == first
    assert [tensor.tolist() for tensor in snapshot.files["a"]] == [[[1, 2, 3]], 5, [], [1, 1]]
    assert snapshot.num_bytes == 100 * (12 + 8) + 2 * 4


def test_versions_of_modules_are_copied() -> None:
    state = nn.LayerNorm(2).state_dict()
    snapshot = Snapshot()

    snapshot.take("a", state)

    copied = snapshot.files["a"]
    assert type(copied) is OrderedDict
    assert copied._metadata == state._metadata  # type: ignore[attr-defined]


def train_on_and_go_back(
    launch: Launch, config: PretrainConfig, stages: tuple[int, ...]
) -> list[tuple[bool, ...]]:
    """Save in the background, train, roll back, and train again, for each ZeRO stage."""
    device = start_processes(launch, timeout_seconds=60)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    found = []
    for stage in stages:
        layout = replace(config.parallelism, zero_stage=stage)
        run_dir = str(Path(config.run_dir) / str(stage))
        config = replace(config, parallelism=layout, run_dir=run_dir)
        engine = build_engine(config, build_groups(1, 1, device), torch.float32)
        checkpoints = checkpoints_of(config, engine)
        checkpoints.restore(engine)
        _step(engine, 0)
        saved = _state(engine)
        checkpoints.save(engine, 1)
        losses = _step(engine, 1)
        went_on = _state(engine)
        step = checkpoints.reload(engine)
        restored = _state(engine)
        again = _step(engine, 1)
        found.append(
            (
                step == 1,
                _equal(saved, restored) and not _equal(saved, went_on),
                losses.equal(again) and _equal(went_on, _state(engine)),
            )
        )
    return found


def _step(engine: Engine, step: int) -> Tensor:
    return engine.train_batch(batches_of_step(engine, step), learning_rate=1e-2)


def _state(engine: Engine) -> list[Tensor]:
    """Return every tensor of this rank's checkpoint."""
    snapshot = Snapshot()
    engine.save(snapshot)
    return [tensor for name in sorted(snapshot.files) for tensor in _tensors(snapshot.files[name])]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) > 4 and all(map(torch.equal, left, right))


@pytest.mark.distributed
def test_training_repeats_itself_after_a_rollback(tmp_path: Path) -> None:
    """The state at the save is restored bit for bit, under ZeRO 1 and 3."""
    config = tiny_run(tmp_path, steps=2)
    config = replace(config, checkpoint=replace(config.checkpoint, asynchronous=True))

    found = run_distributed(train_on_and_go_back, 2, config, (1, 3))

    assert found == [[(True, True, True)] * 2] * 2
    files = RunFolder(Path(config.run_dir) / "1").checkpoint(1) / CHECKPOINT_TAG
    assert sorted(path.name for path in files.iterdir()) == [
        "mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ]
