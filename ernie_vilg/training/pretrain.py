"""One pretraining run, from settings to the last checkpoint."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.shared_memory import check_shared_memory, remove_leftovers, step_bytes
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.batches.workers import start_worker_server
from ernie_vilg.data.records.damage_log import DamageCount
from ernie_vilg.data.records.ledger import Ledger
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.precision import check_fp8, machine_precision
from ernie_vilg.parallel.engine.warm_up import start_compiler, warm_up
from ernie_vilg.parallel.layout.collectives import LEADER, barrier, group_with_timeout
from ernie_vilg.parallel.layout.determinism import make_deterministic
from ernie_vilg.parallel.layout.groups import Groups, build_groups, machine_device, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.planning.forecast import forecast
from ernie_vilg.planning.history import write_plan
from ernie_vilg.resilience.members import gather_members
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.resilience.watchdog import Watchdog
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.runs.settings_drift import Change, check_drift, record_changes
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.tracking.tracker import RunTracker, SilentTracker, Tracker
from ernie_vilg.training.callbacks import Callback, Callbacks
from ernie_vilg.training.data_order import token_sequence
from ernie_vilg.training.guards import RunGuard, skip_writer
from ernie_vilg.training.lineage import Lineage, check_lineage
from ernie_vilg.training.loop import Trainer
from ernie_vilg.training.metrics import Metrics
from ernie_vilg.training.replica_batches import ReplicaBatches, agreed_quarantine, reads_pixels
from ernie_vilg.training.run_identity import identity, layout_identity
from ernie_vilg.training.truncation import check_truncation
from ernie_vilg.vqgan.weights import load_image_tokenizer

logger = logging.getLogger(__name__)


class _Rank:
    """One rank of a run, connected to the others and watched."""

    def __init__(
        self,
        config: PretrainConfig,
        lineage: Lineage,
        *,
        stopping: Stopping,
        phases: Phases,
        groups: Groups,
        parts: ExitStack,
    ) -> None:
        """Meet the other ranks and start the watch; all ranks must call.

        Args:
            config: the run.
            lineage: its data sets and tokenizers.
            stopping: requests to stop.
            phases: this rank's phase.
            groups: this rank's position in the layout.
            parts: closes the open parts of the run.
        """
        self.config, self.lineage, self.run_dir = config, lineage, Path(config.run_dir)
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


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """Records of a run: the leader writes them, other ranks hold silent ones."""

    tracker: Tracker = field(default_factory=SilentTracker)
    """Metrics and pictures."""
    ledger: Ledger | None = None
    """Positions that each step trained on."""
    data_metrics: Callable[[], Metrics] = dict
    """Figures of damage and quarantine so far."""


def pretrain(
    config: PretrainConfig,
    launch: Launch,
    *,
    callbacks: Sequence[Callback] = (),
    lock: RunLock | None = None,
    phases: Phases | None = None,
) -> ExitCode:
    """Train or resume until `training.steps`; every rank calls it.

    Args:
        config: the run.
        launch: this process's rank.
        callbacks: work between two steps, in its order.
        lock: on the run folder; the run stops when it is lost.
        phases: records this rank's phase; the drill passes one that injects faults.

    Returns:
        `DONE` when all steps are made; else how it was stopped.

    Raises:
        InputError: shards and tokenizers do not fit each other or the run's checkpoints, too many
            captions would be cut, a setting changed that must not, or the device lacks the
            precision.
    """
    run_dir, phases = Path(config.run_dir), phases or Phases()
    if config.linear_precision == "fp8":
        check_fp8(machine_device(launch))
    with Stopping(config.stopping, run_dir, launch, lock=lock) as stopping:
        phases.enter(Phase.START, 0)
        if launch.local_rank == 0:
            for path in remove_leftovers():
                logger.info("removed %s, left behind by a killed process", path)
        start_worker_server(config.data.loader)
        lineage = check_lineage(config.data, config.model)
        config = with_decoder(config, lineage.image_tokenizer_config)
        changes = check_drift(run_dir, config)
        truncation = check_truncation(config, lineage)
        groups = _start(config, launch)
        with ExitStack() as parts:
            rank = _Rank(
                config, lineage, stopping=stopping, phases=phases, groups=groups, parts=parts
            )
            if groups.rank == LEADER:
                _log_start(rank, truncation)
            trainer, first_step = _build(rank, changes, callbacks)
            step, reason = trainer.train(first_step)
        barrier()  # nothing is left to do on any rank
        exit_code = ExitCode.DONE
        if reason:
            exit_code = stopping.leave(reason, step, RunFolder(run_dir).checkpoint(step))
        barrier()  # launchers end all ranks after the first
        dist.destroy_process_group()
    return exit_code


def with_decoder(config: PretrainConfig, tokenizer: ImageTokenizerConfig) -> PretrainConfig:
    """Return the run, with the image tokenizer's decoder if its reconstructor needs one."""
    reconstructor = config.model.reconstructor
    if not reconstructor.is_end_to_end:
        return config
    reconstructor = replace(reconstructor, decoder=tokenizer)
    return replace(config, model=replace(config.model, reconstructor=reconstructor))


