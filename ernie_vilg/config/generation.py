"""Settings of the programs that use exported weights, and of the one that exports them.

Source: ours.
"""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Settings of launch/export.py."""

    run: LocalInput
    """Run folder of launch/pretrain.py; its newest checkpoint that verifies is exported."""
    output_dir: LocalOutput
    """The weights folder to write."""
    average: bool = False
    """Whether to write the moving average of the weights instead of those of the last step; the
    run must have been trained with training.ema_decay above 0."""
    overwrite: bool = False
    """Whether an existing weights folder may be replaced."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Settings of launch/generate.py."""

    weights: LocalInput
    """Weights folder written by launch/export.py."""
    prompts: tuple[str, ...] = ()
    """Texts to draw."""
    prompts_file: LocalInput | None = None
    """A file with one prompt per line, or captions.jsonl; instead of `prompts`."""
    output_dir: LocalOutput
    """Folder for `<prompt index>_<candidate>.png` and generations.jsonl."""
    images_per_prompt: PositiveInt = 1
    """Pictures per prompt."""
    temperature: NaturalFloat | None = None
    """0 draws the likeliest code at every slot, 1 samples from the model. null is 0 for one
    image per prompt, and 1, the paper's, for several, which would else all be the same."""
    top_k: NaturalInt = 0
    """Sample among this many likeliest codes only; 0 among all."""
    seed: NaturalInt = 0
    """Names the draws."""
    batch_size: PositiveInt = 64
    """Pictures drawn at once."""
    device: Device = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.prompts) == bool(self.prompts_file):
            raise InputError(
                f"prompts={list(self.prompts)} and prompts_file={self.prompts_file}: give one of "
                "the two"
            )

    @property
    def resolved_temperature(self) -> float:
        """The temperature with null replaced by what it stands for."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.images_per_prompt == 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Settings):
    """Settings of launch/caption.py."""

    weights: LocalInput
    """Weights folder written by launch/export.py."""
    images: LocalInput
    """A picture file, or a pattern of them, such as 'pictures/*.png'; ** goes into subfolders."""
    output: LocalOutput
    """File to write, one JSON object per picture."""
    temperature: NaturalFloat = 0.0
    """0 takes the likeliest piece at every slot, 1 samples from the model."""
    seed: NaturalInt = 0
    """Names the captions."""
    batch_size: PositiveInt = 64
    """Pictures captioned at once."""
    max_pixels: PositiveInt = 64_000_000
    """Largest picture that is opened, width times height."""
    device: Device = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""
