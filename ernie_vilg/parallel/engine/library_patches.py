"""All patches of library code, each with the library's behavior that makes it necessary.

They hold for the versions in constraints.txt: DeepSpeed 0.19.8, megatron-core 0.16.1, torch 2.13.
tests/parallel/engine/test_library_patches.py shows for each patch that the library still needs it,
and fails with "remove this patch" once it does not. Workarounds stand elsewhere in two cases:
`launch.support.no_compiler` replaces torch's compiler before a program imports DeepSpeed, and
`zero_shards` corrects DeepSpeed's optimizers. Patches for observation only go through `replaced`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.runtime.utils
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.constants import BFLOAT16
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils.timer import NoopTimer
from torch import nn
from torch.distributed import ProcessGroup, distributed_c10d

DoAll = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Applies a function to every item, in any order and process; returns the results in order."""


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of a library's module, class or object in the block."""
    own = vars(owner)  # unbound descriptors: getattr would bind those of C++ types
    originals = {name: own[name] for name in attributes if name in own}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in originals:
                setattr(owner, name, originals[name])
            else:
                delattr(owner, name)


def leave_collectives_to_gloo() -> None:
    """Disable DeepSpeed's own collectives on CPUs.

    DeepSpeed compiles them at the first start, which needs g++ and half a minute; gloo does not.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def silence_deepspeed() -> None:
    """Drop log lines and warnings of DeepSpeed that need no action."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # It calls subclasses of AdamW untested; tests/parallel tests the averaging one.
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())


def stages_starting_at(bounds: list[int]) -> AbstractContextManager[None]:
    """Make DeepSpeed's pipeline modules start their stages at given layers in the block.

    DeepSpeed can balance only the number of layers or of parameters, which ignores the head's cost.
    """
    return replaced(deepspeed.runtime.utils, partition_balanced=lambda weights, num_parts: bounds)


def tie_weights(
    module: PipelineModule, weights: Sequence[nn.Parameter], group: ProcessGroup | None
) -> None:
    """Make DeepSpeed's pipeline sum the gradients of tied weights over a group.

    DeepSpeed can tie only whole layers that are built from one specification; the embedding and the
    head are different layers that share a tensor.
    """
    module.get_tied_weights_and_groups = lambda: [(weight, group) for weight in weights]


def skip_reports(engine: Any) -> None:
    """Make DeepSpeed's pipeline engine leave out what it measures in every step for its own log.

    Its mean loss takes two collectives and a copy for which the host waits; of its clock it keeps
    two events per step for as long as the run lasts.
    """
    engine._aggregate_total_loss = lambda: None
    engine.timers = NoopTimer()


@contextmanager
def one_optimizer_of_zero1() -> Iterator[None]:
    """Make DeepSpeed take for float32 weights under ZeRO 1 its optimizer for bfloat16 in the block.

    Only that one keeps a flat sum of gradients over a step's passes, and knows its parts.
    """
    choose, configure = (
        getattr(DeepSpeedEngine, name)
        for name in ("_do_optimizer_sanity_check", "_configure_bf16_optimizer")
    )

    def chosen(engine: Any, optimizer: Any) -> Any:
        choice = choose(engine, optimizer)
        is_float32 = engine.get_data_types() == (torch.float32, torch.float32)
        is_zero1 = engine.zero_optimization_stage() == 1 and not engine.zero_cpu_offload()
        return BFLOAT16 if is_float32 and is_zero1 else choice

    def configured(engine: Any, optimizer: Any) -> Any:
        settings = {"enabled": True, "immediate_grad_update": True}  # it accepts no others
        config = engine._config.bfloat16_config.model_copy(update=settings)
        with replaced(engine._config, bfloat16_config=config, grad_accum_dtype="fp32"):
            return configure(engine, optimizer)

    with replaced(
        DeepSpeedEngine, _do_optimizer_sanity_check=chosen, _configure_bf16_optimizer=configured
    ):
        yield


def saving_through(
    engine: Any, checkpoint_engine: CheckpointEngine
) -> AbstractContextManager[None]:
    """Make a DeepSpeed engine save through `checkpoint_engine` in the block.

    DeepSpeed can use only its own checkpoint engines, and copies programs beside the files.
    """
    return replaced(
        engine,
        checkpoint_engine=checkpoint_engine,
        _copy_recovery_script=lambda folder: None,  # launch/export.py replaces them
    )


def conversion_done_by(do_all: DoAll) -> AbstractContextManager[None]:
    """Make DeepSpeed's universal-checkpoint converter run its tasks through `do_all` in the block.

    DeepSpeed shows a progress bar and forks; a fork of a process with CUDA's or gloo's threads may
    hang.
    """
    return replaced(
        ds_to_universal,
        _do_parallel_work=lambda work, items, _: list(do_all(work, list(items))),
    )


def groups_with_timeout(timeout_seconds: float) -> AbstractContextManager[None]:
    """Make torch give new process groups a timeout in the block, unless the caller gives one.

    DeepSpeed and megatron-core create groups without a timeout. torch's own is half an hour for a
    group with two backends: collectives of a dead run would hang that long.
    """
    timeout = timedelta(seconds=timeout_seconds)
    return replaced(distributed_c10d, default_pg_timeout=timeout, default_pg_nccl_timeout=timeout)
