"""The weights that a new run starts from: those of an earlier run, for fine-tuning.

They come from a weights folder, or from the newest checkpoint of a run folder. One process checks
them before any device is touched: both tokenizers must be the earlier run's, since codes and ids
mean nothing without them, and the model must be the same but for settings that fit the weights
anyway. The run's own checkpoints record where the weights came from; once its checkpoint of step 0
stands, they are not read again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ernie_vilg.checkpoint.export import checkpoint_to_export, whole_weights
from ernie_vilg.checkpoint.folder import START, committed_checkpoints, read_checkpoint_manifest
from ernie_vilg.config.model import ModelConfig, model_config_from_json
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.model.lora.merge import merged
from ernie_vilg.model.weights import (
    CONFIG_NAME,
    IMAGE_TOKENIZER_FOLDER,
    WEIGHTS_NAME,
    read_weights,
)
from ernie_vilg.parallel.layout.collectives import (
    barrier,
    broadcast_from_leader,
    group_with_timeout,
)
from ernie_vilg.preparation.lineage import Lineage
from ernie_vilg.runs.recorded_settings import read_run
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import scratch_folder, sha256_of_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.vqgan.weights import load_image_tokenizer

FREE = frozenset(
    {
        "dropout",
        "text_length",
        "image_grid_size",
        "initializer_std",
        "segment_std",
        "codebook_std",
        "block_gradient_scale",
        "lora",
    }
)
"""Settings of the model that may differ: positions are fitted, adapters are merged, the others
change no weights."""

_TIMEOUT_SECONDS = 24 * 3600.0
"""Longest time that ranks wait while the leader gathers; its death ends the wait at once."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """The origin of a run's first weights."""

    folder: str
    """Weights folder or run folder, absolute."""
    sha256: str
    """SHA-256 of the weights folder's config.json or of the checkpoint's manifest, without their
    own hash; either names every file by its hash."""
    step: int
    """Step of the earlier run."""
    source: Path | None
    """Weights file or checkpoint to read; None if this run's checkpoints hold what became of it."""

    def record(self) -> dict[str, Any]:
        """Return the JSON values that checkpoints and exported weights keep."""
        return {"folder": self.folder, "sha256": self.sha256, "step": self.step}


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The facts that a folder records about its weights."""

    start: StartWeights
    model: ModelConfig
    lineage: Mapping[str, str]
    """SHA-256 of both tokenizers."""
    image_tokenizer: Path
    """The earlier run's image tokenizer."""


def check_start(config: PretrainConfig, lineage: Lineage) -> StartWeights | None:
    """Check that a run can start from `initialize_from`; one process calls it, with no device.

    Args:
        config: the run, with the decoder that its reconstructor needs.
        lineage: the run's tokenizers.

    Returns:
        the origin of its weights, from its own checkpoints if it has any; None: fresh weights.

    Raises:
        InputError: the folder holds no whole weights, or they are of other tokenizers or of another
            model.
    """
    if config.initialize_from is None:
        return None
    recorded = _recorded(Path(config.run_dir))
    if recorded is not None:
        return recorded
    folder = Path(config.initialize_from)
    named = f"initialize_from={folder}"
    try:
        found = _of_run(folder) if RunFolder(folder).settings.is_file() else _of_weights(folder)
    except InputError as error:
        raise InputError(f"{named}: {error}") from error
    _check_model(found.model, config.model, named)
    _check_tokenizers(found, config, lineage, named)
    return found.start


@contextlib.contextmanager
def reading(
    start: StartWeights | None, run_dir: Path, *, is_leader: bool
) -> Iterator[Callable[[str], Tensor] | None]:
    """Yield a reader of the first weights; all ranks must enter and leave.

    A weights file is mapped, so a rank reads what it asks for. The leader gathers a checkpoint of
    any layout into such a file, in the run's folder, which is removed at the end.

    Args:
        start: from `check_start` on the leader, the same on every rank.
        run_dir: the run's folder, on a file system that all ranks see.
        is_leader: whether this is rank 0.

    Yields:
        function from a parameter's name to its whole value, float32 on the CPU; None: the weights
        are fresh, or come from a checkpoint of this run.

    Raises:
        InputError: the checkpoint cannot be gathered; the message says why, on every rank.
    """
    if start is None or start.source is None:
        yield None
        return
    group = group_with_timeout(_TIMEOUT_SECONDS)
    with contextlib.ExitStack() as parts:
        file, problem = None, None
        if is_leader:
            logger.info("the weights of step %d of %s are the first ones", start.step, start.folder)
            try:
                file = _whole_file(start.source, run_dir, parts)
            except (OSError, ValueError) as error:
                problem = str(error)
        barrier(group)
        file, problem = broadcast_from_leader((file, problem))
        if problem is not None or file is None:
            raise InputError(f"initialize_from={start.folder}: {problem}")
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield partial(_read, opened)
        barrier(group)  # the leader may remove the file
        dist.destroy_process_group(group)


