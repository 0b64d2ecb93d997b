"""The settings of the measurement, the generators, and the rows of the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

Pictures = list[Image.Image]
Figures = dict[str, float]

LONGER = "two_stage_longer"
PREDICTION = "end_to_end_prediction"
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 50
BATCH_PAIRS = 32
GENERATORS: Mapping[str, Sequence[str]] = {
    "two_stage": ["model.reconstructor.kind=two_stage"],
    "end_to_end": [
        "model.reconstructor.kind=end_to_end",
        "model.reconstructor.hidden_position=input",
    ],
    PREDICTION: [
        "model.reconstructor.kind=end_to_end",
        "model.reconstructor.hidden_position=prediction",
    ],
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the measurement; a folder holds one measurement."""

    seeds: int
    """Number of seeds, from 0: each decides weights and order of a tokenizer and its generators."""
    prediction_seeds: int
    """Number of first seeds that also train the second reading of `hidden_position`."""
    steps: int
    """Steps of each generator, each with 32 pairs."""
    tokenizer_steps: int
    """Steps of each image tokenizer, each with 32 pictures."""
    codebook_size: int
    """Number of image codes."""
    patch_size: int
    """Side of the square of pixels that a code stands for."""
    train_scenes: int
    """Number of training pairs."""
    held_out_scenes: int
    """Number of unseen pairs to draw."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    codes: str
    """Source of the codes: a generator, or gold."""
    reconstructor: str
    """Maker of the pictures: two_stage, the frozen tokenizer; two_stage_longer, its decoder after
    `train_decoder_longer`; otherwise the model of that name."""

    @property
    def name(self) -> str:
        """Name of the row, such as `two_stage / two_stage`."""
        return f"{self.codes} / {self.reconstructor}"

    @property
    def is_shown(self) -> bool:
        """Whether the row is a column of the picture; rows of the second reading are not."""
        return PREDICTION not in (self.codes, self.reconstructor)


ROWS = (
    Row(codes="two_stage", reconstructor="two_stage"),
    Row(codes="end_to_end", reconstructor="two_stage"),
    Row(codes="end_to_end", reconstructor="end_to_end"),
    Row(codes="gold", reconstructor="two_stage"),
    Row(codes="gold", reconstructor="end_to_end"),
    Row(codes="two_stage", reconstructor=LONGER),
    Row(codes="gold", reconstructor=LONGER),
    Row(codes=PREDICTION, reconstructor="two_stage"),
    Row(codes=PREDICTION, reconstructor=PREDICTION),
    Row(codes="gold", reconstructor=PREDICTION),
)

DIFFERENCES = (
    ("generator alone", ROWS[1], ROWS[0]),
    ("reconstructor alone", ROWS[2], ROWS[1]),
    ("both", ROWS[2], ROWS[0]),
    ("gold codes", ROWS[4], ROWS[3]),
    ("gold codes, decoder trained as long", ROWS[4], ROWS[6]),
)
"""Title, row, and the row to subtract from it, seed by seed."""


def generators_of(seed: int, settings: Settings) -> list[str]:
    """Return the generators that are trained for a seed."""
    return [name for name in GENERATORS if name != PREDICTION or seed < settings.prediction_seeds]
