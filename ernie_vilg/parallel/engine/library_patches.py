"""All changes of library code: what each library does, and what is done about it.

The versions are those of constraints.txt: DeepSpeed 0.19.8, megatron-core 0.16.1, torch 2.13. For
each patch, tests/parallel/engine/test_library_patches.py shows that the library still needs it; the
test fails with "remove this patch" once it does not. Three changes stand elsewhere. The planner's
stand-in for torch's compiler (`launch.support.no_compiler`) comes before any import of DeepSpeed;
what makes up for DeepSpeed's optimizers is in `zero_shards`; and `tensor_parallel` overrides a
method in subclasses of megatron-core's layers.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import deepspeed.runtime.utils
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import nn
from torch.distributed import ProcessGroup

DoAll = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Applies a function to every item, in any order and process, and gives the results in order."""


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a library's module, class or object while the block runs."""
    own = vars(owner)  # descriptors as they are: getattr would bind those of C++ types
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
    """Keep DeepSpeed from its own collectives on CPUs.

    It compiles them at the first start, which needs g++ and half a minute; gloo needs neither.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def silence_deepspeed() -> None:
    """Drop DeepSpeed's notes about what this project does on purpose."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # Its note on subclasses of AdamW; tests/parallel covers the one that keeps an average.
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    # torch renamed the collectives that DeepSpeed calls; both names work.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def stages_starting_at(bounds: list[int]) -> AbstractContextManager[None]:
    """Let DeepSpeed's pipeline modules start their stages at given layers.

    It balances numbers of layers or of parameters only, and neither counts the head's cost.
    """
    return replaced(deepspeed.runtime.utils, partition_balanced=lambda weights, num_parts: bounds)


def tie_weights(
    module: PipelineModule, weights: Sequence[nn.Parameter], group: ProcessGroup | None
) -> None:
    """Let DeepSpeed's pipeline sum the gradients of tied weights over a group.

    It ties whole layers that are built from one specification; the embedding and the head are
    different layers that share a tensor.
    """
    module.get_tied_weights_and_groups = lambda: [(weight, group) for weight in weights]


def saving_through(
    engine: Any, checkpoint_engine: CheckpointEngine
) -> AbstractContextManager[None]:
    """Let a DeepSpeed engine hand its state to `checkpoint_engine`, and write no file itself.

    It chooses among its own checkpoint engines only, and copies programs beside the files.
    """
    return replaced(
        engine,
        checkpoint_engine=checkpoint_engine,
        _copy_recovery_script=lambda folder: None,  # launch/export.py does what they would
    )


def conversion_done_by(do_all: DoAll) -> AbstractContextManager[None]:
    """Let DeepSpeed's universal-checkpoint converter do its work through `do_all`.

    It shows a progress bar, and forks; a fork of a process with threads of CUDA and gloo may hang.
    """
    return replaced(
        ds_to_universal,
        _do_parallel_work=lambda work, items, _: list(do_all(work, list(items))),
    )


def allocate_on_cpu_without_gpu() -> None:
    """Let megatron-core run without a GPU.

    With sequence parallelism it allocates on `torch.cuda.current_device()`, on a CPU too.
    """
    if not torch.cuda.is_available():
        torch.cuda.current_device = _cpu_device  # type: ignore[assignment]


def _cpu_device() -> torch.device:
    return torch.device("cpu")
