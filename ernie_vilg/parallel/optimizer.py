"""AdamW over the parameters that decay and those that do not.

Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
"""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from ernie_vilg.config.optimizer import OptimizerConfig


def build_adamw(
    decayed: Iterable[nn.Parameter], others: Iterable[nn.Parameter], config: OptimizerConfig
) -> AdamW:
    """Return AdamW.

    Args:
        decayed: parameters that `config.weight_decay` pulls to zero.
        others: parameters that nothing does.
        config: the settings; the learning rate is set anew at every step.
    """
    return AdamW(
        [
            {"params": list(decayed), "weight_decay": config.weight_decay},
            {"params": list(others), "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
