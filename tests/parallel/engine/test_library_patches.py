"""Each library still does what its patch is for; a test that fails says which patch to remove."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime import utils as deepspeed_utils
from deepspeed.runtime.constants import BFLOAT16
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import engine as pipe_engine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils.timer import SynchronizedWallClockTimer
from torch import nn
from torch.distributed import ProcessGroup

from ernie_vilg.parallel.engine import library_patches
from ernie_vilg.parallel.engine.library_patches import (
    conversion_done_by,
    groups_with_timeout,
    leave_collectives_to_gloo,
    one_optimizer_of_zero1,
    replaced,
    saving_through,
    skip_reports,
    stages_starting_at,
    tie_weights,
)
from ernie_vilg.parallel.engine.zero_shards import zero_shards
from ernie_vilg.parallel.layout.groups import timeout_seconds_of
from tests.distributed import one_process

ROOT = Path(__file__).parents[3]
PACKAGES = ("ernie_vilg", "launch", "data_pipelines")
LIBRARIES = {"deepspeed", "megatron", "torch", "transformers", "lightning"}
SETTINGS = {
    "torch.utils.deterministic.fill_uninitialized_memory",
    "torch._dynamo.config.recompile_limit",
    "torch.backends.cudnn.allow_tf32",
    "torch.backends.cudnn.deterministic",
    "sys.argv",
    "sys.stdout",
}
"""Attributes that torch and Python document as settings."""


def remove(patch: Any) -> str:
    return f"remove this patch, the library no longer needs it: {patch.__name__}"


def changed_attributes(source: str) -> set[str]:
    """Return the attributes of imported library code that a module assigns to."""
    names, targets = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {(each.asname or each.name).split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in LIBRARIES:
                names |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets.append(node.target)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            targets.append(ast.Attribute(node.args[0], "any", ast.Store()))
    found = {ast.unparse(each) for each in targets if isinstance(each, ast.Attribute)}
    return {each for each in found if each.split(".")[0] in names} - SETTINGS


def test_library_code_is_changed_in_one_module() -> None:
    assert changed_attributes("import torch\ntorch.cuda.x = 1") == {"torch.cuda.x"}
    assert changed_attributes("from torch import nn as n\nsetattr(n, 'x', 1)") == {"n.any"}

    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    changed = {file: changed_attributes(file.read_text()) for file in files}

    assert {file for file in files if changed[file]} <= {Path(library_patches.__file__)}


def test_what_was_replaced_comes_back() -> None:
    original = vars(ProcessGroup)["allreduce"]
    module = SimpleNamespace(own=1)

    with replaced(ProcessGroup, allreduce=None), replaced(module, own=2, other=3):
        assert vars(ProcessGroup)["allreduce"] is None
        assert vars(module) == {"own": 2, "other": 3}

    assert vars(ProcessGroup)["allreduce"] is original
    assert vars(module) == {"own": 1}


def test_deepspeed_compiles_collectives_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed_comm: Any = importlib.import_module("deepspeed.comm.torch")
    builder = MagicMock(NAME="deepspeed_shm_comm")
    accelerator = SimpleNamespace(create_op_builder=lambda name: builder)
    monkeypatch.setattr(deepspeed_comm, "get_accelerator", lambda: accelerator)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)

    deepspeed_comm.build_shm_op()
    assert builder.load.call_count == 1, remove(leave_collectives_to_gloo)
    leave_collectives_to_gloo()
    deepspeed_comm.build_shm_op()
    assert builder.load.call_count == 1


def test_deepspeed_takes_no_bounds_of_stages() -> None:
    topology = SimpleNamespace(get_coord=lambda rank: SimpleNamespace(pipe=0))
    module: Any = SimpleNamespace(num_stages=2, _topo=topology, global_rank=1, _layer_specs=[])

    with pytest.raises(NotImplementedError):  # else: remove stages_starting_at
        PipelineModule._partition_layers(module, method="0,1,5")
    with stages_starting_at([0, 1, 5]):
        assert deepspeed_utils.partition_balanced([1] * 5, 2) == [0, 1, 5]
    assert deepspeed_utils.partition_balanced([1] * 5, 2) != [0, 1, 5]


def test_deepspeed_ties_whole_layers_only() -> None:
    module: Any = MagicMock(_local_start=0, _local_stop=2, tied_modules={}, forward_funcs=[])
    module._layer_specs = [
        TiedLayerSpec("table", nn.Embedding, 3, 2),
        TiedLayerSpec("table", nn.Linear, 2, 3),
    ]

    PipelineModule._build(module)
    assert module.forward_funcs[0] is module.forward_funcs[1], remove(tie_weights)

    weight: Any = object()
    tie_weights(module, [weight], None)
    assert module.get_tied_weights_and_groups() == [(weight, None)]


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_keeps_no_sums_for_float32(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("deepspeed.runtime.engine")
    monkeypatch.setattr(module, "is_zero_supported_optimizer", lambda optimizer: True)
    engine: Any = MagicMock()
    engine.get_data_types.return_value = (torch.float32, torch.float32)
    engine.zero_optimization_stage.return_value = stage
    engine.zero_cpu_offload.return_value = False

    choice = DeepSpeedEngine._do_optimizer_sanity_check(engine, MagicMock())
    assert choice == ZERO_OPTIMIZATION, remove(one_optimizer_of_zero1)
    with one_optimizer_of_zero1():
        choice = DeepSpeedEngine._do_optimizer_sanity_check(engine, MagicMock())
    assert choice == (BFLOAT16 if stage == 1 else ZERO_OPTIMIZATION)


def test_deepspeed_sums_a_loss_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_engine, "dist", MagicMock())
    engine: Any = MagicMock(device="cpu", timers=SynchronizedWallClockTimer())
    engine.is_last_stage.return_value = False
    engine.grid.pp_group = [engine._loss_stage_global_rank()]
    engine.module.get_additional_losses.return_value = None
    engine._aggregate_total_loss = lambda: PipelineEngine._aggregate_total_loss(engine)
    engine.steps_per_print.return_value, engine.monitor.enabled = None, False

    PipelineEngine.train_batch(engine)
    assert pipe_engine.dist.broadcast.called, remove(skip_reports)
    (timer,) = engine.timers.get_timers().values()
    assert len(timer.event_timers) == 1, remove(skip_reports)

    pipe_engine.dist.broadcast.reset_mock()
    skip_reports(engine)
    PipelineEngine.train_batch(engine)
    assert not pipe_engine.dist.broadcast.called
    assert len(timer.event_timers) == 1


def test_deepspeed_copies_programs_beside_its_files(tmp_path: Path) -> None:
    DeepSpeedEngine._copy_recovery_script(MagicMock(), str(tmp_path))
    assert list(tmp_path.iterdir()), remove(saving_through)

    own = object()
    engine = SimpleNamespace(checkpoint_engine=own)
    writer: Any = object()
    with saving_through(engine, writer):
        assert engine.checkpoint_engine is writer
        engine._copy_recovery_script(str(tmp_path / "missing"))
    assert vars(engine) == {"checkpoint_engine": own}


def test_deepspeed_forks_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = MagicMock()
    monkeypatch.setattr(ds_to_universal, "ProcessPoolExecutor", executor)
    monkeypatch.setattr(ds_to_universal, "tqdm", SimpleNamespace(tqdm=list))

    ds_to_universal._do_parallel_work(abs, [-1], 2)
    assert executor.call_args.kwargs == {"max_workers": 2}, remove(conversion_done_by)
    with conversion_done_by(map):
        assert ds_to_universal._do_parallel_work(abs, [-1], 2) == [1]
    assert executor.call_count == 1


def test_deepspeed_keeps_the_gradients_of_an_offloaded_update_that_it_skips() -> None:
    optimizer: Any = MagicMock(cpu_offload=True, compute_grad_norm=False)
    optimizer.averaged_gradients = gradients = {0: [torch.ones(1)]}
    optimizer.check_overflow = lambda **_: setattr(optimizer, "overflow", True)
    optimizer.reset_cpu_buffers = lambda: DeepSpeedZeroOptimizer.reset_cpu_buffers(optimizer)

    DeepSpeedZeroOptimizer.step(optimizer)
    shards = zero_shards(optimizer, data_rank=0)
    assert shards.has_overflowed
    assert gradients[0] is not None, remove(shards.drop_gradients)
    shards.drop_gradients()
    assert gradients == {0: None}
    assert optimizer.averaged_gradients is gradients  # pieces refer to it


def test_torch_loads_its_compiler_to_be_told_that_nothing_is_compiled() -> None:
    """The patch is `launch.support.no_compiler`."""
    program = (
        "import sys, torch; torch.empty(3, device='meta').normal_(); "
        "sys.exit('torch._dynamo.symbolic_convert' not in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == 0, "remove launch/support/no_compiler.py"


def test_torch_gives_groups_half_an_hour() -> None:
    def timeout() -> float:
        group: Any = dist.new_group([0])
        return timeout_seconds_of(group)

    with one_process():
        assert timeout() == 1800, remove(groups_with_timeout)
        with groups_with_timeout(300):
            assert timeout() == 300
        assert timeout() == 1800
