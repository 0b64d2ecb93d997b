"""Settings of the program that shows the batch of a step."""

from dataclasses import dataclass, field

from ernie_vilg.config.schema import LocalInput, LocalOutput, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ExplainStepConfig(Settings):
    """Settings of launch/explain_step.py."""

    run: LocalInput
    """Run folder of launch/pretrain.py."""
    step: PositiveInt
    """Step, numbered from 1 as in the log."""
    output: LocalOutput | None = None
    """HTML file to write; null is `explained/step_<step>.html` in the run folder."""
    losses: bool = False
    """Whether to compute each sample's loss under the nearest checkpoint, on this machine's CPU."""
    max_samples: PositiveInt = 64
    """Number of samples shown with pictures: the first, or with `losses` those of the largest loss.
    The others are listed."""
    token_shards: dict[str, str] = field(default_factory=dict)
    """Present locations of moved data sets by name (`main` without a mixture)."""
    text_tokenizer_dir: LocalInput | None = None
    """Present folder of the run's text tokenizer; null if it has not moved."""
    image_tokenizer_dir: LocalInput | None = None
    """Present folder of the run's image tokenizer; null if it has not moved."""
    cache_dir: LocalOutput | None = None
    """Cache folder for remote shards; null takes the run's."""