def options_in_words(config: PretrainConfig) -> str:
    """Return how blocks are computed, if not as usual, to follow the words of a layout."""
    fp8 = ", inner blocks multiply in fp8" if config.linear_precision == "fp8" else ""
    return f"{fp8}, compiled blocks" if config.compile_blocks else fp8


def _start(config: PretrainConfig, launch: Launch) -> Groups:
    """Connect to the other ranks; return this rank's position."""
    layout, cluster = config.parallelism, config.cluster
    device = start_processes(
        launch,
        cluster.collective_timeout_seconds,
        rendezvous_timeout_seconds=cluster.rendezvous_timeout_seconds,
        dump_folder=RunFolder(Path(config.run_dir)).reports,
    )
    make_deterministic(device)
    start_compiler(config, device)
    return build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)


def _build(
    rank: _Rank, changes: list[Change], callbacks: Sequence[Callback]
) -> tuple[Trainer, int]:
    """Return the restored trainer and the number of steps taken; all ranks must call."""
    sequence = _open_sequence(rank)
    engine, checkpoints, first_step = _restore_engine(rank, sequence.quarantine)
    outputs = _open_outputs(rank, sequence, changes, first_step)
    observed = Callbacks(
        config=rank.config,
        engine=engine,
        callbacks=callbacks,
        tracker=outputs.tracker,
        phases=rank.phases,
        should_stop=lambda: rank.stopping.is_requested,
        group=rank.phase_group,
    )
    trainer = _build_trainer(
        rank,
        sequence,
        engine=engine,
        checkpoints=checkpoints,
        outputs=outputs,
        callbacks=observed,
    )
    return trainer, first_step


