"""Settings of the programs that export weights or use exported ones."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    Matching,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError

Device = Annotated[
    str,
    Matching(pattern=r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", words="auto, cpu, cuda or cuda:INDEX"),
]
"""Device of a program that uses a trained model."""
DrawingPrecision = Literal["auto", "bf16", "fp32"]
"""Number format in which a trained transformer draws and writes."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Settings of launch/export.py."""

    run: LocalInput
    """Run folder of launch/pretrain.py or launch/train_image_tokenizer.py."""
    output_dir: LocalOutput
    """Weights folder to write, or folder of adapters."""
    step: PositiveInt | None = None
    """Step of the checkpoint; null takes the newest that verifies."""
    best: bool = False
    """Whether to take the best checkpoint by the run's validation.best, instead of a step."""
    average: bool = False
    """Whether to write the weights' moving average instead of the last step's weights; the run must
    have training.ema_decay above 0."""
    adapter: bool = False
    """Whether to write the adapters of a run with model.lora.rank above 0 alone, in the layout of
    the library peft, instead of weights that they are merged into."""
    overwrite: bool = False
    """Whether an existing folder may be replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best and self.step is not None:
            raise InputError(
                f"best=true with step={self.step}: leave one of them out, each names a checkpoint"
            )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Settings of launch/generate.py."""

    weights: LocalInput
    """Weights folder written by launch/export.py."""
    prompts: tuple[str, ...] = ()
    """Texts to draw."""
    prompts_file: LocalInput | None = None
    """File with one prompt per line, or captions.jsonl; instead of `prompts`."""
    output_dir: LocalOutput
    """Folder for `<prompt index>_<candidate>.png` and generations.jsonl."""
    images_per_prompt: PositiveInt = 1
    """Number of pictures per prompt."""
    temperature: NaturalFloat | None = None
    """Temperature: 0 draws the most likely code at every slot, 1 samples from the model. null is 0
    for one picture per prompt, and 1, as in the paper, for several, which must differ."""
    top_k: NaturalInt = 0
    """Number of most likely codes to sample from; 0 samples from all."""
    seed: NaturalInt = 0
    """Seed of the samples."""
    batch_size: PositiveInt = 64
    """Number of pictures drawn at once."""
    device: Device = "auto"
    """Device: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there is one."""
    precision: DrawingPrecision = "auto"
    """Number format of the transformer: fp32, bf16, or auto: bf16 on a GPU that has it, fp32
    elsewhere. The image tokenizer always computes in fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.prompts) == bool(self.prompts_file):
            raise InputError(
                f"prompts={list(self.prompts)} and prompts_file={self.prompts_file}: give one of "
                "the two"
            )

    @property
    def resolved_temperature(self) -> float:
        """Temperature, with null replaced by its number."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.images_per_prompt == 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Settings):
    """Settings of launch/caption.py."""

    weights: LocalInput
    """Weights folder written by launch/export.py."""
    images: LocalInput
    """Picture file, or a pattern such as 'pictures/*.png'; ** matches subfolders."""
    output: LocalOutput
    """File to write, one JSON object per picture."""
    temperature: NaturalFloat = 0.0
    """Temperature: 0 takes the most likely piece at every slot, 1 samples from the model."""
    seed: NaturalInt = 0
    """Seed of the samples."""
    batch_size: PositiveInt = 64
    """Number of pictures captioned at once."""
    max_pixels: PositiveInt = 64_000_000
    """Largest accepted picture, width times height."""
    device: Device = "auto"
    """Device: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there is one."""
    precision: DrawingPrecision = "auto"
    """Number format of the transformer: fp32, bf16, or auto: bf16 on a GPU that has it, fp32
    elsewhere. The image tokenizer always computes in fp32."""
