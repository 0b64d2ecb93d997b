"""The learning rate as a function of the step.

After a linear warm-up the rate is the peak times `final + (1 - final) * height`. The height falls
from 1 to 0: over all later steps (cosine, linear), or over the last `decay_steps` (wsd: warm-up,
stable, decay). Until its decay, wsd equals a constant schedule whatever the length of the run, so
a decay may start from any checkpoint of it.

Source: cosine decay, Loshchilov and Hutter 2017 (arXiv:1608.03983); wsd, MiniCPM (Hu et al. 2024,
arXiv:2404.06395); its 1-sqrt decay, Hagele et al. 2024 (arXiv:2405.18392).
"""

import math

from ernie_vilg.config.optimizer import OptimizerConfig

_HEIGHTS = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
}


def learning_rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of a step.

    Args:
        step: from 1.
        steps: in the whole run.
        config: peak and schedule.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "wsd":
        assert config.decay_steps is not None, "the settings require it"
        assert config.decay_shape is not None, "the settings fill it in"
        shape: str = config.decay_shape
        # The first step of the decay is already lower, as in the paper.
        progress = min(1.0, (step - (steps - config.decay_steps)) / config.decay_steps)
        if progress <= 0:
            return config.learning_rate
    else:
        shape = config.schedule
        decay_steps = max(1, steps - config.warmup_steps - 1)
        progress = min(1.0, (step - 1 - config.warmup_steps) / decay_steps)
    final = config.final_learning_rate_fraction
    assert final is not None, "the settings fill it in"
    return config.learning_rate * (final + (1 - final) * _HEIGHTS[shape](progress))
