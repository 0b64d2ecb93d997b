"""The loss of each sample of a batch under a checkpoint of the run, on the CPU."""

import logging
from pathlib import Path

import numpy as np
import torch

from ernie_vilg.checkpoint.export import whole_weights
from ernie_vilg.checkpoint.folder import (
    CHECKPOINT_PARTS,
    committed_checkpoints,
    read_checkpoint_manifest,
    step_of,
    verify_checkpoint,
)
from ernie_vilg.errors import InputError
from ernie_vilg.forensics.explain_step import SampleLosses
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.loss import sample_losses
from ernie_vilg.model.weights import model_from_weights

_PASS_SIZE = 8
"""Samples that go through the model at once."""

logger = logging.getLogger(__name__)


def measure_sample_losses(
    run_dir: Path, step: int, text: np.ndarray, codes: np.ndarray
) -> SampleLosses:
    """Compute the losses of samples under the checkpoint nearest to a step.

    Args:
        run_dir: the run's folder.
        step: the step; its own checkpoint or the last before it is used, else the first after it.
        text: text ids, int64 [samples, text_length].
        codes: image codes in raster order, int64 [samples, num_image_tokens].

    Raises:
        InputError: the run has no usable checkpoint.
    """
    checkpoint = nearest_checkpoint(run_dir, step)
    model = model_from_weights(*whole_weights(checkpoint, average=False))
    parts = []
    for start in range(0, len(text), _PASS_SIZE):
        end = start + _PASS_SIZE
        parts.append(_losses(model, torch.from_numpy(text[start:end]), codes[start:end]))
        if end % (16 * _PASS_SIZE) == 0:
            logger.info("losses of %d of %d samples", end, len(text))
    text_to_image, image_to_text = np.concatenate(parts, axis=1)
    return SampleLosses(
        checkpoint_step=int(read_checkpoint_manifest(checkpoint)["step"]),
        text_to_image=text_to_image,
        image_to_text=image_to_text,
    )


def nearest_checkpoint(run_dir: Path, step: int) -> Path:
    """Return the newest verified checkpoint up to a step, or else the first after it.

    Raises:
        InputError: there is none above step 0.
    """
    steps = {step_of(path) or 0: path for path in committed_checkpoints(run_dir)}
    before = sorted((number for number in steps if 0 < number <= step), reverse=True)
    after = sorted(number for number in steps if number > step)
    for number in (*before, *after):
        problem = verify_checkpoint(steps[number], CHECKPOINT_PARTS)
        if problem is None:
            return steps[number]
        logger.warning("checkpoint %s is not used: %s", steps[number], problem)
    raise InputError(
        f"losses=true needs a checkpoint of {run_dir} above step 0 that verifies, and there is "
        f"none (found: steps {sorted(steps) or 'none'}). The checkpoint of step 0 has no optimizer "
        "state, from which whole weights are gathered: wait for the run's next checkpoint, or set "
        "losses=false"
    )


@torch.inference_mode()
def _losses(model: torch.nn.Module, text: torch.Tensor, codes: np.ndarray) -> np.ndarray:
    """Return the losses of samples, float64 [direction, samples]."""
    image_codes = torch.from_numpy(codes)
    output: HeadOutput = model((text, image_codes))
    return torch.stack(sample_losses(output, text, image_codes, torch.float64)).numpy()
