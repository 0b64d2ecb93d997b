"""Settings of validation: the losses of held-out pairs during training."""

from dataclasses import dataclass, field

from ernie_vilg.config.data import NAME
from ernie_vilg.config.schema import LocalOrRemote, NaturalInt, PositiveInt, Settings
from ernie_vilg.errors import InputError

AVERAGE = "average"
"""Part of a figure's name that tells the average weights' from the weights'."""
_FIGURES = ("loss", "loss_text_to_image", "loss_image_to_text")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Settings, section="validation"):
    """Held-out losses in both directions, and the best checkpoint by one of them."""

    every: NaturalInt = 0
    """Interval of validations, steps; the last step is validated too; 0 turns them off."""
    shards: dict[str, LocalOrRemote] = field(default_factory=dict)
    """Folders or URLs of held-out pairs, written by launch/encode_shards.py, by name."""
    pairs: PositiveInt | None = 1024
    """Number of pairs of each set, chosen by chance and the same at every validation of any run;
    null, or more than there are, takes all. Every replica keeps its share in memory."""
    best: str | None = None
    """Figure whose lowest value names the best checkpoint, which is kept beside the newest:
    NAME/loss, NAME/loss_text_to_image or NAME/loss_image_to_text of a set, or the same of the
    average weights, as NAME/average/loss. Steps compete at which a run validates and saves."""
    patience: NaturalInt = 0
    """Number of competing validations in a row without a new lowest value after which the run is
    complete; 0: it makes all its steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.shards:
            if not NAME.fullmatch(name):
                raise InputError(
                    f"validation.shards has {name!r}: a name has letters, digits, - and _ alone"
                )
        if self.every and not self.shards:
            raise InputError(
                f"validation.every={self.every} needs held-out pairs: name folders of token shards "
                "in validation.shards, as in '+validation.shards.held_out=FOLDER', or set "
                "validation.every=0"
            )
        if self.best is not None:
            self._check_best(self.best)
        elif self.patience:
            raise InputError(
                f"validation.patience={self.patience} needs validation.best, the figure to wait "
                "for, such as held_out/loss; or set validation.patience=0"
            )

    @property
    def is_of_average(self) -> bool:
        """Whether the best checkpoint is that of the average weights' figure."""
        return self.best is not None and f"/{AVERAGE}/" in self.best

    def setting_of(self, name: str) -> str:
        """Return the key of a set's location."""
        return f"validation.shards.{name}"

    def _check_best(self, best: str) -> None:
        choices = [
            f"{name}/{kind}{figure}"
            for name in self.shards
            for kind in ("", f"{AVERAGE}/")
            for figure in _FIGURES
        ]
        if not self.every or best not in choices:
            raise InputError(
                f"validation.best={best} with validation.every={self.every}: "
                + (f"choose {', '.join(choices)}" if self.every else "nothing is validated")
            )
