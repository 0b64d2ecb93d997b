"""The dry run: sizes, work, messages, data and DeepSpeed settings of a run, without starting it.

Every stage of the layout is built on the meta device, which takes no memory, no process group and
no GPU. The ranks are assumed to be GPUs: precision=auto is bf16.

Source: the bytes per parameter are those of DeepSpeed 0.19 (arXiv:1910.02054).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.sequence.mixture import MixtureOrder
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.errors import InputError
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.flops import training_flops_per_pair, training_flops_per_token
from ernie_vilg.model.parameter_groups import groups_in_words
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.parallel.engine.settings import EngineSettings, deepspeed_config, machine_precision
from ernie_vilg.planning.collectives import collective_lines
from ernie_vilg.planning.forecast import Forecast, forecast
from ernie_vilg.planning.layout_rank import rank_of_layout
from ernie_vilg.planning.report import adapter_note
from ernie_vilg.planning.stage_shards import StageShard, stage_shards
from ernie_vilg.preparation.data_order import mixture_segments
from ernie_vilg.preparation.lineage import Lineage, check_lineage, with_decoder
from ernie_vilg.preparation.start_weights import check_start
from ernie_vilg.preparation.trained_parameters import count_trained, trained_in_words
from ernie_vilg.preparation.truncation import check_truncation, held_out_name
from ernie_vilg.system.progress import duration
from ernie_vilg.vqgan.weights import load_image_tokenizer

_COLUMNS = (
    "stage",
    "ranks",
    "layers",
    "parameters",
    "FLOPs",
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "buffers",
    "on device",
    "on host",
)
_LONG_SECONDS = 36_000
"""Seconds above which a whole run is given in hours."""
_TABLE_NOTE = (
    "Parameters and bytes are per rank; layer 0 is the embedding, the last the head.",
    "Bytes are those at the peak of a step; activations may be freed by then.",
    "Buffers are DeepSpeed's, and memory lost to fragmentation.",
)


def dry_run(config: PretrainConfig, world_size: int) -> str:
    """Describe a run for people.

    Args:
        config: the run.
        world_size: number of ranks.

    Raises:
        InputError: the settings are not legal for this number of ranks, shards, tokenizers and
            model do not fit each other, or too many captions would be cut. Missing folders are
            listed, and are no error unless the model's shape depends on one.
    """
    config, data = _check_data(config)
    trained = trained_in_words(config, count_trained(config))
    precision = machine_precision(config.precision, torch.device("cuda"))
    stages = stage_shards(config.model, config.parallelism)
    settings = EngineSettings(
        run=config,
        precision=precision,
        num_micro_batches=config.parallelism.num_micro_batches(world_size),
    )
    predicted = forecast(config, world_size, precision)
    totals = list(_totals(config, settings.num_micro_batches, stages))
    if trained:
        totals.append(("trained", trained))
    sections = [
        [_layout_line(config, world_size, precision)],
        [*_stage_table(config, world_size, predicted, stages), *_TABLE_NOTE],
        *_on_gpu(config, world_size, precision, predicted),
        collective_lines(config, world_size, precision),
        [f"{name:<17}{value}" for name, value in totals],
        data,
        [
            "DeepSpeed would get (pin_memory is this machine's):"
            if config.parallelism.offload_optimizer
            else "DeepSpeed would get:",
            json.dumps(deepspeed_config(settings), indent=2),
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _layout_line(config: PretrainConfig, world_size: int, precision: torch.dtype) -> str:
    name = str(precision).removeprefix("torch.")
    assumed = " (precision=auto, GPUs assumed)" if config.precision == "auto" else ""
    layout, options = config.parallelism.describe(world_size), config.options_in_words()
    return f"{config.run_dir} on {world_size} rank(s): {layout}, {name}{assumed}{options}"


def _stage_table(
    config: PretrainConfig,
    world_size: int,
    predicted: Forecast,
    stages: Sequence[StageShard],
) -> list[str]:
    num_ranks = world_size // config.parallelism.pipeline_parallel_size
    flops = sum(stage.flops for stage in stages)
    rows = []
    for index, (stage, need) in enumerate(zip(stages, predicted.memory, strict=True)):
        parts = (
            need.weights,
            need.gradients,
            need.optimizer,
            need.activations + need.logits,
            need.workspace + need.fragmentation,
            need.total,
            need.host,
        )
        rows.append(
            (
                str(index),
                _span(index * num_ranks, num_ranks),
                _span(stage.layers.start, len(stage.layers)),
                f"{stage.num_parameters / 1e6:,.1f} M",
                f"{100 * stage.flops / flops:.1f} %",
                *map(_gigabytes, parts),
            )
        )
    return list(_aligned([_COLUMNS, *rows]))


def _on_gpu(
    config: PretrainConfig, world_size: int, precision: torch.dtype, predicted: Forecast
) -> Iterator[list[str]]:
    """Yield predicted time, check of memory and rank of the layout, if the kind of GPU is set."""
    if config.gpu is None or predicted.step is None:
        return
    step = predicted.step
    parts = sorted(asdict(step).items(), key=lambda part: -part[1])
    words = ", ".join(f"{name} {seconds / step.total:.0%}" for name, seconds in parts[:4])
    seconds = config.training.steps * step.total
    whole = f"{seconds / 3600:,.0f} hours" if seconds > _LONG_SECONDS else duration(seconds)
    yield [
        f"predicted on {config.gpu.name}: {step.total:#.3g} s per step ({words}), "
        f"{whole} for {config.training.steps:,} steps",
        predicted.excess or "memory is enough",
        *adapter_note(config),
        *_rank_line(config, world_size, precision),
    ]


def _rank_line(config: PretrainConfig, world_size: int, precision: torch.dtype) -> list[str]:
    """Return a line about the layout's rank, if some other layout is possible."""
    rank = rank_of_layout(config, world_size, precision)
    return [] if rank is None or not rank.num_legal else [rank.words(world_size)]


