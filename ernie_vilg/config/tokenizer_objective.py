"""Settings of an image tokenizer's loss: pixels, perception, and a discriminator."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ernie_vilg.config.schema import (
    FractionBelowOne,
    LocalInput,
    Matching,
    MayChange,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError

Sha256 = Annotated[str, Matching(pattern="[0-9a-f]{64}", words="64 hexadecimal digits")]


_SMALLEST_GRID = 3
"""Smallest side that the discriminator's last two convolutions turn into a logit."""
_ORIGINS = {
    ("lpips", "weights"): "torchvision's vgg16 (vgg16-397923af.pth)",
    ("lpips", "linear_weights"): "lpips/weights/v0.1/vgg.pth of the package lpips",
    ("resnet50", "weights"): "torchvision's resnet50, IMAGENET1K_V1 (resnet50-0676ba61.pth)",
}
"""Files that people have, by features and setting."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Settings, section="objective.perceptual"):
    """A distance of features."""

    features: Literal["none", "lpips", "resnet50", "gradients", "random"] = "none"
    """Features: "lpips" of VGG16 with LPIPS's weights (arXiv:1801.03924), "resnet50" logits, as
    MaskBit (arXiv:2409.16211); both need `weights`. Without weights: "gradients" of the pixels at
    several scales, or "random" features of fixed random convolutions; both keep edges and textures,
    and know nothing of objects."""
    weight: NaturalFloat = 1.0
    """Weight of the distance."""
    weights: MayChange[LocalInput | None] = None
    """File of the network's weights (.safetensors, or a .pth that holds tensors alone)."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match."""
    linear_weights: MayChange[LocalInput | None] = None
    """File of LPIPS's linear layers, with features=lpips."""
    linear_weights_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"lpips": ("weights", "linear_weights"), "resnet50": ("weights",)}
        for name in ("weights", "linear_weights"):
            self._check_file(name, is_needed=name in needed.get(self.features, ()))

    def _check_file(self, name: str, *, is_needed: bool) -> None:
        key, hash_name = f"objective.perceptual.{name}", f"{name}_sha256"
        for setting in (name, hash_name):
            value = getattr(self, setting)
            if is_needed and not value:
                raise InputError(
                    f"objective.perceptual.{setting} is null with features={self.features}: set "
                    f"{key} to {_ORIGINS[self.features, name]} and {key}_sha256 to the file's "
                    "SHA-256 (sha256sum FILE); features=gradients or random need no file"
                )
            if value is not None and not is_needed:
                raise InputError(
                    f"objective.perceptual.{setting}={value} with features={self.features}, which "
                    f"reads no such file: set it to null, or other features"
                )


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Settings, section="objective.adversarial"):
    """A PatchGAN discriminator, and its part in the tokenizer's loss."""

    weight: NaturalFloat = 0.0
    """Weight of the adversarial term; 0 trains no discriminator."""
    adaptive: bool = True
    """Whether the weight is multiplied by the ratio of the gradients that pixels and discriminator
    give the decoder's last layer (VQGAN, equation 7)."""
    max_adaptive_factor: PositiveFloat = 10_000.0
    """Largest such ratio."""
    train_from_step: NaturalInt = 0
    """Step after which the discriminator trains."""
    start_step: NaturalInt = 0
    """Step after which its term counts; later than `train_from_step`, so that it has learnt by
    then."""
    warmup_steps: NaturalInt = 0
    """Number of steps over which the term's weight rises from 0 after `start_step`."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """Loss of discriminator and generator."""
    lecam_weight: NaturalFloat = 0.0
    """Weight of the LeCAM regulariser (arXiv:2104.03310) in the discriminator's loss."""
    lecam_decay: FractionBelowOne = 0.999
    """Decay per step of its averages."""
    base_channels: PositiveInt = 64
    """Number of channels after the discriminator's first convolution."""
    num_layers: PositiveInt = 3
    """Number of convolutions that halve the resolution; each logit sees a square of pixels, 70 a
    side with 3, 34 with 2."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of the discriminator; null takes the tokenizer's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight and self.start_step < self.train_from_step:
            raise InputError(
                f"objective.adversarial.start_step={self.start_step} comes before "
                f"objective.adversarial.train_from_step={self.train_from_step}: the term of an "
                "untrained discriminator misleads the tokenizer, so set the former to at least "
                "the latter"
            )

    def check_image_size(self, image_size: int) -> None:
        """Check that the discriminator has a logit for pictures of this size.

        Raises:
            InputError: the pictures are too small for its layers.
        """
        if self.weight and image_size >> self.num_layers < _SMALLEST_GRID:
            fitting = (image_size // _SMALLEST_GRID).bit_length() - 1
            raise InputError(
                f"objective.adversarial.num_layers={self.num_layers} with "
                f"image_tokenizer.image_size={image_size}: the discriminator would have no logit; "
                + (f"set num_layers to at most {fitting}" if fitting > 0 else "set weight=0")
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerObjectiveConfig(Settings, section="objective"):
    """Terms of an image tokenizer's loss but for the codebook's. Pixels are in [-1, 1]."""

    absolute_error_weight: NaturalFloat = 1.0
    """Weight of the mean absolute error, which keeps edges sharp."""
    squared_error_weight: NaturalFloat = 1.0
    """Weight of the mean squared error, which PSNR measures."""
    input_noise: NaturalFloat = 0.0
    """Standard deviation of the noise that the encoder's pictures get in training, of pixels in
    [-1, 1]; the loss compares with the pictures without it. Codes then depend less on compression
    and on who drew a picture."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """Distance of features."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Discriminator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.absolute_error_weight + self.squared_error_weight == 0:
            raise InputError(
                "objective.absolute_error_weight=0 with objective.squared_error_weight=0: one of "
                "them must be above 0, or the loss ignores the picture"
            )
