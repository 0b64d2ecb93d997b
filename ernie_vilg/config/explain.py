"""Settings of the program that shows what a step was trained on.

Source: ours.
"""

from dataclasses import dataclass, field

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input, check_local_output


@dataclass(frozen=True, kw_only=True)
class ExplainStepConfig:
    """Settings of launch/explain_step.py."""

    run: str
    """Run folder of launch/pretrain.py."""
    step: int
    """The update after which so many have been made, as in the log's lines."""
    output: str | None = None
    """The HTML file to write; null is `explained/step_<step>.html` in the run folder."""
    losses: bool = False
    """Whether every sample of the batch goes through the model of the nearest checkpoint, on this
    machine's CPU."""
    max_samples: int = 64
    """Samples shown with their pictures: the first ones, or with `losses` those of the largest
    loss. The others are listed."""
    token_shards: dict[str, str] = field(default_factory=dict)
    """Where a data set's shards are now, by its name (`main` where there is one), if they are
    no longer where the run read them."""
    text_tokenizer_dir: str | None = None
    """Where the run's text tokenizer is now; null is where the run read it."""
    image_tokenizer_dir: str | None = None
    """Where the run's image tokenizer is now; null is where the run read it."""
    cache_dir: str | None = None
    """Folder into which remote shards are copied; null is the run's."""

    def __post_init__(self) -> None:
        check_local_input(
            run=self.run,
            text_tokenizer_dir=self.text_tokenizer_dir,
            image_tokenizer_dir=self.image_tokenizer_dir,
        )
        check_local_output(output=self.output, cache_dir=self.cache_dir)
        if self.step < 1:
            raise InputError(f"step={self.step}: the first update makes step 1, set at least that")
        if self.max_samples < 1:
            raise InputError(f"max_samples={self.max_samples}: set at least 1")
