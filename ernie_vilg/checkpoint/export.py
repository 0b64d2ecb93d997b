"""Exports a run's newest checkpoint to a weights folder."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipelines.outputs import output_folder
from ernie_vilg.checkpoint.folder import (
    CHECKPOINT_PARTS,
    MANIFEST_NAME,
    START,
    committed_checkpoints,
    newest_checkpoint,
    read_checkpoint_manifest,
    step_of,
    verify_checkpoint,
)
from ernie_vilg.config.model import ModelConfig, model_config_from_json
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.lora.adapter_folder import ADAPTER_CONFIG_NAME, save_adapters
from ernie_vilg.model.lora.merge import merged
from ernie_vilg.model.weights import (
    CONFIG_NAME,
    IMAGE_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FOLDER,
    save_weights,
)
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.state.consolidate import WEIGHTS, gather_weights
from ernie_vilg.parallel.state.frozen_weights import frozen_weights
from ernie_vilg.parallel.state.whole_state import parameter_shapes, require_parameters
from ernie_vilg.runs.recorded_settings import read_run, read_settings
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.validations import best_checkpoint
from ernie_vilg.storage.locations import check_apart
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer

logger = logging.getLogger(__name__)


def export(
    run_dir: Path,
    output_dir: str | Path,
    *,
    overwrite: bool,
    average: bool,
    adapter: bool = False,
    step: int | None = None,
) -> int:
    """Write the weights folder of a run's checkpoint, or the folder of its adapters.

    Adapters are merged into the weights, or written alone in the layout of the library peft.
    Weights of any layout are consolidated on this machine's CPU, in float32.

    Args:
        run_dir: a run folder of launch/pretrain.py.
        output_dir: the weights folder to write.
        overwrite: whether an existing folder may be replaced.
        average: whether to write the moving average of the weights, not those of the last step.
        adapter: whether to write the adapters alone.
        step: step of the checkpoint; None: the newest that verifies.

    Returns:
        the step of the checkpoint.

    Raises:
        InputError: no such checkpoint verifies, the tokenizers are not those of the run, the run
            kept no average or has no adapters, or `output_dir` must not be written.
    """
    check_apart("run", str(run_dir), "output_dir", str(output_dir))
    marker = ADAPTER_CONFIG_NAME if adapter else CONFIG_NAME
    # The lock comes first, because consolidation takes long.
    with output_folder(output_dir, overwrite=overwrite, marker=marker) as folder:
        checkpoint = checkpoint_to_export(run_dir, step, program="pretrain")
        if adapter:
            made = _export_adapters(checkpoint, folder, average=average)
        else:
            made = _export(checkpoint, run_dir, folder, average=average)
    logger.info("wrote %s of step %d", output_dir, made)
    return made


def checkpoint_to_export(run_dir: Path, step: int | None, *, program: str) -> Path:
    """Return a verified checkpoint of a run, of a step above 0.

    Args:
        run_dir: the run's folder.
        step: step of the checkpoint; None: the newest that verifies.
        program: program of the run, for messages.

    Raises:
        InputError: there is none.
    """
    if step is not None:
        checkpoint = RunFolder(run_dir).checkpoint(step)
        problem = verify_checkpoint(checkpoint, CHECKPOINT_PARTS)
        if problem is not None:
            kept = [each.name for each in committed_checkpoints(run_dir)]
            raise InputError(
                f"step={step}: {checkpoint} cannot be exported ({problem}): choose one of "
                f"{', '.join(kept) or 'none'}, or leave step out for the newest"
            )
        return checkpoint
    newest = newest_checkpoint(run_dir, CHECKPOINT_PARTS)
    if newest is None:
        raise InputError(
            f"{run_dir} has no checkpoint that verifies: name the run_dir of a launch/{program}.py "
            "run"
        )
    if read_checkpoint_manifest(newest)["step"] == 0:
        raise InputError(f"{run_dir} has taken no step yet: wait for its next checkpoint")
    return newest


def best_step_of_run(run_dir: Path) -> int:
    """Return the step of the checkpoint that is the best by the run's `validation.best`.

    Raises:
        InputError: the run names no figure, or no checkpoint has it.
    """
    settings = read_settings(run_dir, PretrainConfig)
    steps = [step_of(each) or 0 for each in committed_checkpoints(run_dir)]
    best = best_checkpoint(RunFolder(run_dir), settings.validation.best, steps)
    if best is None:
        raise InputError(
            f"best=true with run={run_dir}, whose validation.best is {settings.validation.best}: "
            + (
                "no checkpoint was validated yet, wait for the next validation"
                if settings.validation.best
                else "resume the run with a figure that names the best checkpoint, such as "
                "validation.best=held_out/loss, or name a step"
            )
        )
    return best


def _export(checkpoint: Path, run_dir: Path, folder: Path, *, average: bool) -> int:
    manifest = read_checkpoint_manifest(checkpoint)
    identity = manifest["identity"]
    run = read_run(run_dir)
    name = f"{checkpoint}/{MANIFEST_NAME}: identity.lineage"
    of_texts: Any = Mapping[str, str]
    lineage = from_json(identity.get("lineage"), of_texts, name)
    _check_tokenizers(run, lineage)
    config, weights = merged(*whole_weights(checkpoint, average=average))
    about: dict[str, Any] = {"step": manifest["step"], "average": average, "lineage": lineage}
    if START in identity:
        about[START] = identity[START]
    shutil.copytree(run["text_tokenizer"], folder / TEXT_TOKENIZER_FOLDER)
    shutil.copytree(run["image_tokenizer"], folder / IMAGE_TOKENIZER_FOLDER)
    save_weights(folder, config, weights, about)  # last: it hashes the tokenizers too
    return int(manifest["step"])


def _export_adapters(checkpoint: Path, folder: Path, *, average: bool) -> int:
    manifest = read_checkpoint_manifest(checkpoint)
    identity = manifest["identity"]
    if not model_config_from_json(identity.get("model")).lora.rank:
        raise InputError(
            f"adapter=true with {checkpoint}, whose run had model.lora.rank=0 and has no adapters: "
            "leave adapter out, which writes the weights"
        )
    config, weights = whole_weights(checkpoint, average=average)
    save_adapters(folder, config, weights, base=identity[START]["folder"])
    return int(manifest["step"])


def whole_weights(checkpoint: Path, *, average: bool) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Consolidate the weights of a checkpoint of any layout.

    Args:
        checkpoint: a verified checkpoint's folder, of a step above 0: the weights come from the
            optimizer's state, which does not exist before the first step.
        average: whether to take the moving average of the weights, not those of the last step.

    Returns:
        the model's shape, and every whole parameter by name, adapters apart, float32 on the CPU.

    Raises:
        InputError: the checkpoint is of another version of the model, or holds no average.
    """
    config = model_config_from_json(read_checkpoint_manifest(checkpoint)["identity"].get("model"))
    state, shapes = WEIGHT_AVERAGE if average else WEIGHTS, parameter_shapes(config)
    weights = {
        name: value
        for name, value in gather_weights(checkpoint / CHECKPOINT_TAG, state).items()
        if original_name(name, config) == name  # the last stage holds a copy of tied weights
    }
    weights.update(frozen_weights(checkpoint / CHECKPOINT_TAG, config, shapes))
    require_parameters(set(weights), config)
    return config, {name: weights[name].view(shape) for name, shape in shapes.items()}


def _check_tokenizers(run: Mapping[str, str], lineage: Mapping[str, str]) -> None:
    actual = {
        "text_tokenizer": TextTokenizer.load(Path(run["text_tokenizer"])).sha256,
        "image_tokenizer": load_image_tokenizer(Path(run["image_tokenizer"]))[1],
    }
    for name, sha256 in actual.items():
        if sha256 != lineage.get(name):
            raise InputError(
                f"{run[name]} is not the {name} that the run was trained with (SHA-256 {sha256}, "
                f"not {lineage.get(name)}): restore it"
            )
