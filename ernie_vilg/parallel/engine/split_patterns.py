"""Names of parameters by how tensor parallelism splits them, for DeepSpeed's converter.

Source: DeepSpeed's universal checkpointing (arXiv:2406.18820).
"""

import re
from functools import lru_cache
from typing import Any

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer


@lru_cache(maxsize=1)  # needed at every checkpoint
def universal_checkpoint_info(config: ModelConfig) -> dict[str, Any]:
    """Return patterns of the names of whole parameters and of those split by row.

    The converter takes all other parameters for split by column. Each pattern matches one name.
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
