"""The learning rate as a function of the step.

Source: linear warm-up and cosine decay (Loshchilov and Hutter 2017, arXiv:1608.03983).
"""

import math

from ernie_vilg.config.optimizer import OptimizerConfig


def learning_rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of a step.

    Args:
        step: from 1.
        steps: in the whole run.
        config: peak, warm-up and final fraction.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    decay_steps = max(1, steps - config.warmup_steps - 1)
    progress = min(1.0, (step - 1 - config.warmup_steps) / decay_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    final = config.final_learning_rate_fraction
    return config.learning_rate * (final + (1 - final) * cosine)
