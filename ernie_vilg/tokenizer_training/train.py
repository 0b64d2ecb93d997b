"""One training run of the image tokenizer, from settings to the last checkpoint.

It is the pretrainer's sibling: loop, checkpoints, guards, records and watch are those of
`ernie_vilg.training`. Its own are the engine, the pictures, the evaluation of reconstructions, and
the weights folder that follows the checkpoints.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841).
"""

import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.checkpoint.committer import RunFacts
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.batches.image_batches import ImageSequence
from ernie_vilg.data.batches.workers import start_worker_server
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.timing.step_times import instrument_methods
from ernie_vilg.resilience.stopping import Stopping
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.profile import StepProfile
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.runs.settings_drift import Change, check_drift
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.tokenizer_training.engine import TokenizerEngine
from ernie_vilg.tokenizer_training.export import write_newest
from ernie_vilg.tokenizer_training.figures import TokenizerFigures
from ernie_vilg.tokenizer_training.pictures import (
    EvaluationPictures,
    PictureBatches,
    image_sequence,
    training_source,
)
from ernie_vilg.tokenizer_training.reconstructions import Reconstructions
from ernie_vilg.training.callbacks import Callbacks
from ernie_vilg.training.guards import RunGuard, skip_writer
from ernie_vilg.training.loop import Trainer
from ernie_vilg.training.rank import Outputs, Rank, connect, open_outputs, train_connected
from ernie_vilg.training.replica_batches import agreed_quarantine
from ernie_vilg.vqgan.losses.perceptual import LPIPS, build_perceptual_distance

logger = logging.getLogger(__name__)

Observed = Callbacks[TrainImageTokenizerConfig, TokenizerEngine]


def train_image_tokenizer(
    config: TrainImageTokenizerConfig,
    launch: Launch,
    manifest: Manifest,
    held_out: Manifest | None = None,
    *,
    lock: RunLock | None = None,
    phases: Phases | None = None,
) -> ExitCode:
    """Train or resume until `training.steps`; every rank calls it.

    Args:
        config: the run.
        launch: this process's rank.
        manifest: manifest of `config.shards`.
        held_out: manifest of `config.reconstructions.shards`, if there are any.
        lock: on the run folder; the run stops when it is lost.
        phases: records this rank's phase.

    Returns:
        `DONE` when all steps are made; else how it was stopped.

    Raises:
        InputError: the shards are damaged, a setting changed that must not, or the run folder
            belongs to another run.
    """
    run_dir, phases = Path(config.run_dir), phases or Phases()
    with Stopping(config.stopping, run_dir, launch, lock=lock) as stopping:
        phases.enter(Phase.START, 0)
        start_worker_server(config.loader)
        changes = check_drift(run_dir, config)
        groups = connect(config, launch)
        build = partial(_build, manifest=manifest, held_out=held_out, changes=changes)
        return train_connected(config, groups, build, stopping=stopping, phases=phases)


def _build(
    rank: Rank[TrainImageTokenizerConfig],
    *,
    manifest: Manifest,
    held_out: Manifest | None,
    changes: Sequence[Change],
) -> tuple[Trainer, int]:
    """Return the restored trainer and the number of steps taken; all ranks must call."""
    config, groups = rank.config, rank.groups
    source = training_source(config, manifest)
    sequence = image_sequence(config, source, agreed_quarantine(rank.run_dir, [source]))
    engine = TokenizerEngine(config, groups, rank.precision)
    if rank.is_leader:
        _log_start(rank, engine, manifest, held_out)
    checkpoints = _checkpoints(rank, sequence)
    first_step = checkpoints.restore(engine)
    outputs = open_outputs(
        rank,
        sequence,
        changes,
        first_step,
        micro_batch_size=config.micro_batch_size(groups.world_size),
    )
    trainer = _trainer(
        rank,
        sequence,
        engine=engine,
        checkpoints=checkpoints,
        outputs=outputs,
        callbacks=_callbacks(rank, sequence, held_out, engine, outputs),
    )
    return trainer, first_step


def _callbacks(
    rank: Rank[TrainImageTokenizerConfig],
    sequence: ImageSequence,
    held_out: Manifest | None,
    engine: TokenizerEngine,
    outputs: Outputs,
) -> Observed:
    """Return the evaluations of the run."""
    config = rank.config
    pictures = EvaluationPictures(config, sequence, held_out)
    rank.parts.callback(pictures.close)
    lpips = _lpips(config, rank.groups.device)
    evaluate = partial(Reconstructions, pictures=pictures, lpips=lpips)
    profile = StepProfile(config.profile, rank.run_dir)
    rank.parts.callback(profile.close)
    return Callbacks(
        config=config,
        engine=engine,
        callbacks=[evaluate(every=config.reconstructions.every), profile],
        last=[evaluate(every=0, once=True)],
        tracker=outputs.tracker,
        phases=rank.phases,
        should_stop=lambda: rank.stopping.is_requested,
        group=rank.phase_group,
    )


