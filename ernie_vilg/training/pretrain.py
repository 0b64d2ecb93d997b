"""One pretraining run, from settings to the last checkpoint."""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.checkpoint.reshard import load_resharded
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.shared_memory import check_shared_memory, remove_leftovers, step_bytes
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.batches.workers import start_worker_server
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.parameter_groups import groups_in_words
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.settings import check_fp8
from ernie_vilg.parallel.engine.warm_up import start_compiler, warm_up
from ernie_vilg.parallel.layout.collectives import broadcast_from_leader
from ernie_vilg.parallel.layout.groups import Groups, machine_device
from ernie_vilg.parallel.timing.step_times import instrument
from ernie_vilg.planning.forecast import forecast
from ernie_vilg.planning.history import write_plan
from ernie_vilg.preparation.data_order import token_sequence
from ernie_vilg.preparation.lineage import Lineage, check_lineage, with_decoder
from ernie_vilg.preparation.start_weights import StartWeights, check_start, reading
from ernie_vilg.preparation.trained_parameters import count_trained, trained_in_words
from ernie_vilg.preparation.truncation import check_truncation
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.runs.settings_drift import Change, check_drift
from ernie_vilg.runs.validations import best_checkpoint
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.training.callbacks import NO_CALLBACKS, Callbacks, PretrainCallbacks
from ernie_vilg.training.guards import RunGuard, skip_writer
from ernie_vilg.training.loop import Trainer
from ernie_vilg.training.measured import Measured
from ernie_vilg.training.metrics import PretrainFigures
from ernie_vilg.training.rank import Outputs, Rank, connect, open_outputs, train_connected
from ernie_vilg.training.replica_batches import ReplicaBatches, agreed_quarantine, reads_pixels
from ernie_vilg.training.run_identity import identity, layout_identity
from ernie_vilg.vqgan.weights import load_image_tokenizer

logger = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig,
    launch: Launch,
    *,
    callbacks: PretrainCallbacks = NO_CALLBACKS,
    lock: RunLock | None = None,
    phases: Phases | None = None,
) -> ExitCode:
    """Train or resume until `training.steps`; every rank calls it.

    Args:
        config: the run.
        launch: this process's rank.
        callbacks: work before, between and after the steps.
        lock: on the run folder; the run stops when it is lost.
        phases: records this rank's phase; the drill passes one that injects faults.

    Returns:
        `DONE` when all steps are made; else how it was stopped.

    Raises:
        InputError: shards and tokenizers do not fit each other or the run's checkpoints, too many
            captions would be cut, a setting changed that must not, a pattern of the optimizer's
            groups matches nothing, or the device lacks the precision.
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
        lineage = check_lineage(config.data, config.model, config.validation)
        config = with_decoder(config, lineage.image_tokenizer_config)
        changes = check_drift(run_dir, config)
        truncation = check_truncation(config, lineage)
        parameters = groups_in_words(config.model, config.optimizer)
        trained = trained_in_words(config, count_trained(config))
        start = check_start(config, lineage) if launch.is_leader else None
        groups = _connect(config, launch)

        def build(rank: Rank[PretrainConfig]) -> tuple[Trainer, int]:
            if rank.is_leader:
                _log_start(rank, truncation, parameters, trained)
            origin = broadcast_from_leader(start)
            return _build(rank, lineage, origin, changes, callbacks)

        return train_connected(config, groups, build, stopping=stopping, phases=phases)


def _connect(config: PretrainConfig, launch: Launch) -> Groups:
    """Connect to the other ranks; return this rank's position."""
    layout = config.parallelism
    groups = connect(
        config,
        launch,
        tensor_parallel_size=layout.tensor_parallel_size,
        pipeline_parallel_size=layout.pipeline_parallel_size,
    )
    start_compiler(config, groups.device)
    return groups


