"""A run's model between two steps, ready to draw and to caption, in the memory that a step leaves.

On a GPU the model is a second copy of the weights, in bfloat16, beside the training state. Before
it is made, its memory is predicted and compared with the GPU's free memory; where it would not fit,
the observation is skipped with a warning, and training goes on. Afterwards the memory is returned.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.generation.fixed_batches import NUM_ROWS
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.transformer import num_parameters
from ernie_vilg.model.weights import model_from_weights
from ernie_vilg.runs.observation import Observation
from ernie_vilg.system.devices import choose_device, choose_precision
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer

LARGEST_BATCH = 64
"""Largest number of pairs drawn or captioned at once."""
LARGEST_GRADIENT_BATCH = 8
"""Largest number of pairs per backward pass."""
_SOURCE_TENSORS, _GRADIENT_TENSORS = 24, 34
"""Tensors of a block as wide as its hidden states: those that live at once while the slots of a
source go through it, and those that its backward pass needs (arXiv:2205.05198, section 4)."""
_PICTURE_TENSORS = 5
"""Tensors of the decoder's first resolution that live at once."""
_GRADIENT_COPIES = 4
"""Whole gradients that live at once where two are compared: both, a new one, and a sum."""

logger = logging.getLogger(__name__)

Observe = Callable[..., Observation | None]


class NoRoomError(Exception):
    """The device lacks the memory for an observation."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Predicted memory of an observation on a GPU."""

    fixed: int
    """Bytes of the weights, of whole gradients, and of the image tokenizer at work."""
    per_pair: int
    """Bytes of each pair that is drawn, captioned or differentiated at once."""

    def pairs_that_fit(self, free: int, most: int) -> int:
        """Return the number of pairs at once in some free bytes, at most `most`.

        Raises:
            NoRoomError: not even one fits.
        """
        pairs = min((free - self.fixed) // self.per_pair, most)
        if pairs < 1:
            required = (self.fixed + self.per_pair) / 1e9
            raise NoRoomError(
                f"it needs {required:.1f} GB of the GPU, {free / 1e9:.1f} GB are free"
            )
        return int(pairs)


def need_of(
    config: ModelConfig, tokenizer: VQGAN, precision: torch.dtype, gradients_of: int = 0
) -> Need:
    """Predict the memory of an observation.

    Args:
        config: the model's shape.
        tokenizer: the image tokenizer.
        precision: number format of the transformer.
        gradients_of: number of pairs whose gradients are compared, and which are then drawn and
            captioned all at once; 0 only draws and captions.
    """
    size, slots = precision.itemsize, config.seq_length
    weights = num_parameters(config) * size
    picture = tokenizer.config.base_channels * tokenizer.config.image_size**2 * 4
    own = sum(parameter.numel() for parameter in tokenizer.parameters()) * 4
    states = slots * config.hidden_size * size
    # Where no fused kernel takes the mask, scores are written in float32 beside their softmax.
    scores = config.num_heads * slots**2 * (4 + size)
    per_pair = drawn = (2 * config.num_layers + _SOURCE_TENSORS) * states + scores
    if gradients_of:
        both = 2 * states * config.num_layers * _GRADIENT_TENSORS
        logits = config.num_image_tokens * config.codebook_size
        logits += config.text_length * config.text_vocab_size
        per_pair = both + 3 * 4 * logits
    gradients = _GRADIENT_COPIES * weights if gradients_of else 0
    fixed = weights + max(gradients, gradients_of * drawn)
    return Need(fixed=fixed + own + NUM_ROWS * _PICTURE_TENSORS * picture, per_pair=per_pair)


def model_of_run(
    config: PretrainConfig, weights: dict[str, Tensor], gradients_of: int = 0
) -> tuple[ErnieVilg, int]:
    """Build the model of a run from its weights and tokenizers, without a change to the run.

    Args:
        config: settings of the run.
        weights: every parameter by name, whole, in any precision.
        gradients_of: number of pairs whose gradients will be compared.

    Returns:
        the model, and the number of pairs that it may work on at once.

    Raises:
        NoRoomError: the GPU lacks the memory; nothing was allocated there.
    """
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    # New layers draw their first weights from the generator that training also uses.
    with torch.random.fork_rng(devices=[]):
        tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
        pairs = LARGEST_GRADIENT_BATCH if gradients_of else LARGEST_BATCH
        if device.type == "cuda":
            need = need_of(config.model, tokenizer, precision, gradients_of)
            pairs = need.pairs_that_fit(free_bytes(device), pairs)
        transformer = model_from_weights(config.model, weights, device, precision)
    model = ErnieVilg(
        transformer,
        config.model,
        TextTokenizer.load(Path(config.data.text_tokenizer)),
        tokenizer.to(device),
    )
    return model, pairs


def free_bytes(device: torch.device) -> int:
    """Return a GPU's free memory, once torch has returned what it keeps without using it."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def within_memory(name: str) -> Callable[[Observe], Observe]:
    """Turn a lack of the GPU's memory in an observation into a warning and a counted skip.

    Memory that the observation took is returned, so that the next step finds what the last one had.

    Args:
        name: name of the observation in messages and metrics.
    """

    def within(observe: Observe) -> Observe:
        @wraps(observe)
        def guarded(
            config: PretrainConfig, step: int, *arguments: Any, **options: Any
        ) -> Observation | None:
            try:
                return observe(config, step, *arguments, **options)
            except (NoRoomError, torch.OutOfMemoryError) as error:
                logger.warning("%s after step %d skipped: %s", name, step, error)
                return Observation(metrics={f"{name}/skipped": 1.0}, pictures={})
            finally:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

        return guarded

    return within