def _read(opened: Any, name: str) -> Tensor:
    value: Tensor = opened.get_tensor(name)
    return value.to(torch.float32)


def _whole_file(source: Path, run_dir: Path, parts: contextlib.ExitStack) -> Path:
    """Return a file of whole weights: the source, or what a checkpoint is gathered into."""
    if source.is_file():
        return source
    _, weights = merged(*whole_weights(source, average=False))
    file = parts.enter_context(scratch_folder(run_dir, "start")) / WEIGHTS_NAME
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def _recorded(run_dir: Path) -> StartWeights | None:
    """Return the origin that the run's own checkpoints record, None before there are any."""
    for checkpoint in committed_checkpoints(run_dir):
        with contextlib.suppress(InputError, OSError):  # the search for a whole one names damage
            recorded = read_checkpoint_manifest(checkpoint)["identity"].get(START)
            if recorded is not None:
                values = {**recorded, "source": None}
                return StartWeights(**values)
    return None


def _of_weights(folder: Path) -> _Found:
    model, _ = read_weights(folder)  # hashes every file; only its shape is needed here
    path = folder / CONFIG_NAME
    content = read_object(path)
    of_texts: Any = Mapping[str, str]
    return _Found(
        start=StartWeights(
            folder=str(folder.absolute()),
            sha256=from_json(content.get("sha256"), str, f"{path}: sha256"),
            step=from_json(content.get("step"), int, f"{path}: step"),
            source=(folder / WEIGHTS_NAME).absolute(),
        ),
        model=model,
        lineage=from_json(content.get("lineage"), of_texts, f"{path}: lineage"),
        image_tokenizer=folder / IMAGE_TOKENIZER_FOLDER,
    )


def _of_run(folder: Path) -> _Found:
    run = read_run(folder)
    checkpoint = checkpoint_to_export(folder, None, program="pretrain")
    manifest = read_checkpoint_manifest(checkpoint)
    of_texts: Any = Mapping[str, str]
    identity = manifest["identity"]
    return _Found(
        start=StartWeights(
            folder=str(folder.absolute()),
            sha256=sha256_of_json(manifest),
            step=int(manifest["step"]),
            source=checkpoint.absolute(),
        ),
        model=model_config_from_json(identity.get("model")),
        lineage=from_json(identity.get("lineage"), of_texts, f"{checkpoint}: lineage"),
        image_tokenizer=Path(run["image_tokenizer"]),
    )


def _check_model(theirs: ModelConfig, ours: ModelConfig, named: str) -> None:
    fitted = replace(theirs, **{name: getattr(ours, name) for name in FREE})
    # A decoder of another image size, or the way in which it once started, has the same weights.
    fitted = replace(fitted, reconstructor=_comparable(theirs, ours))
    wrong = [
        f"model.{name}={getattr(ours, name)} where it has {value}"
        for name, value in vars(fitted).items()
        if value != getattr(ours, name)
    ]
    if wrong:
        raise InputError(
            f"{named} is of another model: {'; '.join(wrong)}. Set them as they were; only "
            f"{', '.join(f'model.{name}' for name in sorted(FREE))} may differ"
        )


def _comparable(theirs: ModelConfig, ours: ModelConfig) -> Any:
    """Return their reconstructor with what may differ taken from ours."""
    decoder = theirs.reconstructor.decoder
    if decoder is not None and ours.reconstructor.decoder is not None:
        decoder = replace(decoder, image_size=ours.reconstructor.decoder.image_size)
    initialize = ours.reconstructor.initialize_decoder
    return replace(theirs.reconstructor, decoder=decoder, initialize_decoder=initialize)


def _check_tokenizers(found: _Found, config: PretrainConfig, lineage: Lineage, named: str) -> None:
    has_other_grid = found.model.image_grid_size != config.model.image_grid_size
    for name in ("text_tokenizer", "image_tokenizer"):
        theirs, ours = found.lineage.get(name), getattr(lineage, name)
        if theirs == ours or (
            name == "image_tokenizer" and has_other_grid and _is_resized(found, config)
        ):
            continue
        raise InputError(
            f"{named} was trained with another {name} (SHA-256 {theirs}) than data.{name}="
            f"{getattr(config.data, name)} ({ours}): name the one it was trained with, and encode "
            "the new pairs with it"
        )


def _is_resized(found: _Found, config: PretrainConfig) -> bool:
    """Return whether both image tokenizers are one network for pictures of different sizes."""
    theirs, sha256 = load_image_tokenizer(found.image_tokenizer)
    ours, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    if sha256 != found.lineage.get("image_tokenizer"):
        return False
    if replace(theirs.config, image_size=ours.config.image_size) != ours.config:
        return False
    mine = ours.state_dict()
    return all(torch.equal(value, mine[name]) for name, value in theirs.state_dict().items())