def _open_sequence(rank: _Rank) -> TokenSequence:
    """Return the training sequence, once its batches are known to fit into shared memory."""
    config, groups = rank.config, rank.groups
    quarantine = agreed_quarantine(rank.run_dir, rank.lineage.data_sets)
    with_pixels = reads_pixels(config, groups)
    sequence = token_sequence(config, rank.lineage, quarantine, with_pixels=with_pixels)
    check_shared_memory(
        config.data.loader,
        step_bytes(sequence, config.parallelism.global_batch_size // groups.data_size),
        num_readers=[member.host for member in rank.members].count(rank.members[groups.rank].host),
    )
    return sequence


def _restore_engine(rank: _Rank, quarantine: Quarantine) -> tuple[Engine, Checkpoints, int]:
    """Return the engine with its newest checkpoint loaded, and the number of steps taken."""
    config, groups = rank.config, rank.groups
    engine = build_engine(config, groups, rank.precision, *_tokenizer_weights(config))
    rank.phases.attach(engine)
    warm_up(engine, rank.phase_group)
    checkpoints = Checkpoints(
        rank.run_dir,
        config.checkpoint,
        RunFacts(
            identity_at=partial(identity, config, rank.precision, rank.lineage),
            data_at=lambda step: {
                "position": first_position(step + 1, config.parallelism.global_batch_size),
                "quarantine": quarantine.digest(),
            },
            layout=layout_identity(config, groups),
            config_hash=sha256_of_json(asdict(config)),
        ),
        rank.phases,
    )
    return engine, checkpoints, checkpoints.restore(engine)


def _open_outputs(
    rank: _Rank, sequence: TokenSequence, changes: list[Change], first_step: int
) -> _Outputs:
    """Open the run's records on the leader; the other ranks write none."""
    config, groups = rank.config, rank.groups
    if groups.rank != LEADER:
        return _Outputs()
    record_changes(rank.run_dir, config, changes, first_step)  # first: a kill must not lose them
    write_run(config)
    _write_plan(config, groups, rank.precision)
    tracker = RunTracker(config, first_step)
    rank.parts.callback(tracker.close)
    ledger = rank.parts.enter_context(closing(_open_ledger(config, sequence, groups)))
    damage = DamageCount(RunFolder(rank.run_dir).ledger)
    data_metrics = partial(_data_metrics, damage, sequence.quarantine)
    return _Outputs(tracker=tracker, ledger=ledger, data_metrics=data_metrics)


def _build_trainer(
    rank: _Rank,
    sequence: TokenSequence,
    *,
    engine: Engine,
    checkpoints: Checkpoints,
    outputs: _Outputs,
    callbacks: Callbacks,
) -> Trainer:
    """Return the loop over the parts, with its batches and guards; all ranks must call."""
    config, groups = rank.config, rank.groups
    ledger = RunFolder(rank.run_dir).ledger
    writer = skip_writer(ledger, sequence, engine, config.parallelism.global_batch_size)
    guard = RunGuard(engine, config.guards, writer)
    guard.load_state(checkpoints.restored_state)
    batches = ReplicaBatches(config, sequence, groups, None if writer is None else writer.recent)
    rank.watchdog.reading = lambda: batches.doing
    return Trainer(
        config=config,
        engine=engine,
        batches=rank.parts.enter_context(closing(batches)),
        data_metrics=outputs.data_metrics,
        num_samples=sum(source.manifest.num_samples for source in rank.lineage.data_sets),
        checkpoints=checkpoints,
        guard=guard,
        stopping=rank.stopping,
        phases=rank.phases,
        step_times=rank.parts.enter_context(instrument(engine, rank.communication)),
        stragglers=Stragglers(config.watch, groups, rank.members),
        ledger=outputs.ledger,
        tracker=outputs.tracker,
        callbacks=callbacks,
    )


def _tokenizer_weights(config: PretrainConfig) -> tuple[dict[str, Tensor] | None, Tensor | None]:
    """Return the image tokenizer's decoder and code vectors, None where fresh weights start."""
    reconstructor = config.model.reconstructor
    with_decoder = reconstructor.is_end_to_end and reconstructor.initialize_decoder
    if not (with_decoder or config.model.codebook_std):
        return None, None
    tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    decoder = tokenizer.decoder.state_dict() if with_decoder else None
    return decoder, tokenizer.code_vectors() if config.model.codebook_std else None


def _open_ledger(config: PretrainConfig, sequence: TokenSequence, groups: Groups) -> Ledger:
    return Ledger(
        RunFolder(Path(config.run_dir)).ledger,
        sequence,
        data_parallel_size=groups.data_size,
        micro_batch_size=config.parallelism.micro_batch_size,
    )


def _data_metrics(damage: DamageCount, quarantine: Quarantine) -> Metrics:
    return {
        "damaged_samples": float(damage.num_samples()),
        "quarantined_samples": float(len(quarantine.entries)),
    }


def _write_plan(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> None:
    """Write the planner's prediction, to which the run adds what it measures.

    Not on a CPU: a run measures its resident memory there, which no plan predicts, and tracing
    takes as long as a tiny run.
    """
    if groups.device.type == "cpu":
        return
    predicted = forecast(config, groups.world_size, precision)
    write_plan(Path(config.run_dir), groups.world_size, predicted)


def _log_start(rank: _Rank, truncation: Mapping[str, str]) -> None:
    config, world_size = rank.config, rank.groups.world_size
    for name, sentence in truncation.items():
        logger.info("data set %s: %s", name, sentence)
    logger.info(
        "%.1f M parameters, %s, on %d rank(s): %s%s; %.2f GFLOP per pair",
        num_parameters(config.model) / 1e6,
        str(rank.precision).removeprefix("torch."),
        world_size,
        config.parallelism.describe(world_size),
        options_in_words(config),
        training_flops_per_pair(config.model) / 1e9,
    )