def _totals(
    config: PretrainConfig, num_micro_batches: int, stages: Sequence[StageShard]
) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each figure of the whole run."""
    model, steps = config.model, config.training.steps
    pairs = config.parallelism.global_batch_size
    per_pair = training_flops_per_pair(model)
    yield "parameters", f"{num_parameters(model):,}"
    yield "optimizer", groups_in_words(model, config.optimizer)
    yield "FLOPs per token", f"{training_flops_per_token(model):.3e}, forward and backward"
    yield "FLOPs per pair", f"{per_pair:.3e}, {len(Direction)} x {model.seq_length} tokens"
    yield "step", f"{pairs:,} pairs, {pairs * len(Direction) * model.seq_length:,} tokens"
    yield "micro-batches", f"{num_micro_batches} per step and replica"
    if warmup := config.batch_sizes.warmup:
        stages_in_words = [f"{each.steps:,} of {each.global_batch_size:,}" for each in warmup]
        yield "batch-size warm-up", f"steps of so many pairs: {', '.join(stages_in_words)}"
    run_pairs = first_position(steps + 1, config.batch_sizes)
    yield "run", f"{steps:,} steps, {run_pairs:,} pairs, {float(run_pairs * per_pair):.3e} FLOPs"
    if len(stages) > 1:
        bubble = (len(stages) - 1) / (num_micro_batches + len(stages) - 1)
        costs = [stage.flops for stage in stages]
        excess = max(costs) * len(costs) / sum(costs) - 1
        yield "pipeline bubble", f"{100 * bubble:.1f} % of the time, if all stages were equal"
        yield "slowest stage", f"{100 * excess:.1f} % above the mean"


def _check_data(config: PretrainConfig) -> tuple[PretrainConfig, list[str]]:
    """Check the data and the tokenizers that exist.

    Returns:
        the run with the decoder that its reconstructor needs, and lines about the data.
    """
    missing = config.missing_folders()
    lines = [
        f"  {name}={folder} is missing: create it before the run"
        for name, folder in missing.items()
    ]
    if any(name.startswith(("data.", "validation.")) for name in missing):
        return _with_known_decoder(config), ["data: not checked, since", *lines]
    lineage = check_lineage(config.data, config.model, config.validation)
    found = ["data, of these tokenizers:", *_data_set_lines(config, lineage)]
    config = with_decoder(config, lineage.image_tokenizer_config)
    start = check_start(config, lineage)
    if start is not None:
        lines = [*lines, f"first weights: step {start.step} of {start.folder}"]
    return config, [*found, *lines]


def _data_set_lines(config: PretrainConfig, lineage: Lineage) -> Iterator[str]:
    """Yield each data set's size, how often the run sees it, and its truncated captions."""
    truncation = check_truncation(config, lineage)
    segments = mixture_segments(config, lineage)
    order = MixtureOrder(len(lineage.data_sets), segments, config.data.seed)
    drawn = order.drawn_before(first_position(config.training.steps + 1, config.batch_sizes))
    for data_set, count in zip(lineage.data_sets, drawn.tolist(), strict=True):
        num_pairs = data_set.manifest.num_samples
        yield (
            f"  {data_set.name}: {num_pairs:,} pairs in {len(data_set.manifest.shards)} shards; "
            f"the run draws {count:,}, so it sees each {count / num_pairs:.1f} times"
        )
        yield f"    {truncation[data_set.name]}"
    for held_out in lineage.held_out:
        available, asked = held_out.manifest.num_samples, config.validation.pairs
        count = available if asked is None else min(asked, available)
        yield (
            f"  validation {held_out.name}: {count:,} of {available:,} pairs, every "
            f"{config.validation.every} steps"
        )
        yield f"    {truncation[held_out_name(held_out.name)]}"


def _with_known_decoder(config: PretrainConfig) -> PretrainConfig:
    reconstructor = config.model.reconstructor
    folder = Path(config.data.image_tokenizer)
    if not reconstructor.is_end_to_end or reconstructor.decoder is not None:
        return config
    if folder.is_dir():
        tokenizer, _ = load_image_tokenizer(folder)
        return with_decoder(config, tokenizer.config)
    raise InputError(
        "model.reconstructor.kind=end_to_end builds the decoder of data.image_tokenizer="
        f"{folder}, which does not exist, and model.reconstructor.decoder is null: name an image "
        "tokenizer, or choose reconstructor=end_to_end_vqgan_f8_8192, which sets the decoder"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line per row, with right-aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _span(start: int, count: int) -> str:
    return str(start) if count == 1 else f"{start}-{start + count - 1}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
