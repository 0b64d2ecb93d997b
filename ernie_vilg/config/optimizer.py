"""Settings of AdamW and its schedule, for the transformer and the image tokenizer."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import (
    Fraction,
    FractionBelowOne,
    Matching,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError

_DEFAULT_FINAL_FRACTION = 0.1
_DEFAULT_DECAY_SHAPE = "1-sqrt"


@dataclass(frozen=True, kw_only=True)
class ParameterGroupConfig(Settings, section="optimizer.groups"):
    """Parameters with a learning rate or a weight decay of their own."""

    pattern: Annotated[str, Matching(pattern=r"\S+", words="a pattern of names without spaces")]
    """Pattern of whole names, as a shell's: `*.bias`, `0.*`, `[1-4].*`. The first number is the
    layer: 0 is the embedding, the last one the head. Tied weights have the embedding's name."""
    learning_rate_factor: PositiveFloat = 1.0
    """Factor of the learning rate at every step."""
    weight_decay: NaturalFloat | None = None
    """Decoupled decay of all of them; null leaves each as it is without groups."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings, section="optimizer"):
    """AdamW and the schedule of its learning rate. The paper does not state its own."""

    learning_rate: PositiveFloat
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up: cosine or linear decay to the last step; constant; or wsd
    (warm-up, stable, decay), constant until the decay in the last `decay_steps` steps."""
    final_learning_rate_fraction: Fraction | None = None
    """Learning rate at the last step divided by its peak; null takes 0.1. A constant schedule has
    none."""
    warmup_steps: NaturalInt
    """Number of steps of linear warm-up from 0."""
    decay_steps: PositiveInt | None = None
    """Number of steps of the decay, the last of the run; for wsd, which needs it."""
    decay_shape: Literal["linear", "1-sqrt"] | None = None
    """Form of wsd's decay: linear, or 1-sqrt, which falls fast at first; null takes 1-sqrt."""
    beta1: FractionBelowOne = 0.9
    """Decay of the first moment per step."""
    beta2: FractionBelowOne = 0.95
    """Decay of the second moment per step."""
    epsilon: PositiveFloat = 1.0e-8
    """Term added to the root of the second moment."""
    weight_decay: NaturalFloat = 0.01
    """Decoupled decay of matrices; biases, norms and embeddings have none."""
    gradient_clipping: NaturalFloat = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    groups: tuple[ParameterGroupConfig, ...] = ()
    """Parameters with a rate or decay of their own, by their names; the first pattern that matches
    holds. For the transformer alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_keys_of_other_schedules()
        if self.schedule == "wsd" and self.decay_steps is None:
            raise InputError(
                "optimizer.schedule=wsd with optimizer.decay_steps=null: set it to the number of "
                "steps of the decay, often a tenth of training.steps"
            )
        # Null is filled in, so that records of runs state what was done, and older ones mean the
        # same.
        if self.schedule != "constant" and self.final_learning_rate_fraction is None:
            object.__setattr__(self, "final_learning_rate_fraction", _DEFAULT_FINAL_FRACTION)
        if self.schedule == "wsd" and self.decay_shape is None:
            object.__setattr__(self, "decay_shape", _DEFAULT_DECAY_SHAPE)

    def check_length(self, steps: int) -> None:
        """Check that the schedule's phases fit into the run.

        Args:
            steps: number of steps of the run, `training.steps`.

        Raises:
            InputError: wsd's decay would begin before the end of the warm-up.
        """
        if self.schedule != "wsd":
            return
        assert self.decay_steps is not None, "checked above"
        if self.warmup_steps + self.decay_steps > steps:
            raise InputError(
                f"optimizer.decay_steps={self.decay_steps} and optimizer.warmup_steps="
                f"{self.warmup_steps} with training.steps={steps}: together they must be at most "
                "the number of steps, lower one of the two or raise training.steps"
            )

    def _refuse_keys_of_other_schedules(self) -> None:
        owners = {
            "final_learning_rate_fraction": ("cosine", "linear", "wsd"),
            "decay_steps": ("wsd",),
            "decay_shape": ("wsd",),
        }
        for name, schedules in owners.items():
            value = getattr(self, name)
            if value is not None and self.schedule not in schedules:
                raise InputError(
                    f"optimizer.{name}={value} with optimizer.schedule={self.schedule}, which has "
                    f"no use for it: set optimizer.{name}=null, or optimizer.schedule="
                    f"{' or '.join(schedules)}"
                )
