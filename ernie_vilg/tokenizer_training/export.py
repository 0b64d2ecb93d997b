"""Weights folders of an image tokenizer's run, from its checkpoints.

The run folder's `weights` is always the tokenizer of the newest committed checkpoint: each commit
replaces it as a whole.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.export import checkpoint_to_export
from ernie_vilg.checkpoint.folder import MANIFEST_NAME, read_checkpoint_manifest
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import is_taken
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.locations import check_apart
from ernie_vilg.tokenizer_training.saved_state import read_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.card import Card
from ernie_vilg.vqgan.settings_file import SETTINGS_FILE
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card, save_image_tokenizer

_OTHER_FIGURES = ("step", "pictures", "held_out", "code_counts")
"""Entries of the file of figures that are no figures."""

logger = logging.getLogger(__name__)


def export_checkpoint(
    run_dir: Path, output_dir: str | Path, *, overwrite: bool, step: int | None = None
) -> int:
    """Write the weights folder of a checkpoint.

    Args:
        run_dir: a run folder of launch/train_image_tokenizer.py.
        output_dir: the weights folder to write.
        overwrite: whether an existing folder may be replaced.
        step: step of the checkpoint; None: the newest that verifies.

    Returns:
        the step of the checkpoint.

    Raises:
        InputError: no such checkpoint verifies, or `output_dir` must not be written.
    """
    check_apart("run", str(run_dir), "output_dir", str(output_dir))
    folder = Path(output_dir)
    if is_taken(folder) and not (overwrite and (folder / SETTINGS_FILE).is_file()):
        raise InputError(
            f"output_dir={output_dir} already exists: set overwrite=true to replace an image "
            "tokenizer, or name another folder"
        )
    checkpoint = checkpoint_to_export(run_dir, step, program="train_image_tokenizer")
    made, tokenizer, card = _tokenizer_of(checkpoint, run_dir)
    save_image_tokenizer(tokenizer, folder, card=card)
    logger.info("wrote %s of step %d", output_dir, made)
    return made


def write_newest(run_dir: Path, checkpoint: Path) -> None:
    """Replace the run folder's weights by the tokenizer of a checkpoint, unless that is of step 0.

    Args:
        run_dir: the run's folder.
        checkpoint: the newest committed checkpoint.
    """
    step, tokenizer, card = _tokenizer_of(checkpoint, run_dir)
    if step > 0:
        save_image_tokenizer(tokenizer, RunFolder(run_dir).tokenizer_weights, card=card)


def refresh_card(run_dir: Path, step: int) -> None:
    """Write the newest figures into the card of the run folder's weights, if both are of a step."""
    folder = RunFolder(run_dir).tokenizer_weights
    if not folder.is_dir():
        return
    card = read_card(folder)
    if card.lineage.get("step") == step:
        tokenizer, _ = load_image_tokenizer(folder)
        save_image_tokenizer(tokenizer, folder, card=_card(card.lineage, run_dir, step))


def read_figures(run_dir: Path, step: int) -> dict[str, Any] | None:
    """Return the figures of the run's last evaluation; None if there is none of this step."""
    path = RunFolder(run_dir).tokenizer_figures
    figures = read_object(path) if path.is_file() else {}
    return figures if figures.get("step") == step else None


def _tokenizer_of(checkpoint: Path, run_dir: Path) -> tuple[int, VQGAN, Card]:
    """Return a checkpoint's step, its tokenizer and the card."""
    manifest = read_checkpoint_manifest(checkpoint)
    step, identity = int(manifest["step"]), manifest["identity"]
    name = f"{checkpoint}/{MANIFEST_NAME}: identity.image_tokenizer"
    config = from_json(identity.get("image_tokenizer"), ImageTokenizerConfig, name)
    lineage = {
        "run": run_dir.resolve().name,
        "step": step,
        "image_shards": identity.get("order", {}).get("shards"),
        "settings": manifest.get("config_hash"),
    }
    return step, read_tokenizer(checkpoint, config), _card(lineage, run_dir, step)


def _card(lineage: Mapping[str, Any], run_dir: Path, step: int) -> Card:
    figures = read_figures(run_dir, step)
    if figures is None:
        return Card(lineage=lineage)
    return Card(
        lineage={
            **lineage,
            "evaluated_on": f"{figures['pictures']} pictures, "
            + ("held out" if figures["held_out"] else "trained on"),
        },
        figures={name: value for name, value in figures.items() if name not in _OTHER_FIGURES},
        code_counts=figures["code_counts"],
    )
