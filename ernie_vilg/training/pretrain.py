"""One pretraining run, from settings to the last checkpoint.

Source: ours.
"""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.folder import checkpoint_path
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.shared_memory import check_shared_memory, remove_leftovers, step_bytes
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.data.batches.workers import start_worker_server
from ernie_vilg.data.records.damage_log import DamageCount
from ernie_vilg.data.records.ledger import Ledger, ledger_folder
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.precision import machine_precision
from ernie_vilg.parallel.layout.collectives import (
    LEADER,
    barrier,
    gather_everywhere,
    group_with_timeout,
)
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.planning.forecast import forecast
from ernie_vilg.planning.history import write_plan
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.resilience.watchdog import REPORTS_FOLDER, Watchdog
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.run_folder import write_run
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.runs.settings_drift import Change, check_drift, record_changes
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.tracking.tracker import RunTracker, SilentTracker, Tracker
from ernie_vilg.training.callbacks import Observe, Observer, Observers
from ernie_vilg.training.data_order import token_sequence
from ernie_vilg.training.guards import Guard, skip_writer
from ernie_vilg.training.lineage import Lineage, check_lineage
from ernie_vilg.training.loop import Trainer
from ernie_vilg.training.metrics import Metrics
from ernie_vilg.training.replica_batches import agreed_quarantine, reads_pixels, replica_batches
from ernie_vilg.training.run_identity import identity, layout_identity
from ernie_vilg.training.truncation import check_truncation
from ernie_vilg.vqgan.weights import load_image_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run gets from whoever starts it."""

    draw_samples: Observe
    """Draws and captions with the weights of a step."""
    measure_health: Observe
    """Holds both directions of the model against each other."""
    lock: RunLock | None = None
    """On the run folder; the run stops when it is lost."""
    phases: Phases = field(default_factory=Phases)
    """Hears what this rank is doing; the fire drill has its own."""


def pretrain(config: PretrainConfig, launch: Launch, surroundings: Surroundings) -> ExitCode:
    """Train, or go on training, until `training.steps`; every rank calls it.

    Args:
        config: the run.
        launch: this process's place among the others.
        surroundings: what the run does not have of itself.

    Returns:
        `DONE` when all steps are made; else how it was stopped.

    Raises:
        InputError: shards and tokenizers do not fit each other or the run's checkpoints, too many
            captions would be cut, or a setting changed that must not.
    """
    run_dir = Path(config.run_dir)
    with Stopping(config.stopping, run_dir, launch, lock=surroundings.lock) as stopping:
        surroundings.phases.enter(Phase.START, 0)
        if launch.local_rank == 0:
            for path in remove_leftovers():
                logger.info("removed %s, which a killed process had left", path)
        start_worker_server(config.data.loader)
        lineage = check_lineage(config.data, config.model)
        config = with_decoder(config, lineage.image_tokenizer_config)
        changes = check_drift(run_dir, config)
        truncation = check_truncation(config, lineage)
        groups = _start(config, launch)
        if groups.rank == LEADER:
            for name, sentence in truncation.items():
                logger.info("data set %s: %s", name, sentence)
        with ExitStack() as parts:
            trainer, first_step = _build(
                config, groups, lineage, changes, surroundings, stopping, parts
            )
            step, reason = trainer.train(first_step)
        barrier()  # nothing is left to do on any rank
        exit_code = ExitCode.DONE
        if reason:
            exit_code = stopping.leave(reason, step, checkpoint_path(run_dir, step))
        barrier()  # launchers end all ranks after the first
        dist.destroy_process_group()
    return exit_code


def with_decoder(config: PretrainConfig, tokenizer: ImageTokenizerConfig) -> PretrainConfig:
    """Return the run whose reconstructor has the image tokenizer's decoder, if it needs one."""
    reconstructor = config.model.reconstructor
    if not reconstructor.is_end_to_end:
        return config
    reconstructor = replace(reconstructor, decoder=tokenizer)
    return replace(config, model=replace(config.model, reconstructor=reconstructor))


def _start(config: PretrainConfig, launch: Launch) -> Groups:
    """Join the other ranks."""
    layout, cluster = config.parallelism, config.cluster
    if layout.tensor_parallel_size > 1:
        # One queue into the GPU, so that collectives start before the products that hide them,
        # as megatron-core asks; read when the GPU is first touched.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = start_processes(
        launch,
        cluster.collective_timeout_seconds,
        rendezvous_timeout_seconds=cluster.rendezvous_timeout_seconds,
        dump_folder=Path(config.run_dir) / REPORTS_FOLDER,
    )
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)  # resumed runs are equal bit for bit
        # By default that also fills every new tensor, DeepSpeed's buffers of 2 GB included.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)