def _build(
    rank: Rank[PretrainConfig],
    lineage: Lineage,
    start: StartWeights | None,
    changes: list[Change],
    callbacks: PretrainCallbacks,
) -> tuple[Trainer, int]:
    """Return the restored trainer and the number of steps taken; all ranks must call."""
    sequence = _open_sequence(rank, lineage)
    engine, checkpoints, first_step = _restore_engine(rank, lineage, start, sequence.quarantine)
    outputs = open_outputs(
        rank,
        sequence,
        changes,
        first_step,
        micro_batch_size=rank.config.parallelism.micro_batch_size,
    )
    if rank.is_leader:
        _write_plan(rank.config, rank.groups, rank.precision)
    observed = Callbacks(
        config=rank.config,
        engine=engine,
        first=callbacks.first,
        callbacks=callbacks.between,
        last=callbacks.last,
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


def _open_sequence(rank: Rank[PretrainConfig], lineage: Lineage) -> TokenSequence:
    """Return the training sequence, once its batches are known to fit into shared memory."""
    config, groups = rank.config, rank.groups
    quarantine = agreed_quarantine(rank.run_dir, lineage.data_sets)
    with_pixels = reads_pixels(config, groups)
    sequence = token_sequence(config, lineage, quarantine, with_pixels=with_pixels)
    check_shared_memory(
        config.data.loader,
        step_bytes(sequence, config.parallelism.global_batch_size // groups.data_size),
        num_readers=[member.host for member in rank.members].count(rank.members[groups.rank].host),
    )
    return sequence


def _restore_engine(
    rank: Rank[PretrainConfig],
    lineage: Lineage,
    start: StartWeights | None,
    quarantine: Quarantine,
) -> tuple[Engine, Checkpoints, int]:
    """Return the engine with its newest checkpoint loaded, and the number of steps taken."""
    config, groups = rank.config, rank.groups
    of_tokenizer = (None, None) if start is not None else _tokenizer_weights(config)
    with reading(start, rank.run_dir, is_leader=rank.is_leader) as read:
        engine = build_engine(config, groups, rank.precision, *of_tokenizer, read)
    rank.phases.attach(engine)
    warm_up(engine, rank.phase_group)
    checkpoints = Checkpoints(
        rank.run_dir,
        config.checkpoint,
        RunFacts(
            identity_at=partial(
                identity,
                config,
                rank.precision,
                lineage,
                start=None if start is None else start.record(),
            ),
            data_at=lambda step: {
                "position": first_position(step + 1, config.batch_sizes),
                "quarantine": quarantine.digest(),
            },
            layout=layout_identity(config, groups),
            config_hash=sha256_of_json(asdict(config)),
        ),
        rank.phases,
        reshard=load_resharded,
        best_of=partial(best_checkpoint, RunFolder(rank.run_dir), config.validation.best),
    )
    return engine, checkpoints, checkpoints.restore(engine)


def _build_trainer(
    rank: Rank[PretrainConfig],
    sequence: TokenSequence,
    *,
    engine: Engine,
    checkpoints: Checkpoints,
    outputs: Outputs,
    callbacks: Callbacks[PretrainConfig, Engine],
) -> Trainer:
    """Return the loop over the parts, with its batches and guards; all ranks must call."""
    config, groups = rank.config, rank.groups
    ledger = RunFolder(rank.run_dir).ledger
    writer = skip_writer(ledger, sequence, groups, config.batch_sizes)
    changes = [change.step for change in config.data.mixture_changes]
    guard = RunGuard(engine, config.guards, writer, planned_changes=changes)
    guard.load_state(checkpoints.restored_state)
    batches = ReplicaBatches(config, sequence, groups, None if writer is None else writer.recent)
    rank.watchdog.reading = lambda: batches.doing
    return Trainer(
        config=config,
        engine=engine,
        figures=PretrainFigures(config),
        batches=rank.parts.enter_context(closing(batches)),
        data_metrics=outputs.data_metrics,
        num_samples=sum(source.manifest.num_samples for source in sequence.sources),
        checkpoints=checkpoints,
        guard=guard,
        stopping=rank.stopping,
        phases=rank.phases,
        step_times=rank.parts.enter_context(instrument(engine, rank.communication)),
        stragglers=Stragglers(config.watch, groups, rank.members),
        ledger=outputs.ledger,
        tracker=outputs.tracker,
        callbacks=callbacks,
        record=Measured(config, engine),
    )


def _tokenizer_weights(config: PretrainConfig) -> tuple[dict[str, Tensor] | None, Tensor | None]:
    """Return the image tokenizer's decoder and code vectors, None where fresh weights start."""
    reconstructor = config.model.reconstructor
    with_decoder = reconstructor.is_end_to_end and reconstructor.initialize_decoder
    if not (with_decoder or config.model.codebook_std):
        return None, None
    tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    decoder = tokenizer.decoder.state_dict() if with_decoder else None
    codebook = tokenizer.quantizer.code_vectors().detach() if config.model.codebook_std else None
    return decoder, codebook


def _write_plan(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> None:
    """Write the planner's prediction, to which the run adds what it measures.

    Not on a CPU: a run measures its resident memory there, which no plan predicts, and tracing
    takes as long as a tiny run.
    """
    if groups.device.type == "cpu":
        return
    predicted = forecast(config, groups.world_size, precision)
    write_plan(Path(config.run_dir), groups.world_size, predicted)


def _log_start(
    rank: Rank[PretrainConfig], truncation: Mapping[str, str], parameters: str, trained: str
) -> None:
    config, world_size = rank.config, rank.groups.world_size
    for name, sentence in truncation.items():
        logger.info("data set %s: %s", name, sentence)
    logger.info(
        "%.1f M parameters%s, %s, on %d rank(s): %s%s; %.2f GFLOP per pair",
        num_parameters(config.model) / 1e6,
        f" (trained: {trained})" if trained else "",
        str(rank.precision).removeprefix("torch."),
        world_size,
        config.parallelism.describe(world_size),
        config.options_in_words(),
        training_flops_per_pair(config.model) / 1e9,
    )
    logger.info("optimizer: %s", parameters)
