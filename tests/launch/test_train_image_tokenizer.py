"""The program trains under every launcher and refuses bad settings before torch is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.tokenizer_objective import TokenizerObjectiveConfig
from ernie_vilg.config.train_image_tokenizer import ImageTokenizerTrainingConfig
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.system.ports import free_port
from launch.support.composition import compose_program
from tests.child_time import seconds_of_children
from tests.tokenizer_training.tokenizer_run import metrics_of, write_shards

PROGRAM = Path(__file__).parents[2] / "launch" / "train_image_tokenizer.py"
BIN = Path(sys.executable).parent
TINY = (
    "image_tokenizer=quickstart", "image_tokenizer.image_size=16",
    "image_tokenizer.base_channels=16", "image_tokenizer.codebook_size=32", "training.steps=3",
    "training.global_batch_size=4", "training.log_every=1", "reconstructions.pictures=4",
    "cluster.collective_timeout_seconds=60", "watch.step_timeout_seconds=50",
    "tracking.wandb_mode=disabled", "checkpoint.every=100",
)  # fmt: skip
LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port"],
}


def start(
    *settings: str, launcher: str = "python", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    command = list(LAUNCHERS[launcher])
    if launcher != "python":
        command.append(str(free_port()))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    if ranks > 1:  # as a launcher sets it
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    return subprocess.run(
        [*command, str(PROGRAM), *settings], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("python", marks=pytest.mark.slow),
        pytest.param("torchrun", marks=[pytest.mark.distributed, pytest.mark.slow]),
        pytest.param("deepspeed", marks=pytest.mark.distributed),
    ],
)
def test_trains_under(launcher: str, shards: Path, tmp_path: Path) -> None:
    result = start(f"shards={shards}", f"run_dir={tmp_path / 'run'}", *TINY, launcher=launcher)

    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run" / "weights" / "image_tokenizer.json").is_file()
    log = result.stdout + result.stderr
    assert " M parameters, " in log
    assert "step 1, the first, took" in log


def test_a_time_limit_ends_the_program_with_the_code_of_a_stop(
    shards: Path, tmp_path: Path
) -> None:
    result = start(
        f"shards={shards}", f"run_dir={tmp_path / 'run'}", *TINY, "stopping.max_hours=1e-9"
    )

    assert result.returncode == ExitCode.STOPPED, result.stderr
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["reason"] == "time_limit"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param(
            "image_tokenizer.image_size=20",
            "image_size=20 is no multiple of the downsampling factor 8",
            id="grid does not divide the picture",
        ),
        pytest.param(
            "image_tokenizer.codebook_size=65537",
            "must be at least 1 and at most 65536: token shards hold codes as uint16",
            id="codes beyond uint16",
        ),
        pytest.param(
            "image_tokenizer.image_size=32",
            "have 16 pixels a side where image_tokenizer.image_size=32",
            id="shards of another size",
        ),
        pytest.param(
            "training.global_batch_size=5",
            "global_batch_size=5 on 2 ranks: every rank needs an equal share, so set a multiple",
            id="batch not divisible by ranks",
        ),
        pytest.param(
            "training.micro_batch_size=3",
            "micro_batch_size=3 does not divide a rank's share of 2 pictures",
            id="passes do not divide the share",
        ),
        pytest.param(
            "reconstructions.shards=/nowhere", "/nowhere has no manifest.json", id="no held-out"
        ),
        pytest.param("training.stepz=5", "stepz", id="misspelt setting"),
        pytest.param("shards=/nowhere", "/nowhere has no manifest.json", id="no shards"),
    ],
)
def test_bad_setting_is_refused_before_torch_is_loaded(
    setting: str, message: str, shards: Path, tmp_path: Path
) -> None:
    started = seconds_of_children()
    result = start(f"shards={shards}", f"run_dir={tmp_path / 'run'}", *TINY, setting, ranks=2)

    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert seconds_of_children() - started < 20  # of two ranks
    assert not (tmp_path / "run").exists()


def test_a_second_run_of_a_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    with RunLock(tmp_path / "run", Launch(rank=0, local_rank=0, world_size=1)):
        result = start(f"shards={shards}", f"run_dir={tmp_path / 'run'}", *TINY)

    assert result.returncode == 2
    assert f"run is in use by process {os.getpid()}" in result.stderr
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("preset", ["quickstart", "emoji", "vqgan_f8_8192", "vqgan_gumbel_f8"])
def test_presets_downsample_by_eight(preset: str) -> None:
    config = compose_program(
        "train_image_tokenizer", [f"image_tokenizer={preset}", "shards=s", "run_dir=r"]
    )

    assert config.image_tokenizer.downsampling_factor == 8


def test_preset_of_the_public_vqgan_has_its_shape() -> None:
    config = compose_program(
        "train_image_tokenizer", ["image_tokenizer=vqgan_gumbel_f8", "shards=s", "run_dir=r"]
    )

    assert config.image_tokenizer == ImageTokenizerConfig(
        image_size=256,
        codebook_size=8192,
        embedding_size=256,
        latent_channels=256,
        quantizer="gumbel",
        base_channels=128,
        channel_multipliers=(1, 1, 2, 4),
        num_residual_blocks=2,
        attention_resolutions=(32,),
        patch_size=1,
        encoder_kernel_size=3,
        normalization="group",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"channel_multipliers": ()}, "give at least one", id="no multipliers"),
        pytest.param(
            {"normalization": "batch"}, "choose group, channel or none", id="unknown norm"
        ),
        pytest.param({"encoder_kernel_size": 5}, "choose 1 or 3", id="unknown kernel"),
        pytest.param({"attention_resolutions": (7,)}, r"computes at \[256, 128, 64, 32\]", id="7"),
        pytest.param({"base_channels": 40}, "a multiple of 32", id="groups do not divide"),
        pytest.param({"patch_size": 0}, "patch_size=0: must be at least 1", id="no patch"),
        pytest.param({"patch_size": 3}, "24, which is no power of two: set patch", id="f of 24"),
        pytest.param({"image_size": 100}, "to a multiple of 8", id="no whole grid"),
        pytest.param({"codebook_size": 65537}, "codes as uint16", id="codes above uint16"),
        pytest.param({"num_residual_blocks": -1}, "must be at least 0", id="negative blocks"),
    ],
)
def test_bad_architecture_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTokenizerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"steps": 0}, "training.steps=0: must be at least 1", id="no steps"),
    ],
)
def test_bad_run_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTokenizerTrainingConfig(**{"steps": 1, "global_batch_size": 1, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"absolute_error_weight": 0.0, "squared_error_weight": 0.0},
            "the loss ignores the picture",
            id="no likeness",
        ),
    ],
)
def test_bad_objective_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerObjectiveConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"codebook_weight": -1.0}, "must be at least 0", id="negative weight"),
        pytest.param({"revive_until": 1.5}, "must be at least 0 and at most 1", id="share above 1"),
        pytest.param({"revive_every": -1}, "must be at least 0", id="negative interval"),
    ],
)
def test_bad_codebook_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookConfig(**settings)  # type: ignore[arg-type]
