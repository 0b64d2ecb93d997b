"""AdamW and its schedule, for the transformer and for the image tokenizer.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay. The paper does not state its own."""

    learning_rate: float
    """Peak learning rate."""
    final_learning_rate_fraction: float = 0.1
    """Learning rate at the last step over its peak."""
    warmup_steps: int
    """Steps of linear warm-up from 0."""
    beta1: float = 0.9
    """Decay of the first moment per step."""
    beta2: float = 0.95
    """Decay of the second moment per step."""
    epsilon: float = 1.0e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases, norms and embeddings of position have none."""
    gradient_clipping: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise InputError(f"optimizer.{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.final_learning_rate_fraction <= 1:
            raise InputError(
                f"optimizer.final_learning_rate_fraction={self.final_learning_rate_fraction}: must "
                "be from 0 to 1"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)}: must be from 0 to below 1"
                )
        for name in ("warmup_steps", "weight_decay", "gradient_clipping"):
            if getattr(self, name) < 0:
                raise InputError(f"optimizer.{name}={getattr(self, name)}: must not be negative")
