"""Settings of launch/evaluate_image_tokenizer.py."""

from dataclasses import dataclass

from ernie_vilg.config.generation import Device, DrawingPrecision
from ernie_vilg.config.schema import LocalInput, LocalOutput, NaturalInt, PositiveInt, Settings
from ernie_vilg.config.tokenizer_objective import Sha256
from ernie_vilg.errors import InputError

_ORIGINS = {
    "vgg16_weights": "torchvision's vgg16 (vgg16-397923af.pth)",
    "lpips_weights": "lpips/weights/v0.1/vgg.pth of the package lpips",
    "inception_weights": "pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
}
"""Files that people have, by setting."""


@dataclass(frozen=True, kw_only=True)
class EvaluateImageTokenizerConfig(Settings):
    """Settings of launch/evaluate_image_tokenizer.py."""

    weights: LocalInput
    """Folder of the image tokenizer, such as the `weights/` of its run."""
    shards: LocalInput
    """Folder of image shards that the tokenizer was not trained on. Pictures larger than the
    tokenizer's are cut at the centre."""
    output_dir: LocalOutput
    """Folder for `figures.json`, `report.html` and the pictures."""
    pictures: PositiveInt | None = None
    """Number of pictures, the first of the shards; null takes all."""
    batch_size: PositiveInt = 32
    """Number of pictures that are encoded and decoded at once."""
    device: Device = "auto"
    """Device: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there is one."""
    precision: DrawingPrecision = "fp32"
    """Number format of the tokenizer: fp32, bf16, or auto: bf16 on a GPU that has it, fp32
    elsewhere. The networks of the figures compute in fp32."""
    decode_threads: PositiveInt = 1
    """Number of threads that decode the next pictures meanwhile."""
    vgg16_weights: LocalInput | None = None
    """File of VGG16's weights for LPIPS, under torchvision's names (.pth or .safetensors)."""
    vgg16_weights_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match."""
    lpips_weights: LocalInput | None = None
    """File of LPIPS's linear layers for VGG16."""
    lpips_weights_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match."""
    inception_weights: LocalInput | None = None
    """File of the weights of TensorFlow's Inception for rFID, under pytorch-fid's names."""
    inception_weights_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match."""
    examples: PositiveInt = 12
    """Number of pictures of each kind in the report: worst, median and best reconstructions, most
    and least used codes."""
    seed: NaturalInt = 0
    """Seed of the draws of the confidence intervals."""
    overwrite: bool = False
    """Whether an evaluation already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vgg16_weights", "lpips_weights", "inception_weights"):
            path, sha256 = getattr(self, name), getattr(self, f"{name}_sha256")
            if (path is None) != (sha256 is None):
                raise InputError(
                    f"{name}={path} with {name}_sha256={sha256}: set both, the latter to the "
                    "file's SHA-256 (sha256sum FILE), or neither"
                )
        if (self.vgg16_weights is None) != (self.lpips_weights is None):
            missing = "lpips_weights" if self.lpips_weights is None else "vgg16_weights"
            raise InputError(
                f"{missing} is null: LPIPS needs vgg16_weights and lpips_weights, so set it to "
                f"{_ORIGINS[missing]}, or the other to null"
            )

    def missing_figures(self) -> dict[str, str]:
        """Return the figures that are not measured, each with the settings it needs."""
        needed = {
            "lpips": {"vgg16_weights": self.vgg16_weights, "lpips_weights": self.lpips_weights},
            "rfid": {"inception_weights": self.inception_weights},
        }
        return {
            figure: " and ".join(f"{name} is null: {_ORIGINS[name]}" for name in files)
            for figure, files in needed.items()
            if None in files.values()
        }