def _build(
    config: PretrainConfig,
    groups: Groups,
    lineage: Lineage,
    changes: list[Change],
    surroundings: Surroundings,
    stopping: Stopping,
    parts: ExitStack,
) -> tuple[Trainer, int]:
    """Return the run's parts, restored, and the number of steps taken; all ranks must call.

    What must be closed is left to `parts`.
    """
    run_dir, phases = Path(config.run_dir), surroundings.phases
    precision = machine_precision(config.precision, groups.device)
    if groups.rank == LEADER:
        _log_start(config, groups, precision)
    communication = parts.enter_context(Communication(groups))
    watchdog = parts.enter_context(
        Watchdog(config.watch, phases, groups, run_dir=run_dir, communication=communication)
    )
    quarantine = agreed_quarantine(run_dir, lineage.data_sets)
    sequence = token_sequence(config, lineage, quarantine, with_pixels=reads_pixels(config, groups))
    _check_shared_memory(config, sequence, groups)
    engine = build_engine(config, groups, precision, _decoder_weights(config))
    phases.attach(engine)
    checkpoints = Checkpoints(
        run_dir,
        config.checkpoint,
        identity_at=partial(identity, config, precision, lineage),
        data_at=lambda step: {
            "position": first_position(step + 1, config.parallelism.global_batch_size),
            "quarantine": quarantine.digest(),
        },
        layout=layout_identity(config, groups),
        config_hash=sha256_of_json(asdict(config)),
        phases=phases,
    )
    first_step = checkpoints.restore(engine)
    tracker: Tracker = SilentTracker()
    ledger: Ledger | None = None
    data_metrics: Callable[[], Metrics] = dict
    if groups.rank == LEADER:
        # First: else a kill in between loses them.
        record_changes(run_dir, config, changes, first_step)
        write_run(config)
        _write_plan(config, groups, precision)
        tracker = RunTracker(config, first_step)
        ledger = parts.enter_context(closing(_open_ledger(config, sequence, groups)))
        data_metrics = partial(_data_metrics, DamageCount(ledger_folder(run_dir)), quarantine)
    parts.callback(tracker.close)
    observers = Observers(
        config=config,
        engine=engine,
        observers=(
            Observer(
                every=config.samples.every, phase=Phase.DRAW, observe=surroundings.draw_samples
            ),
            Observer(
                every=config.health.every, phase=Phase.HEALTH, observe=surroundings.measure_health
            ),
        ),
        tracker=tracker,
        phases=phases,
        should_stop=lambda: stopping.is_requested,
        patience=group_with_timeout(config.watch.phase_timeout_seconds),
    )
    writer = skip_writer(
        ledger_folder(run_dir), sequence, engine, config.parallelism.global_batch_size
    )
    guard = Guard(engine, config.guards, writer)
    guard.load_state(checkpoints.restored_state)
    batches = replica_batches(config, sequence, groups, None if writer is None else writer.recent)
    watchdog.reading = lambda: batches.doing
    trainer = Trainer(
        config=config,
        engine=engine,
        batches=parts.enter_context(closing(batches)),
        data_metrics=data_metrics,
        num_samples=sum(source.manifest.num_samples for source in lineage.data_sets),
        checkpoints=checkpoints,
        guard=guard,
        stopping=stopping,
        phases=phases,
        step_times=parts.enter_context(instrument(engine, communication)),
        stragglers=Stragglers(config.watch, groups),
        ledger=ledger,
        tracker=tracker,
        observers=observers,
    )
    return trainer, first_step


def _decoder_weights(config: PretrainConfig) -> dict[str, Tensor] | None:
    reconstructor = config.model.reconstructor
    if not (reconstructor.is_end_to_end and reconstructor.initialize_decoder):
        return None
    tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    return tokenizer.decoder.state_dict()


def _check_shared_memory(config: PretrainConfig, sequence: TokenSequence, groups: Groups) -> None:
    """Check that the data workers of this machine's ranks have room in shared memory."""
    check_shared_memory(
        config.data.loader,
        step_bytes(sequence, config.parallelism.global_batch_size // groups.data_size),
        num_readers=gather_everywhere(socket.gethostname()).count(socket.gethostname()),
    )


def _open_ledger(config: PretrainConfig, sequence: TokenSequence, groups: Groups) -> Ledger:
    return Ledger(
        ledger_folder(Path(config.run_dir)),
        sequence,
        data_parallel_size=groups.data_size,
        micro_batch_size=config.parallelism.micro_batch_size,
    )


def _data_metrics(damage: DamageCount, quarantine: Quarantine) -> Metrics:
    return {
        "lost_samples": float(damage.num_samples()),
        "quarantined_samples": float(len(quarantine.entries)),
    }


def _write_plan(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> None:
    """Write down what is predicted, beside which the run will write what it measures.

    Not on a CPU: there a run measures its resident memory, which no plan predicts, and tracing
    takes as long as a tiny run.
    """
    if groups.device.type == "cpu":
        return
    predicted = forecast(config, groups.world_size, precision)
    write_plan(Path(config.run_dir), groups.world_size, predicted)


def _log_start(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> None:
    logger.info(
        "%.1f M parameters, %s, on %d rank(s): %s; %.2f GFLOP per pair",
        num_parameters(config.model) / 1e6,
        str(precision).removeprefix("torch."),
        groups.world_size,
        config.parallelism.describe(groups.world_size),
        training_flops_per_pair(config.model) / 1e9,
    )
