"""Settings of the trackers, which get a run's metrics and pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ernie_vilg.config.schema import Matching, PositiveFloat, Settings

Label = Annotated[
    str,
    Matching(
        pattern=r"\S(.{0,126}\S)?", words="1 to 128 characters on one line, no space first or last"
    ),
]
"""A name that W&B shows."""
Tag = Annotated[
    str,
    Matching(pattern=r"\S(.{0,62}\S)?", words="tags of 1 to 64 characters, no space first or last"),
]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Settings, section="tracking"):
    """Weights & Biases, and TensorBoard. The run folder's `metrics.jsonl` is always written."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """online, offline, disabled, or auto: online with a login (WANDB_API_KEY or netrc), else
    offline."""
    project: Label = "ernie_vilg"
    """W&B project."""
    experiment: Label | None = None
    """Name of what the run is part of; null takes the file that experiment= chooses, for an image
    tokenizer that of image_tokenizer=. Group and name are made of it."""
    name: Label | None = None
    """W&B run name; null takes the experiment and the name of the run folder."""
    group: Label | None = None
    """W&B group; null takes the experiment."""
    job_type: Label = "pretrain"
    """W&B job type, which tells the runs of a group apart."""
    tags: tuple[Tag, ...] = ()
    """W&B tags."""
    notes: str | None = None
    """W&B notes, a text of any length."""
    system_statistics: bool = False
    """Whether W&B samples processors, memory, disk, network and GPUs of the first machine every
    15 seconds."""
    finish_seconds: PositiveFloat = 15.0
    """Seconds that the end of a run waits for W&B. `wandb sync` sends the rest later, from the run
    folder."""
    tensorboard: bool = False
    """Whether the same figures and pictures go to the event files in the run folder's tensorboard/;
    needs pip install 'ernie-vilg[tensorboard]'."""

    def name_of(self, run_dir: str) -> str:
        """Return the run's name: experiment and folder, or the folder alone if they are equal."""
        folder = Path(run_dir).name
        if self.name is not None:
            return self.name
        return f"{self.experiment}-{folder}" if self.experiment not in (None, folder) else folder
