"""Parameters that training leaves as they are, chosen by patterns of names.

They stay in the optimizer, without weight decay and with a gradient of zero. AdamW then adds
exactly 0 to them, whatever layout shards them, and they add nothing to the gradient's norm.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name

IS_FROZEN = "is_frozen"
"""Name of a parameter's attribute that is true if it keeps its value."""

_NUM_NEAR = 3


def is_frozen(name: str, config: ModelConfig, patterns: Iterable[str]) -> bool:
    """Return whether a parameter keeps its value.

    Args:
        name: name such as "3.attention.output.weight"; tied weights count under the table's.
        config: the model's shape.
        patterns: patterns of whole names, as in `fnmatch`.
    """
    original = original_name(name, config)
    return any(fnmatchcase(original, pattern) for pattern in patterns)


def freeze(
    parameters: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, patterns: Sequence[str]
) -> None:
    """Mark the parameters of a model or a stage that keep their value; their gradient is zero."""
    for name, parameter in parameters:
        if is_frozen(name, config, patterns):
            setattr(parameter, IS_FROZEN, True)
            parameter.register_hook(torch.zeros_like)  # also removes NaN and infinity


def num_trained(sizes: Mapping[str, int], config: ModelConfig, patterns: Sequence[str]) -> int:
    """Return the number of single weights that train.

    Args:
        sizes: number of weights of each parameter by name.
        config: the model's shape.
        patterns: patterns of parameters that do not train.

    Raises:
        InputError: a pattern matches no parameter, or nothing is left to train.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in sizes):
            near = difflib.get_close_matches(pattern.strip("*."), sizes, n=_NUM_NEAR, cutoff=0.0)
            raise InputError(
                f"training.frozen={pattern} matches no parameter: name some of the {len(sizes)} "
                f"of this model, such as {', '.join(near)}; * is any text"
            )
    trained = sum(size for name, size in sizes.items() if not is_frozen(name, config, patterns))
    if not trained:
        raise InputError(
            f"training.frozen={','.join(patterns)} matches all {len(sizes)} parameters: leave out "
            "a pattern, or nothing trains"
        )
    return trained
