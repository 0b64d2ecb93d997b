"""Settings of the programs that use exported weights, and of the one that exports them.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of launch/export.py."""

    run: str
    """Run folder of launch/pretrain.py; its newest checkpoint that verifies is exported."""
    output_dir: str
    """The weights folder to write."""
    average: bool = False
    """Whether to write the moving average of the weights instead of those of the last step; the
    run must have been trained with training.ema_decay above 0."""
    overwrite: bool = False
    """Whether an existing weights folder may be replaced."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Settings of launch/generate.py."""

    weights: str
    """Weights folder written by launch/export.py."""
    prompts: tuple[str, ...] = ()
    """Texts to draw."""
    prompts_file: str | None = None
    """A file with one prompt per line, or captions.jsonl; instead of `prompts`."""
    output_dir: str
    """Folder for `<prompt index>_<candidate>.png` and generations.jsonl."""
    images_per_prompt: int = 1
    """Pictures per prompt."""
    temperature: float | None = None
    """0 draws the likeliest code at every slot, 1 samples from the model. null is 0 for one
    image per prompt, and 1, the paper's, for several, which would else all be the same."""
    top_k: int = 0
    """Sample among this many likeliest codes only; 0 among all."""
    seed: int = 0
    """Names the draws."""
    batch_size: int = 64
    """Pictures drawn at once."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        if bool(self.prompts) == bool(self.prompts_file):
            raise InputError(
                f"prompts={list(self.prompts)} and prompts_file={self.prompts_file}: give one of "
                "the two"
            )
        _check_generation(self.batch_size, self.device)
        if self.images_per_prompt < 1:
            raise InputError(f"images_per_prompt={self.images_per_prompt}: must be at least 1")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}: must be 0 (all codes) or above")
        if self.temperature is not None and self.temperature < 0:
            raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or above")

    @property
    def resolved_temperature(self) -> float:
        """The temperature with null replaced by what it stands for."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.images_per_prompt == 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Settings of launch/caption.py."""

    weights: str
    """Weights folder written by launch/export.py."""
    images: str
    """A picture file, or a pattern of them, such as 'pictures/*.png'; ** goes into subfolders."""
    output: str
    """File to write, one JSON object per picture."""
    temperature: float = 0.0
    """0 takes the likeliest piece at every slot, 1 samples from the model."""
    seed: int = 0
    """Names the captions."""
    batch_size: int = 64
    """Pictures captioned at once."""
    max_pixels: int = 64_000_000
    """Largest picture that is opened, width times height."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        _check_generation(self.batch_size, self.device)
        if self.temperature < 0:
            raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if self.max_pixels < 1:
            raise InputError(f"max_pixels={self.max_pixels}: must be at least 1")


def _check_generation(batch_size: int, device: str) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device}: choose auto, cpu or cuda")
