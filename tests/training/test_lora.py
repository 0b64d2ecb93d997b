"""A run with adapters starts as the weights it is given, resumes exactly, and exports both ways."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ernie_vilg.checkpoint.export import export, whole_weights
from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import read_metrics
from ernie_vilg.model.lora.names import is_adapter
from ernie_vilg.model.weights import read_weights
from ernie_vilg.runs.run_folder import RunFolder
from launch.drills.data_set import DataSet, make_data_set
from tests.distributed import run_distributed
from tests.training.runs import pretrain_here, run_on, tiny_run

STEPS = 4
LORA = LoraConfig(rank=2, targets=("*.attention.*", "2.feed_forward.up"))


def weights_at(config: PretrainConfig, step: int) -> dict[str, Tensor]:
    return whole_weights(RunFolder(Path(config.run_dir)).checkpoint(step), average=False)[1]


def losses_of(config: PretrainConfig) -> list[float]:
    return [each["loss"] for each in read_metrics(RunFolder(Path(config.run_dir)).metrics)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("lora"), num_pairs=16)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> Path:
    """Return the exported weights of a run of 2 steps."""
    folder = tmp_path_factory.mktemp("earlier")
    config = run_on(tiny_run(folder, steps=2), data)
    run_distributed(pretrain_here, 1, config)
    export(Path(config.run_dir), folder / "weights", overwrite=False, average=False)
    return folder / "weights"


def lora_run(folder: Path, data: DataSet, start: Path, **layout: Any) -> PretrainConfig:
    config = run_on(tiny_run(folder, steps=STEPS, **layout), data)
    return replace(config, initialize_from=str(start), model=replace(config.model, lora=LORA))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, data: DataSet, earlier: Path
) -> PretrainConfig:
    """Return a finished run with adapters, of one process."""
    config = lora_run(tmp_path_factory.mktemp("finished"), data, earlier)
    config = replace(config, training=replace(config.training, ema_decay=0.5))
    run_distributed(pretrain_here, 1, config)
    return config


@pytest.mark.distributed
def test_the_first_loss_is_that_of_the_start_weights(
    tmp_path: Path, data: DataSet, earlier: Path, finished: PretrainConfig
) -> None:
    config = lora_run(tmp_path, data, earlier)
    whole = replace(config, model=replace(config.model, lora=LoraConfig()))
    whole = replace(whole, training=replace(whole.training, steps=1))
    run_distributed(pretrain_here, 1, whole)

    assert losses_of(finished)[0] == losses_of(whole)[0]
    assert losses_of(finished)[-1] != losses_of(finished)[0]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        pytest.param({"zero_stage": 3}, "fp32", id="ZeRO 3"),
        pytest.param({"pipeline_parallel_size": 2}, "bf16", id="pipeline, bf16"),
        pytest.param({"tensor_parallel_size": 2}, "bf16", id="tensor", marks=pytest.mark.slow),
        pytest.param({"zero_stage": 2}, "fp32", id="ZeRO 2", marks=pytest.mark.slow),
    ],
)
def test_it_resumes_bit_for_bit_without_the_start_weights(
    tmp_path: Path, data: DataSet, earlier: Path, layout: dict[str, int], precision: str
) -> None:
    start = tmp_path / "start"
    shutil.copytree(earlier, start)
    config = replace(lora_run(tmp_path, data, start, **layout), precision=precision)
    run_distributed(pretrain_here, 2, config)
    expected = weights_at(config, STEPS)

    shutil.rmtree(start)
    shutil.rmtree(RunFolder(Path(config.run_dir)).checkpoint(STEPS))
    run_distributed(pretrain_here, 2, config)

    resumed = weights_at(config, STEPS)
    assert all(value.equal(expected[name]) for name, value in resumed.items())
    dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
    _, of_start = read_weights(earlier)
    for name, value in of_start.items():
        assert resumed[name].equal(value.to(dtype).float()), name


@pytest.mark.distributed
def test_the_export_merges_what_changed(
    tmp_path: Path, earlier: Path, finished: PretrainConfig
) -> None:
    export(Path(finished.run_dir), tmp_path / "merged", overwrite=False, average=False)
    model, weights = read_weights(tmp_path / "merged")
    raw, (_, start) = weights_at(finished, STEPS), read_weights(earlier)

    assert model == replace(finished.model, lora=LoraConfig())
    changed = {name for name, value in weights.items() if not value.equal(start[name])}
    assert changed == {
        f"{index}.attention.{name}.weight"
        for index in (1, 2)
        for name in ("query_key_value", "output")
    } | {"2.feed_forward.up.weight"}
    first, second = (raw[f"2.feed_forward.up.lora_{each}.weight"] for each in "ab")
    expected = start["2.feed_forward.up.weight"] + 16 / 2 * second @ first
    torch.testing.assert_close(weights["2.feed_forward.up.weight"], expected)

    export(Path(finished.run_dir), tmp_path / "average", overwrite=False, average=True)
    _, average = read_weights(tmp_path / "average")
    assert {name for name, value in average.items() if not value.equal(start[name])} == changed
    assert all(not average[name].equal(weights[name]) for name in changed)


@pytest.mark.distributed
def test_adapters_are_exported_alone(
    tmp_path: Path, earlier: Path, finished: PretrainConfig
) -> None:
    run_dir, output = Path(finished.run_dir), tmp_path / "adapter"
    export(run_dir, output, overwrite=False, average=False, adapter=True)
    tensors, raw = load_file(output / "adapter_model.safetensors"), weights_at(finished, STEPS)

    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = json.loads((output / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(earlier)
    assert len(tensors) == sum(map(is_adapter, raw)) == 10
    name = "1.attention.output.lora_{}.weight"
    for ours, theirs in (("a", "A"), ("b", "B")):
        assert tensors[f"base_model.model.{name.format(theirs)}"].equal(raw[name.format(ours)])

    # The earlier run has none.
    with pytest.raises(InputError, match=r"adapter=true with .* had model\.lora\.rank=0"):
        export(
            earlier.parent / "run", tmp_path / "none", overwrite=False, average=False, adapter=True
        )


@pytest.mark.distributed
def test_a_run_with_adapters_is_the_start_of_another(
    tmp_path: Path, data: DataSet, finished: PretrainConfig
) -> None:
    export(Path(finished.run_dir), tmp_path / "merged", overwrite=False, average=False)
    config = lora_run(tmp_path / "next", data, Path(finished.run_dir))
    config = replace(config, training=replace(config.training, steps=1))
    run_distributed(pretrain_here, 1, config)

    _, merged = read_weights(tmp_path / "merged")
    following = weights_at(config, 1)
    assert all(following[name].equal(value) for name, value in merged.items())