def _checkpoints(rank: Rank[TrainImageTokenizerConfig], sequence: ImageSequence) -> Checkpoints:
    config = rank.config
    identity = _identity(config, sequence, rank.precision)
    return Checkpoints(
        rank.run_dir,
        config.checkpoint,
        RunFacts(
            identity_at=lambda step: identity,
            data_at=lambda step: {
                "position": first_position(step + 1, config.batch_sizes),
                "quarantine": sequence.quarantine.digest(),
            },
            layout={},  # every rank holds the whole state, so any number of ranks resumes
            config_hash=sha256_of_json(asdict(config)),
        ),
        rank.phases,
        on_commit=partial(write_newest, rank.run_dir),
    )


def _trainer(
    rank: Rank[TrainImageTokenizerConfig],
    sequence: ImageSequence,
    *,
    engine: TokenizerEngine,
    checkpoints: Checkpoints,
    outputs: Outputs,
    callbacks: Observed,
) -> Trainer:
    """Return the loop over the parts, with its batches and guards; all ranks must call."""
    config, groups = rank.config, rank.groups
    ledger = RunFolder(rank.run_dir).ledger
    writer = skip_writer(ledger, sequence, groups, config.batch_sizes)
    assert writer is not None, "every rank is a replica"
    guard = RunGuard(engine, config.guards, writer)
    guard.load_state(checkpoints.restored_state)
    batches = PictureBatches(config, sequence, groups, writer.recent)
    rank.watchdog.reading = lambda: batches.doing
    times = instrument_methods(
        engine, rank.communication, forward="_forward", backward="_backward", optimizer="_update"
    )
    return Trainer(
        config=config,
        engine=engine,
        figures=TokenizerFigures(config),
        batches=rank.parts.enter_context(closing(batches)),
        data_metrics=outputs.data_metrics,
        num_samples=sequence.sources[0].manifest.num_samples,
        checkpoints=checkpoints,
        guard=guard,
        stopping=rank.stopping,
        phases=rank.phases,
        step_times=rank.parts.enter_context(times),
        stragglers=Stragglers(config.watch, groups, rank.members),
        ledger=outputs.ledger,
        tracker=outputs.tracker,
        callbacks=callbacks,
    )


def _lpips(config: TrainImageTokenizerConfig, device: torch.device) -> LPIPS | None:
    """Return the network of LPIPS, if the loss has it."""
    distance = None
    if config.objective.perceptual.features == "lpips":
        distance = build_perceptual_distance(config.objective.perceptual, device)
    return distance if isinstance(distance, LPIPS) else None


def _identity(
    config: TrainImageTokenizerConfig, sequence: ImageSequence, precision: torch.dtype
) -> dict[str, Any]:
    """Return, as JSON values, what a checkpoint and the run that resumes it must share."""
    return {
        # Equal to the manifest's content: JSON turns tuples into lists.
        "image_tokenizer": json.loads(json.dumps(asdict(config.image_tokenizer))),
        "order": {
            "shards": sequence.sources[0].manifest.digest(),
            "seed": config.training.seed,
            "shuffle_block_shards": config.training.shuffle_block_shards,
            "horizontal_flip": config.training.horizontal_flip,
            "global_batch_size": config.training.global_batch_size,
        },
        "precision": str(precision).removeprefix("torch."),
    }


def _log_start(
    rank: Rank[TrainImageTokenizerConfig],
    engine: TokenizerEngine,
    manifest: Manifest,
    held_out: Manifest | None,
) -> None:
    config, groups = rank.config, rank.groups
    parameters = sum(weight.numel() for weight in engine.tokenizer().parameters())
    logger.info(
        "%.2f M parameters, %s, on %d rank(s), %s: %d pictures of %d pixels to %d x %d of %d codes",
        parameters / 1e6,
        str(rank.precision).removeprefix("torch."),
        groups.world_size,
        _device_name(groups),
        manifest.num_samples,
        config.image_tokenizer.image_size,
        config.image_tokenizer.grid_size,
        config.image_tokenizer.grid_size,
        config.image_tokenizer.codebook_size,
    )
    if held_out is None:
        logger.warning(
            "reconstructions.shards=null: the tokenizer is evaluated on pictures that it is "
            "trained on, and the figures are called trained_on_..."
        )


def _device_name(groups: Groups) -> str:
    if groups.device.type == "cuda":
        return torch.cuda.get_device_name(groups.device)
    return f"CPU with {torch.get_num_threads()} thread(s) each"
