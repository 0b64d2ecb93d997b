"""A dry run describes a run, and refuses the settings that the run would refuse."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan_peers import read_gpu
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import (
    MixtureChangeConfig,
    MixtureDataSetConfig,
    PretrainDataConfig,
)
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import (
    ParallelismConfig,
    PretrainConfig,
    TrainingConfig,
)
from ernie_vilg.errors import InputError
from ernie_vilg.preparation.dry_run import dry_run
from ernie_vilg.storage.shard_manifest import read_manifest, write_manifest
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, make_data_set
from tests.training.runs import pretrain_here


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"), keep_pixels=True)


def run_of(data_set: DataSet | None, **layout: Any) -> PretrainConfig:
    folders = data_set or DataSet(
        pairs=Path("p"),
        text_tokenizer=Path("nowhere/text"),
        image_tokenizer=Path("nowhere/image"),
        token_shards=Path("nowhere/shards"),
    )
    return PretrainConfig(
        run_dir="unused",
        dry_run=True,
        model=ModelConfig(
            hidden_size=16,
            num_layers=4,
            num_heads=2,
            text_vocab_size=320,
            text_length=12,
            codebook_size=CODEBOOK_SIZE,
            image_grid_size=GRID_SIZE,
        ),
        data=PretrainDataConfig(
            token_shards=str(folders.token_shards),
            text_tokenizer=str(folders.text_tokenizer),
            image_tokenizer=str(folders.image_tokenizer),
        ),
        parallelism=ParallelismConfig(**{"micro_batch_size": 2, "global_batch_size": 24, **layout}),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        training=TrainingConfig(steps=10),
        checkpoint=CheckpointConfig(every=10),
    )


def end_to_end(config: PretrainConfig) -> PretrainConfig:
    return replace(
        config, model=replace(config.model, reconstructor=ReconstructorConfig(kind="end_to_end"))
    )


def test_every_stage_is_a_line() -> None:
    layout = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}

    report = dry_run(run_of(None, **layout), world_size=8)

    first, second = (line.split() for line in report.splitlines()[3:5])
    assert first[:3] == ["0", "0-3", "0-2"]  # embedding and two blocks
    assert second[:3] == ["1", "4-7", "3-5"]


def test_work_of_the_run_is_counted() -> None:
    report = dry_run(run_of(None, pipeline_parallel_size=2), world_size=4)

    # 2 replicas of micro-batches of 2 take 24 pairs in 6 passes, each pair 2 x (12 + 16) tokens.
    assert "24 pairs, 1,344 tokens" in report
    assert "6 per step and replica" in report
    assert "10 steps, 240 pairs" in report
    assert "pipeline bubble  14.3 %" in report  # 1 / (6 + 1)
    assert '"gradient_accumulation_steps": 6' in report


def test_adapters_are_what_trains() -> None:
    config = run_of(None)
    whole = replace(config, gpu=read_gpu("h100-80gb"))
    model = replace(config.model, lora=LoraConfig(rank=2, targets=("*.attention.output",)))
    adapted = replace(whole, model=model, initialize_from="nowhere")

    reports = [dry_run(each, world_size=1) for each in (whole, adapted)]

    # 4 blocks of 2 x 16 x (1 + 1); the largest group is theirs, not that of all weights.
    assert "trained          256 parameters, adapters of rank 2; the others keep" in reports[1]
    assert "optimizer        256 parameters with weight decay" in reports[1]
    assert "seconds, and what follows from them, are those of training all" in reports[1]
    assert not any("adapters" in line for line in reports[0].splitlines())
    per_pair = [
        float(re.search(r"FLOPs per pair +([\d.e+]+),", each)[1])  # type: ignore[index]
        for each in reports
    ]
    assert 0.6 < per_pair[1] / per_pair[0] < 0.8  # no products for the gradients of weights


def test_missing_data_is_listed() -> None:
    report = dry_run(run_of(None), world_size=1)

    for name, folder in (
        ("token_shards", "shards"),
        ("text_tokenizer", "text"),
        ("image_tokenizer", "image"),
    ):
        assert f"data.{name}=nowhere/{folder} is missing" in report


def test_data_that_is_there_is_counted(data_set: DataSet) -> None:
    report = dry_run(run_of(data_set), world_size=1)

    assert "24 pairs in 3 shards" in report
    assert "sees each 10.0 times" in report
    assert "missing" not in report


def test_each_data_set_of_a_mixture_is_counted(data_set: DataSet) -> None:
    config = run_of(data_set)
    shards = str(data_set.token_shards)
    data = replace(
        config.data,
        token_shards=None,
        mixture={
            "cc": MixtureDataSetConfig(token_shards=shards, weight=1.0),
            "wukong": MixtureDataSetConfig(token_shards=shards, weight=0.0),
        },
        mixture_changes=(MixtureChangeConfig(step=4, weights={"cc": 0.0, "wukong": 1.0}),),
    )

    report = dry_run(replace(config, data=data), world_size=1)

    # 10 steps of 24 pairs, of which the first 4 are cc's.
    assert "cc: 24 pairs in 3 shards; the run draws 96, so it sees each 4.0 times" in report
    assert "wukong: 24 pairs in 3 shards; the run draws 144, so it sees each 6.0 times" in report


def with_lengths(config: PretrainConfig, folder: Path, lengths: object) -> PretrainConfig:
    """Return a run on 100 captions with these lengths, end of text included; None: unrecorded."""
    manifest = read_manifest(Path(str(config.data.token_shards)), "token")
    settings = {name: value for name, value in manifest.settings.items() if "lengths" not in name}
    settings["num_captions"] = 100
    if lengths is not None:
        settings["caption_lengths"] = lengths
    shard = replace(manifest.shards[0], samples=100)
    write_manifest(folder, replace(manifest, shards=(shard,), settings=settings))
    return replace(config, data=replace(config.data, token_shards=str(folder)))


def test_captions_that_fit_are_counted(data_set: DataSet) -> None:
    report = dry_run(run_of(data_set), world_size=1)

    assert "0 of 24 captions (0.00%) are longer than model.text_length=12 and cut" in report


def test_one_caption_in_a_hundred_may_be_cut(data_set: DataSet, tmp_path: Path) -> None:
    config = with_lengths(run_of(data_set), tmp_path, {"3": 40, "12": 59, "13": 1})

    report = dry_run(config, world_size=1)

    assert "1 of 100 captions (1.00%) are longer than model.text_length=12 and cut" in report


def test_too_many_cut_captions_are_refused_with_the_fix(data_set: DataSet, tmp_path: Path) -> None:
    lengths = {"3": 40, "12": 28, "13": 10, "20": 21, "52": 1}

    with pytest.raises(
        ValueError,
        match=r"^data\.token_shards=\S+: 32 of 100 captions \(32\.00%\) are longer than "
        r"model\.text_length=12 and cut, more than data\.max_truncated_fraction=0\.01: "
        r"set model\.text_length=20 \(52 cuts none\); .* data\.max_truncated_fraction=0\.32$",
    ):
        dry_run(with_lengths(run_of(data_set), tmp_path, lengths), world_size=1)


def test_every_caption_of_a_picture_counts(data_set: DataSet, tmp_path: Path) -> None:
    config = with_lengths(run_of(data_set), tmp_path, {"3": 100})
    manifest = read_manifest(tmp_path, "token")
    lengths = {"3": 198, "13": 2}
    settings = {**manifest.settings, "num_captions": 200, "caption_lengths": lengths}
    write_manifest(tmp_path, replace(manifest, settings=settings))

    assert "2 of 200 captions (1.00%) are longer" in dry_run(config, world_size=1)


def test_more_cut_captions_can_be_allowed(data_set: DataSet, tmp_path: Path) -> None:
    config = with_lengths(run_of(data_set), tmp_path, {"3": 68, "13": 32})
    config = replace(config, data=replace(config.data, max_truncated_fraction=0.32))

    assert "32 of 100 captions (32.00%)" in dry_run(config, world_size=1)


@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["drawn", "never drawn"])
def test_each_data_set_that_is_drawn_keeps_the_limit(
    data_set: DataSet, tmp_path: Path, weight: float
) -> None:
    config = run_of(data_set)
    cut = with_lengths(config, tmp_path, {"3": 60, "13": 40}).data.token_shards
    mixture = {
        "cut": MixtureDataSetConfig(token_shards=str(cut), weight=weight),
        "fits": MixtureDataSetConfig(token_shards=str(data_set.token_shards), weight=0.5),
    }
    config = replace(config, data=replace(config.data, token_shards=None, mixture=mixture))

    if weight:
        with pytest.raises(ValueError, match=r"^data\.mixture\.cut\.token_shards=.* 40 of 100 "):
            dry_run(config, world_size=1)
    else:
        assert "40 of 100 captions (40.00%)" in dry_run(config, world_size=1)


def test_shards_from_before_lengths_were_recorded_are_unknown(
    data_set: DataSet, tmp_path: Path
) -> None:
    report = dry_run(with_lengths(run_of(data_set), tmp_path, None), world_size=1)

    assert "unknown how many captions are longer than model.text_length=12 and cut" in report


@pytest.mark.parametrize(
    "lengths",
    [[], 5, {"12": 99}, {"12": "100"}, {"12": True, "3": 99}, {"-1": 100}, {"1" * 5000: 100}],
    ids=["list", "number", "too few", "text", "true", "negative", "no length"],
)
def test_lengths_that_cannot_be_are_refused(
    data_set: DataSet, tmp_path: Path, lengths: object
) -> None:
    with pytest.raises(
        InputError, match=r"^data\.token_shards=\S+: caption_lengths are not those of 100 captions"
    ):
        dry_run(with_lengths(run_of(data_set), tmp_path, lengths), world_size=1)


def test_the_start_refuses_what_a_dry_run_does(data_set: DataSet, tmp_path: Path) -> None:
    config = replace(run_of(data_set), run_dir=str(tmp_path / "run"))
    config = replace(config, model=replace(config.model, text_length=2))
    launch = Launch(rank=0, local_rank=0, world_size=1)

    with pytest.raises(InputError, match=r"24 of 24 captions .* model\.text_length=2 and cut"):
        pretrain_here(launch, config)


def test_data_that_does_not_fit_is_refused(data_set: DataSet) -> None:
    config = run_of(data_set)
    config = replace(config, model=replace(config.model, codebook_size=2 * CODEBOOK_SIZE))

    with pytest.raises(ValueError, match=f"set model.codebook_size={CODEBOOK_SIZE}"):
        dry_run(config, world_size=1)


@pytest.mark.parametrize("shards_exist", [True, False], ids=["whole data", "tokenizer alone"])
def test_the_decoder_is_the_tokenizers(data_set: DataSet, shards_exist: bool) -> None:
    config = end_to_end(run_of(data_set))
    if not shards_exist:
        config = replace(config, data=replace(config.data, token_shards="nowhere"))

    report = dry_run(config, world_size=1)

    assert "2 x 29 tokens" in report  # the last code is an input too


def test_an_unknown_decoder_is_asked_for() -> None:
    with pytest.raises(ValueError, match="nowhere/image, which does not exist"):
        dry_run(end_to_end(run_of(None)), world_size=1)


def test_ranks_that_make_no_replica_are_refused() -> None:
    with pytest.raises(ValueError, match="world size 3 is no multiple"):
        dry_run(run_of(None, tensor_parallel_size=2), world_size=3)


def test_a_known_gpu_adds_seconds_and_the_check_of_memory() -> None:
    gpu = read_gpu("h100-80gb")
    small = replace(gpu, memory_bytes=1e4)

    unknown = dry_run(run_of(None), 2)
    fitting = dry_run(replace(run_of(None), gpu=gpu), 2)
    too_small = dry_run(replace(run_of(None), gpu=small), 2)

    assert "predicted on" not in unknown
    assert re.search(
        r"predicted on NVIDIA H100 80GB HBM3: 0\.00\d{3} s per step .*, 0s for 10 steps", fitting
    )
    assert "memory is enough" in fitting
    assert "layout is " in fitting
    assert "does not fit: " in too_small
    assert "GB of gpu.memory_bytes=0.0 GB: set parallelism." in too_small


def test_8_bit_products_and_compiled_blocks_are_named() -> None:
    run = run_of(None)
    run = replace(
        run,
        model=replace(run.model, hidden_size=1024, num_heads=16),
        parallelism=replace(run.parallelism, micro_batch_size=8),
        gpu=read_gpu("h100-80gb"),
    )

    text = dry_run(replace(run, linear_precision="fp8"), 1)
    compiled = dry_run(replace(run, linear_precision="fp8", compile_blocks=True), 1)

    options = "bfloat16 (precision=auto, GPUs assumed), inner blocks multiply in fp8"
    assert text.splitlines()[0].endswith(options)
    assert compiled.splitlines()[0].endswith(f"{options}, compiled blocks")


def test_collectives_are_listed_by_stage() -> None:
    layout = {"tensor_parallel_size": 2, "pipeline_parallel_size": 4}

    report = dry_run(run_of(None, **layout), world_size=16)

    first, middle, last = (
        report.partition(f"  stage {numbers}:\n")[2].partition("  stage ")[0].partition("\n\n")[0]
        for numbers in ("0", "1 to 2", "3")
    )
    # 6 micro-batches of a block with four sums of 2 pairs x 2 x 28 slots x 16 in bf16.
    assert "24 x all-reduce       3.58 kB  tensor ranks          blocks" in middle
    assert "6 x send             1.79 kB  next stage            pipeline" in first
    assert "previous stage" not in first
    assert "next stage" not in last
    assert "1 x all-gather         384 B  all ranks             update guard" in last


def test_a_single_rank_communicates_with_nobody() -> None:
    assert "collectives of a step: none" in dry_run(run_of(None), world_size=1)


def test_what_deepspeed_sends_by_itself_is_not_listed_in_silence() -> None:
    report = dry_run(run_of(None, zero_stage=3), world_size=2)

    assert "and those of DeepSpeed among replicas" in report
