"""A run's model between two steps, ready to draw and to caption."""

from pathlib import Path

import torch
from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.generation.pipeline import ErnieVilg, choose_device
from ernie_vilg.model.weights import model_from_weights
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer


def model_of_run(config: PretrainConfig, weights: dict[str, Tensor]) -> ErnieVilg:
    """Build the model of a run from its weights and tokenizers, without a change to the run.

    Args:
        config: settings of the run.
        weights: every parameter by name, whole, in any precision.
    """
    device = choose_device("auto")
    # New layers draw their first weights from the generator that training also uses.
    with torch.random.fork_rng(devices=[]):
        tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
        transformer = model_from_weights(config.model, weights)
    return ErnieVilg(
        transformer.to(device),
        config.model,
        TextTokenizer.load(Path(config.data.text_tokenizer)),
        tokenizer.to(device),
    )
