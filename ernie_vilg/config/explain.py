"""Settings of the program that shows what a step was trained on.

Source: ours.
"""

from dataclasses import dataclass, field

from ernie_vilg.config.schema import LocalInput, LocalOutput, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ExplainStepConfig(Settings):
    """Settings of launch/explain_step.py."""

    run: LocalInput
    """Run folder of launch/pretrain.py."""
    step: PositiveInt
    """The update after which so many have been made, as in the log's lines."""
    output: LocalOutput | None = None
    """The HTML file to write; null is `explained/step_<step>.html` in the run folder."""
    losses: bool = False
    """Whether every sample of the batch goes through the model of the nearest checkpoint, on this
    machine's CPU."""
    max_samples: PositiveInt = 64
    """Samples shown with their pictures: the first ones, or with `losses` those of the largest
    loss. The others are listed."""
    token_shards: dict[str, str] = field(default_factory=dict)
    """Where a data set's shards are now, by its name (`main` where there is one), if they are
    no longer where the run read them."""
    text_tokenizer_dir: LocalInput | None = None
    """Where the run's text tokenizer is now; null is where the run read it."""
    image_tokenizer_dir: LocalInput | None = None
    """Where the run's image tokenizer is now; null is where the run read it."""
    cache_dir: LocalOutput | None = None
    """Folder into which remote shards are copied; null is the run's."""
