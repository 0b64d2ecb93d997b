"""A new run starts from an earlier run's weights, and some of them can stay as they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.checkpoint.export import export, whole_weights
from ernie_vilg.checkpoint.folder import read_checkpoint_manifest
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.validation import ValidationConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import read_metrics
from ernie_vilg.model.weights import CONFIG_NAME, read_weights
from ernie_vilg.preparation.lineage import check_lineage
from ernie_vilg.preparation.start_weights import check_start
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer
from launch.drills.data_set import GRID_SIZE, DataSet, encode_pairs, make_data_set, write_pairs
from tests.distributed import run_distributed
from tests.training.runs import run_on, tiny_run
from tests.training.test_validation import train

STEPS_BEFORE, STEPS = 60, 12
TEXT_LENGTH = 20


def write_new_pairs(folder: Path) -> None:
    """Draw every scene of one object: other captions and other pictures than those of two."""
    folder.mkdir()
    lines = []
    for index, scene in enumerate(list(all_scenes(1))[:24]):
        draw_scene(scene).save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "caption": caption_of(scene)}))
    (folder / "captions.jsonl").write_text("\n".join(lines))


def run_of(folder: Path, data: DataSet, *, steps: int, **settings: Any) -> PretrainConfig:
    config = run_on(tiny_run(folder, steps=steps, save_every=steps), data)
    config = replace(config, model=replace(config.model, text_length=TEXT_LENGTH))
    shards = {name: str(data.pairs.with_name(f"{name}_tokens")) for name in ("old", "new")}
    return replace(config, validation=ValidationConfig(every=steps, shards=shards), **settings)


def on_new_pairs(config: PretrainConfig, **settings: Any) -> PretrainConfig:
    shards = config.validation.shards["new"]
    return replace(config, data=replace(config.data, token_shards=shards), **settings)


def losses_of(config: PretrainConfig) -> dict[str, float]:
    entry = list(read_metrics(RunFolder(Path(config.run_dir)).metrics))[-1]
    return {name: entry[f"validation/{name}/loss"] for name in ("old", "new")}


def last_weights(config: PretrainConfig) -> dict[str, Tensor]:
    checkpoint = RunFolder(Path(config.run_dir)).checkpoint(config.training.steps)
    return whole_weights(checkpoint, average=False)[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("fine_tuned")
    data = make_data_set(folder, num_pairs=32)
    write_pairs(folder / "old", 8)
    write_new_pairs(folder / "new")
    for name in ("old", "new"):
        encode_pairs(data, folder / name, folder / f"{name}_tokens")
    return data


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> PretrainConfig:
    """Return a finished run, whose folder holds an export too."""
    config = run_of(tmp_path_factory.mktemp("earlier"), data, steps=STEPS_BEFORE)
    run_distributed(train, 1, config)
    run_dir = Path(config.run_dir)
    export(run_dir, run_dir.with_name("weights"), overwrite=False, average=False)
    return config


def weights_of(earlier: PretrainConfig) -> Path:
    return Path(earlier.run_dir).with_name("weights")


@pytest.mark.distributed
def test_it_learns_new_pairs_faster_and_forgets_old_ones(
    tmp_path: Path, data: DataSet, earlier: PretrainConfig
) -> None:
    scratch = on_new_pairs(run_of(tmp_path / "scratch", data, steps=STEPS))
    run_distributed(train, 1, scratch)
    start = tmp_path / "copy"
    shutil.copytree(weights_of(earlier), start)
    tuned = on_new_pairs(run_of(tmp_path / "tuned", data, steps=STEPS), initialize_from=str(start))
    run_distributed(train, 1, tuned)

    assert losses_of(tuned)["new"] < losses_of(scratch)["new"] - 0.3
    assert losses_of(tuned)["old"] > losses_of(earlier)["old"] + 0.1

    # It resumes without the folder, and every record says where it came from.
    shutil.rmtree(start)
    longer = replace(tuned, training=replace(tuned.training, steps=STEPS + 1))
    run_distributed(train, 1, longer)
    recorded = {
        "folder": str(start),
        "sha256": read_json(weights_of(earlier) / CONFIG_NAME)["sha256"],
        "step": STEPS_BEFORE,
    }
    last = RunFolder(Path(longer.run_dir)).checkpoint(STEPS + 1)
    assert read_checkpoint_manifest(last)["identity"]["start"] == recorded
    export(Path(longer.run_dir), tmp_path / "exported", overwrite=False, average=False)
    assert read_json(tmp_path / "exported" / CONFIG_NAME)["start"] == recorded


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        pytest.param({"tensor_parallel_size": 2}, "fp32", id="tensor parallel"),
        pytest.param({"pipeline_parallel_size": 2}, "bf16", id="pipeline, rounded to bf16"),
        pytest.param({"zero_stage": 2}, "fp32", id="ZeRO 2", marks=pytest.mark.slow),
        pytest.param({"zero_stage": 3}, "fp32", id="ZeRO 3"),
        pytest.param({"zero_stage": 1}, "bf16", id="ZeRO 1", marks=pytest.mark.slow),
    ],
)
def test_frozen_weights_keep_the_start_s_values_under_every_layout(
    tmp_path: Path, data: DataSet, earlier: PretrainConfig, layout: dict[str, int], precision: str
) -> None:
    config = on_new_pairs(
        run_of(tmp_path, data, steps=2), initialize_from=earlier.run_dir, precision=precision
    )
    frozen = ("0.*", "*attention*", "*feed_forward*")
    config = replace(
        config,
        parallelism=replace(config.parallelism, **layout),
        training=replace(config.training, frozen=frozen, ema_decay=0.5),
        validation=ValidationConfig(),
    )
    run_distributed(train, 2, config)

    _, start = read_weights(weights_of(earlier))
    dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
    changed = {
        name
        for name, value in last_weights(config).items()
        if not value.equal(start[name].to(dtype).float())
    }
    assert changed == {name for name in start if name.startswith("3.")}  # the head


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"hidden_size": 32}, r"model\.hidden_size=32 where it has 16", id="shape"),
        pytest.param(
            {"attention": "sparse"}, r"model\.attention=sparse where it has full", id="mask"
        ),
    ],
)
def test_another_model_is_refused(
    data: DataSet, earlier: PretrainConfig, settings: dict[str, Any], message: str
) -> None:
    config = run_of(Path(earlier.run_dir) / "never", data, steps=1, initialize_from=earlier.run_dir)
    config = replace(config, model=replace(config.model, **settings))
    lineage = check_lineage(config.data, earlier.model)

    with pytest.raises(InputError, match=message):
        check_start(config, lineage)


def test_other_tokenizers_and_other_folders_are_refused(
    tmp_path: Path, data: DataSet, earlier: PretrainConfig
) -> None:
    config = run_of(tmp_path, data, steps=1, initialize_from=str(weights_of(earlier)))
    lineage = check_lineage(config.data, config.model)

    with pytest.raises(InputError, match="trained with another text_tokenizer"):
        check_start(config, replace(lineage, text_tokenizer="0"))
    with pytest.raises(InputError, match="trained with another image_tokenizer"):
        check_start(config, replace(lineage, image_tokenizer="0"))
    with pytest.raises(InputError, match=r"initialize_from=.*nothing.* is no weights folder"):
        check_start(replace(config, initialize_from=str(tmp_path / "nothing")), lineage)


def test_positions_may_differ_where_the_tokenizer_draws_larger_pictures(
    tmp_path: Path, data: DataSet, earlier: PretrainConfig
) -> None:
    config = run_of(tmp_path, data, steps=1, initialize_from=str(weights_of(earlier)))
    tokenizer, _ = load_image_tokenizer(data.image_tokenizer)
    for name, change in (("larger", 0.0), ("other", 0.1)):
        larger = VQGAN(replace(tokenizer.config, image_size=128))
        weights = {key: value + change for key, value in tokenizer.state_dict().items()}
        larger.load_state_dict(weights)
        save_image_tokenizer(larger, tmp_path / name)
    lineage = check_lineage(config.data, config.model)
    model = replace(config.model, image_grid_size=2 * GRID_SIZE, text_length=30, dropout=0.1)

    for name in ("larger", "other"):
        _, sha256 = load_image_tokenizer(tmp_path / name)
        of_other = replace(
            config, model=model, data=replace(config.data, image_tokenizer=str(tmp_path / name))
        )
        if name == "larger":
            start = check_start(of_other, replace(lineage, image_tokenizer=sha256))
            assert start is not None
            assert start.step == STEPS_BEFORE
            continue
        with pytest.raises(InputError, match="trained with another image_tokenizer"):
            check_start(of_other, replace(lineage, image_tokenizer=sha256))
