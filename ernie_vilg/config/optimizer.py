"""Settings of AdamW and its schedule, for the transformer and the image tokenizer."""

from dataclasses import dataclass

from ernie_vilg.config.schema import (
    Fraction,
    FractionBelowOne,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    Settings,
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings, section="optimizer"):
    """AdamW with linear warm-up and cosine decay. The paper does not state its own."""

    learning_rate: PositiveFloat
    """Peak learning rate."""
    final_learning_rate_fraction: Fraction = 0.1
    """Learning rate at the last step divided by its peak."""
    warmup_steps: NaturalInt
    """Number of steps of linear warm-up from 0."""
    beta1: FractionBelowOne = 0.9
    """Decay of the first moment per step."""
    beta2: FractionBelowOne = 0.95
    """Decay of the second moment per step."""
    epsilon: PositiveFloat = 1.0e-8
    """Term added to the root of the second moment."""
    weight_decay: NaturalFloat = 0.01
    """Decoupled decay of matrices; biases, norms and position embeddings have none."""
    gradient_clipping: NaturalFloat = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
