"""The frame of a training run, whatever it trains: one rank's start, watch, records and end."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.run import RunConfig
from ernie_vilg.data.records.damage_log import DamageCount
from ernie_vilg.data.records.ledger import Ledger
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_sequence import SampleSequence
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.collectives import LEADER, barrier, group_with_timeout
from ernie_vilg.parallel.layout.determinism import make_deterministic
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.resilience.members import gather_members
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.watchdog import Watchdog
from ernie_vilg.runs.meter import Metrics
from ernie_vilg.runs.phases import Phases
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.settings_drift import Change, record_changes
from ernie_vilg.tracking.tracker import RunTracker, SilentTracker, Tracker
from ernie_vilg.training.loop import Trainer

Config = TypeVar("Config", bound=RunConfig)

logger = logging.getLogger(__name__)


class Rank(Generic[Config]):
    """One rank of a run, connected to the others and watched."""

    def __init__(
        self,
        config: Config,
        *,
        stopping: Stopping,
        phases: Phases,
        groups: Groups,
        parts: ExitStack,
    ) -> None:
        """Meet the other ranks and start the watch; all ranks must call.

        Args:
            config: the run.
            stopping: requests to stop.
            phases: this rank's phase.
            groups: this rank's position in the layout.
            parts: closes the open parts of the run.
        """
        self.config, self.run_dir = config, Path(config.run_dir)
        self.stopping, self.phases, self.groups, self.parts = stopping, phases, groups, parts
        self.precision = machine_precision(config.precision, groups.device)
        self.communication = parts.enter_context(Communication(groups))
        self.phase_group = group_with_timeout(config.watch.phase_timeout_seconds)
        """All ranks, with the timeout of a phase."""
        self.members = gather_members(groups)
        watchdog = Watchdog(
            config.watch,
            phases,
            rank=groups.rank,
            device=groups.device,
            members=self.members,
            run_dir=self.run_dir,
            communication=self.communication,
        )
        self.watchdog = parts.enter_context(watchdog)

    @property
    def is_leader(self) -> bool:
        """Whether this rank writes the records."""
        return self.groups.rank == LEADER


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Records of a run: the leader writes them, other ranks hold silent ones."""

    tracker: Tracker = field(default_factory=SilentTracker)
    """Metrics and pictures."""
    ledger: Ledger | None = None
    """Positions that each step trained on."""
    data_metrics: Callable[[], Metrics] = dict
    """Figures of damage and quarantine so far."""


def connect(
    config: RunConfig,
    launch: Launch,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
) -> Groups:
    """Connect to the other ranks; return this rank's position.

    Args:
        config: the run.
        launch: this process's rank.
        tensor_parallel_size: number of ranks that share each layer.
        pipeline_parallel_size: number of stages.
    """
    cluster = config.cluster
    device = start_processes(
        launch,
        cluster.collective_timeout_seconds,
        rendezvous_timeout_seconds=cluster.rendezvous_timeout_seconds,
        dump_folder=RunFolder(Path(config.run_dir)).reports,
    )
    make_deterministic(device)
    return build_groups(tensor_parallel_size, pipeline_parallel_size, device)


def train_connected(
    config: Config,
    groups: Groups,
    build: Callable[[Rank[Config]], tuple[Trainer, int]],
    *,
    stopping: Stopping,
    phases: Phases,
) -> ExitCode:
    """Build the run's parts, train, and leave; all ranks must call.

    Args:
        config: the run.
        groups: this rank's position in the layout.
        build: returns the restored trainer and the number of steps taken.
        stopping: requests to stop.
        phases: this rank's phase.

    Returns:
        `DONE` when all steps are made; else how the run was stopped.
    """
    with ExitStack() as parts:
        rank = Rank(config, stopping=stopping, phases=phases, groups=groups, parts=parts)
        trainer, first_step = build(rank)
        step, reason = trainer.train(first_step)
    barrier()  # nothing is left to do on any rank
    exit_code = ExitCode.DONE
    if reason:
        checkpoint = RunFolder(Path(config.run_dir)).checkpoint(step)
        exit_code = stopping.leave(reason, step, checkpoint)
    barrier()  # launchers end all ranks after the first
    dist.destroy_process_group()
    return exit_code


def open_outputs(
    rank: Rank[Any],
    sequence: SampleSequence[Any],
    changes: Sequence[Change],
    first_step: int,
    *,
    micro_batch_size: int,
) -> Outputs:
    """Open the run's records on the leader; the other ranks write none.

    Args:
        rank: this rank.
        sequence: the training sequence.
        changes: settings that changed since the last start.
        first_step: steps taken.
        micro_batch_size: samples per forward pass of a replica.
    """
    if not rank.is_leader:
        return Outputs()
    config, ledger = rank.config, RunFolder(rank.run_dir).ledger
    record_changes(rank.run_dir, config, changes, first_step)  # first: a kill must not lose them
    write_run(config)
    tracker = RunTracker(config, first_step)
    rank.parts.callback(tracker.close)
    steps = Ledger(
        ledger,
        sequence,
        data_parallel_size=rank.groups.data_size,
        micro_batch_size=micro_batch_size,
    )
    return Outputs(
        tracker=tracker,
        ledger=rank.parts.enter_context(closing(steps)),
        data_metrics=partial(_data_metrics, DamageCount(ledger), sequence.quarantine),
    )


def _data_metrics(damage: DamageCount, quarantine: Quarantine) -> Metrics:
    return {
        "damaged_samples": float(damage.num_samples()),
        "quarantined_samples": float(len(quarantine.entries)),
    }
