"""One state passed from layout to layout: each loads the checkpoint of the previous one.

The state is gathered through DeepSpeed's own interface and tensor-parallel collectives, which the
code under test uses neither for loading nor for checking.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.checkpoint.reshard import load_resharded
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import original_name, split_dimension
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.layout.collectives import gather_everywhere
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.state.consolidate import MOMENTS, WEIGHTS
from ernie_vilg.parallel.state.gather import gather_to_leader
from ernie_vilg.runs.phases import Phases
from ernie_vilg.runs.run_folder import RunFolder
from tests.parallel.parity import MODEL, Row, Variant, config_of, micro_batches

STEPS_TAKEN = 2
LEARNING_RATE = 1e-3
EMA_DECAY = 0.9
SMALL = replace(MODEL, num_layers=2, tied_embeddings=True)
"""A small model: the conversion takes time proportional to the number of parameters."""
WHOLE = Variant(reconstructor="end_to_end", extra="tied embeddings").model
"""The model with all optional parts."""


@dataclass(frozen=True, kw_only=True)
class Hop:
    """A layout that loads a state and saves it."""

    name: str
    """Name of its run folder."""
    source: str | None = None
    """Name of the hop whose checkpoint it loads; None: it trains `STEPS_TAKEN` steps instead."""
    tensor: int = 1
    pipeline: int = 1
    zero: int = 1
    precision: torch.dtype = torch.float32
    ema_decay: float = EMA_DECAY
    offload: bool = False
    has_groups: bool = False
    model: ModelConfig = SMALL
    seed: int = 0
    """Seed of the fresh weights, which those of a source replace."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The state and the next step of a hop, on the leader."""

    state: dict[str, Tensor]
    """Whole weights, moments and averages, float32; by "state of parameter"."""
    model: dict[str, Tensor]
    """Weights that the model computes with, by name, with the last stage's copies of tied ones."""
    steps: set[float]
    """Counts of updates in AdamW on all ranks."""
    counters: tuple[int, int]
    """Counts of steps and samples in DeepSpeed."""
    next_losses: list[float]
    """Losses of the next step."""


def take_hops(launch: Launch, folder: str, hops: Sequence[Hop]) -> list[Seen] | None:
    """Take hops of layouts with this world size; the leader returns a result for each."""
    device = start_processes(launch, timeout_seconds=60)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    seen = []
    for hop in hops:
        groups = build_groups(hop.tensor, hop.pipeline, device)
        seen.append(take_hop(Path(folder), hop, groups))
        gc.collect()  # DeepSpeed's engines are cycles of references
    return seen if launch.rank == 0 else None


def hop_config(hop: Hop, data_size: int) -> PretrainConfig:
    """Return the run of a hop."""
    variant = Variant(zero=hop.zero, offload=hop.offload, has_groups=hop.has_groups)
    config = config_of(
        Row(tensor=hop.tensor, pipeline=hop.pipeline, data=data_size, variant=variant)
    )
    return replace(
        config,
        model=hop.model,
        initialize_from="unused" if hop.model.lora.rank else None,
        training=replace(config.training, ema_decay=hop.ema_decay, seed=hop.seed),
    )


def start_hop(hop: Hop, groups: Groups) -> tuple[Engine, PretrainConfig]:
    """Return a fresh engine."""
    config = hop_config(hop, groups.data_size)
    return build_engine(config, groups, hop.precision), config


def save(engine: Engine, config: PretrainConfig, run_dir: Path) -> None:
    """Commit a checkpoint of `STEPS_TAKEN` steps."""
    checkpoints = Checkpoints(
        run_dir,
        CheckpointConfig(every=1),
        RunFacts(
            identity_at=lambda step: {"model": asdict(config.model)},
            data_at=lambda step: {},
            layout={},
            config_hash="",
        ),
        Phases(),
    )
    checkpoints.save(engine, STEPS_TAKEN)
    checkpoints.finish()


def load(engine: Engine, folder: Path, hop: Hop) -> None:
    """Load the checkpoint of the hop's source."""
    assert hop.source is not None
    source = folder / hop.source
    load_resharded(engine, RunFolder(source).checkpoint(STEPS_TAKEN), source)


def take_hop(folder: Path, hop: Hop, groups: Groups) -> Seen:
    """Train or load, gather the state, save, take one more step; all ranks must call."""
    engine, config = start_hop(hop, groups)
    if hop.source is None:
        for step in range(STEPS_TAKEN):
            engine.train_batch(micro_batches(groups, config, step), LEARNING_RATE)
    else:
        load(engine, folder, hop)
    state, model = gather_state(engine, config), gather_to_leader(engine) or {}
    steps = {
        float(each["step"]) for rank in gather_everywhere(_adam_steps(engine)) for each in rank
    }
    deepspeed_engine = engine.deepspeed_engine
    counters = (deepspeed_engine.global_steps, deepspeed_engine.global_samples)
    save(engine, config, folder / hop.name)
    losses = engine.train_batch(micro_batches(groups, config, STEPS_TAKEN), LEARNING_RATE)
    return Seen(
        state=state,
        model=model,
        steps=steps,
        counters=counters,
        next_losses=engine.mean_losses(losses).tolist()[:4],
    )


def _adam_steps(engine: Engine) -> list[dict[str, float]]:
    states = engine.deepspeed_engine.optimizer.optimizer.state.values()
    return [{"step": float(state["step"])} for state in states]


def gather_state(engine: Engine, config: PretrainConfig) -> dict[str, Tensor]:
    """Gather the whole weights, moments and averages; all ranks must call."""
    groups, zero = engine.groups, engine.deepspeed_engine.optimizer
    if hasattr(zero, "_hp_optimizer_states_linked"):
        # ZeRO 1 and 2 link the states after the first group's update and miss those of the others.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    average = (WEIGHT_AVERAGE,) if config.training.ema_decay else ()
    mine: dict[str, Tensor] = {}
    for name, parameter in engine.local_parameters():
        if not parameter.requires_grad:  # `gather_to_leader` has its value
            continue
        for state in (WEIGHTS, *MOMENTS, *average):
            if state == WEIGHTS:
                share = safe_get_full_fp32_param(parameter)
            else:
                share = safe_get_full_optimizer_state(parameter, state)
            dimension = split_dimension(name)
            if groups.tensor_size > 1 and dimension is not None:
                shares = [torch.empty_like(share) for _ in range(groups.tensor_size)]
                dist.all_gather(shares, share.contiguous(), group=groups.tensor_group)
                share = torch.cat(shares, dim=dimension)
            mine[f"{state} of {original_name(name, config.model)}"] = share.clone()
    whole: dict[str, Tensor] = {}
    for stage in gather_everywhere(mine):
        whole.update(stage)
    return whole


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names under which two collections of tensors differ."""
    assert set(one) == set(other)
    return [name for name, value in one.items() if not value.equal(other[name])]
