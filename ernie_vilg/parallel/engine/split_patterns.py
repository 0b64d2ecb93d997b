"""The names of parameters by how tensor parallelism splits them, as DeepSpeed's converter asks.

Source: DeepSpeed's universal checkpointing (arXiv:2406.18820).
"""

import re
from functools import lru_cache
from typing import Any

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer


@lru_cache(maxsize=1)  # asked at every checkpoint
def universal_checkpoint_info(config: ModelConfig) -> dict[str, Any]:
    """Return what the converter must know of our parameters: which are whole, which split by row.

    It takes patterns of names, and those without one for split by column; ours are the very names.
    """
    with torch.device("meta"):
        names = list(build_transformer(config).state_dict())
    dimensions = {name: split_dimension(name) for name in names}
    return {
        "universal_checkpoint_version": 0.2,
        "tp_replicated_parameter_patterns": [
            f"^{re.escape(name)}$" for name in names if dimensions[name] is None
        ],
        "parameter_with_row_parallelism_patterns": [
            f"^{re.escape(name)}$" for name in names if dimensions[name] == 1
        ],
    }
