"""The image tokenizer trains and resumes with the same result on any number of ranks."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.records.damage_log import read_damage
from ernie_vilg.runs.phases import Phase
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.settings_file import WEIGHTS_FILE
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card
from tests.distributed import run_distributed
from tests.tokenizer_training.tokenizer_run import (
    ALONE,
    SIZE,
    HookedPhases,
    hash_of_state,
    kill_at,
    metrics_of,
    run,
    tiny_config,
    write_shards,
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def _stop() -> None:
    raise InterruptedError


def test_loss_falls_and_results_are_written(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    code = run(ALONE, tiny_config(shards, run_dir, steps=60, revive_every=10, save_every=30))

    assert code == 0
    lines = metrics_of(run_dir)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 6  # half the error
    assert set(lines[0]) >= {
        "loss", "reconstruction_loss", "commitment_loss", "psnr", "codebook_usage", "perplexity",
        "images_per_second", "learning_rate", "gradient_norm", "epoch", "data_position",
        "first_step_seconds", "forward_seconds_per_step", "skipped_updates",
    }  # fmt: skip
    figures = json.loads((run_dir / "metrics.json").read_text())
    assert (figures["step"], figures["pictures"], figures["held_out"]) == (60, 16, False)
    assert figures["psnr"] == pytest.approx(lines[-1]["psnr"], abs=2)
    assert 0 < figures["codebook_usage"] <= 1
    with Image.open(run_dir / "reconstructions" / "step_00000060.png") as grid:
        assert grid.size == (16 * SIZE, 2 * SIZE)  # 16 originals above their reconstructions
    card = read_card(run_dir / "weights")
    assert (card.lineage["step"], card.figures["psnr"]) == (60, figures["psnr"])
    assert json.loads((run_dir / "run.json").read_text())["program"] == "train_image_tokenizer"


def test_codebook_starts_on_the_data(shards: Path, tmp_path: Path) -> None:
    # 8 pictures of 2 colours: 16 different vectors, all of them chosen, and 16 repeats.
    run(ALONE, tiny_config(shards, tmp_path / "run", steps=1))

    first = metrics_of(tmp_path / "run")[0]
    assert first["commitment_loss"] == pytest.approx(0, abs=1e-6)
    assert first["codebook_usage"] >= 0.4


def test_four_steps_are_two_and_a_kill_and_two(shards: Path, tmp_path: Path) -> None:
    run(ALONE, tiny_config(shards, tmp_path / "whole"))
    parted = tiny_config(shards, tmp_path / "parted")
    kill_at(parted, Phase.DATA, 4)
    assert [line["step"] for line in metrics_of(tmp_path / "parted")] == [1, 2, 3]

    run(ALONE, parted)

    whole, again = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parted")
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    assert hash_of_state(tmp_path / "parted", 4) == hash_of_state(tmp_path / "whole", 4)
    weights = Path("weights", WEIGHTS_FILE)
    assert sha256_of_file(tmp_path / "parted" / weights) == sha256_of_file(
        tmp_path / "whole" / weights
    )


def test_two_newest_checkpoints_are_kept(shards: Path, tmp_path: Path) -> None:
    run(ALONE, tiny_config(shards, tmp_path / "run", save_every=1))

    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert names == ["step_00000003", "step_00000004"]


def test_damaged_checkpoint_is_passed_over(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(ALONE, tiny_config(shards, run_dir))
    untouched = hash_of_state(run_dir, 4)
    (newest,) = (run_dir / "checkpoints" / "step_00000004").glob("*.pt")
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")

    run(ALONE, tiny_config(shards, run_dir))  # steps 3 and 4 again, from step 2

    assert hash_of_state(run_dir, 4) == untouched


def test_run_folder_that_lost_its_checkpoints_is_not_started_over(
    shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run(ALONE, tiny_config(shards, run_dir))
    for path in (run_dir / "checkpoints").glob("*/*"):
        path.unlink()

    with pytest.raises(ValueError, match="holds a run but no checkpoint of it that verifies"):
        run(ALONE, tiny_config(shards, run_dir))


def test_workers_change_no_loss_and_are_gone_afterwards(shards: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"image_size": SIZE - 8, "horizontal_flip": True}
    run(ALONE, tiny_config(shards, tmp_path / "alone", **settings))
    before = {*multiprocessing.active_children()}

    loader = LoaderConfig(num_workers=2)
    run(ALONE, tiny_config(shards, tmp_path / "helped", **settings, loader=loader))

    assert {*multiprocessing.active_children()} <= before
    assert hash_of_state(tmp_path / "helped", 4) == hash_of_state(tmp_path / "alone", 4)


def test_micro_batches_add_up_to_the_batch(shards: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1.0e-5}  # see `test_two_ranks_take_the_steps_of_one`
    run(ALONE, tiny_config(shards, tmp_path / "whole", **settings))

    run(ALONE, tiny_config(shards, tmp_path / "parts", **settings, micro_batch_size=2))

    whole, parts = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    for name in ("loss", "psnr", "codebook_usage", "perplexity", "gradient_norm"):
        assert [line[name] for line in parts] == pytest.approx(
            [line[name] for line in whole], rel=1e-5
        ), name


def test_damaged_picture_stops_the_run(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", num_damaged=1)

    with pytest.raises(ValueError, match=r"sample '000000' of .* picture that cannot be read"):
        run(ALONE, tiny_config(tmp_path / "shards", tmp_path / "run"))


def test_damage_that_is_skipped_is_written_down_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", num_damaged=1)
    loader = LoaderConfig(num_workers=0, damage="skip", max_damaged_fraction=0.1)
    config = tiny_config(tmp_path / "shards", tmp_path / "run", loader=loader)
    with pytest.raises(InterruptedError):
        run(ALONE, config, phases=HookedPhases(at=Phase.DATA, step=4, act=_stop))

    run(ALONE, config)

    summary = read_damage(tmp_path / "run" / "ledger")
    assert summary.num_samples_by_reason == {"unreadable_image": 1}
    (line,) = (tmp_path / "run" / "ledger" / "damage-0.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "000000"
    assert metrics_of(tmp_path / "run")[-1]["damaged_samples"] == 1


def test_pictures_in_quarantine_are_left_out(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", num_damaged=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "quarantine.jsonl").write_text('{"key": "000000"}\n')

    run(ALONE, tiny_config(tmp_path / "shards", tmp_path / "run"))  # stops at the first damage

    assert read_damage(tmp_path / "run" / "ledger").num_samples == 0
    assert metrics_of(tmp_path / "run")[-1]["quarantined_samples"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"image_cache_bytes": 1, "loader": LoaderConfig(num_workers=1)},
            "image_cache_bytes=1 with loader.num_workers=1: .* set loader.num_workers=0",
            id="a cache that workers would not see",
        ),
        pytest.param({"seed": -1}, "training.seed=-1: must be at least 0", id="negative seed"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(Path("shards"), Path("run"), **settings)


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        pytest.param({"global_batch_size": 5}, 2, "set a multiple of 2", id="ranks"),
        pytest.param(
            {"micro_batch_size": 3},
            2,
            r"training\.micro_batch_size=3 does not divide a rank's share of 4 pictures",
            id="micro-batches",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_equally_is_refused(
    settings: dict[str, int], ranks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(Path("shards"), Path("run"), **settings).micro_batch_size(ranks)


@pytest.mark.parametrize("name", ["shards", "reconstructions.shards"])
def test_remote_shards_need_a_cache_on_disk(name: str) -> None:
    config = tiny_config(Path("shards"), Path("run"))
    place: Any = "s3://b/shards"
    if name == "reconstructions.shards":
        name, place = "reconstructions", replace(config.reconstructions, shards=place)

    with pytest.raises(ValueError, match=r"s3://b/shards is remote and loader\.cache_dir is"):
        replace(config, **{name: place})


@pytest.mark.parametrize("shards_image_size", [SIZE, SIZE + 2])
def test_shards_of_the_same_size_or_larger_are_taken(shards_image_size: int) -> None:
    tiny_config(Path("shards"), Path("run")).check_image_size("shards", shards_image_size)


def test_shards_of_smaller_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"have 15 pixels a side where .*image_size=16: set it"):
        tiny_config(Path("shards"), Path("run")).check_image_size("shards", 15)


@pytest.mark.distributed
def test_two_ranks_take_the_steps_of_one(shards: Path, tmp_path: Path) -> None:
    # AdamW's first steps divide by the root of tiny second moments, which magnifies the rounding of
    # gradients that are summed in another order: a small rate keeps that small.
    settings = {"learning_rate": 1.0e-5, "revive_every": 2}
    run(ALONE, tiny_config(shards, tmp_path / "one", **settings))

    run_distributed(run, 2, tiny_config(shards, tmp_path / "two", **settings))

    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    for name in ("loss", "psnr", "codebook_usage", "perplexity"):
        assert [line[name] for line in two] == pytest.approx(
            [line[name] for line in one], rel=1e-5
        ), name
    figures = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    ]
    assert figures[1]["psnr"] == pytest.approx(figures[0]["psnr"], rel=1e-5)
    assert figures[1]["code_counts"] == figures[0]["code_counts"]


def _run_until_step_four(launch: Launch, config: TrainImageTokenizerConfig) -> None:
    with pytest.raises(InterruptedError):
        run(launch, config, phases=HookedPhases(at=Phase.DATA, step=4, act=_stop))


@pytest.mark.distributed
def test_two_ranks_resume_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    whole, parted = (tiny_config(shards, tmp_path / name) for name in ("whole", "parted"))

    run_distributed(run, 2, whole)
    run_distributed(_run_until_step_four, 2, parted)
    run_distributed(run, 2, parted)

    load_image_tokenizer(tmp_path / "parted" / "weights")
    assert hash_of_state(tmp_path / "parted", 4) == hash_of_state(tmp_path / "whole", 4)
