"""Settings of the programs that exchange image tokenizers with other code."""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import LocalInput, LocalOutput, PositiveInt, Settings
from ernie_vilg.config.tokenizer_objective import Sha256

ForeignLayout = Literal["taming", "llamagen"]
"""Names of weights and of the file's parts: those of CompVis/taming-transformers, or those of
FoundationVision/LlamaGen."""


@dataclass(frozen=True, kw_only=True)
class ImportImageTokenizerConfig(Settings):
    """Settings of launch/import_image_tokenizer.py."""

    checkpoint: LocalInput
    """File of a trained VQGAN: .ckpt, .pt, .pth or .safetensors."""
    checkpoint_sha256: Sha256 | None = None
    """SHA-256 of that file, which must match; null accepts any."""
    layout: Literal["auto", "taming", "llamagen"] = "auto"
    """Names of the weights: those of taming-transformers or of LlamaGen; auto recognises them."""
    weights: Literal["auto", "ema", "model", "state_dict"] = "auto"
    """Part of the file that holds the weights; auto takes ema (the average) if there is one, else
    model, else state_dict, else the whole file."""
    model_config: LocalInput | None = None
    """File of the model's settings in taming's form (.yaml); what it says is checked against the
    weights."""
    image_size: PositiveInt | None = None
    """Pixels per side of the pictures that it was trained on, which weights do not tell; null takes
    it from `model_config`."""
    quantizer: Literal["auto", "nearest", "normalized", "ema", "gumbel"] = "auto"
    """Rule of the codes; auto recognises gumbel and ema by their weights, and takes nearest for
    taming, normalized for LlamaGen, where weights do not tell."""
    picture: LocalInput | None = None
    """Picture to encode and decode after the import, to look at; its sides are cut to multiples of
    the downsampling factor."""
    output_dir: LocalOutput
    """Folder of the image tokenizer to write; with `picture`, its reconstruction stands beside it,
    as OUTPUT_DIR_reconstruction.png."""
    overwrite: bool = False
    """Whether a folder that is there is replaced."""


@dataclass(frozen=True, kw_only=True)
class ExportImageTokenizerConfig(Settings):
    """Settings of launch/export_image_tokenizer.py."""

    image_tokenizer_dir: LocalInput
    """Folder of the image tokenizer."""
    layout: ForeignLayout = "taming"
    """Names of the weights: those of taming-transformers, or those of LlamaGen."""
    output_file: LocalOutput
    """Checkpoint to write (.ckpt, .pt or .pth), which holds tensors alone."""
    overwrite: bool = False
    """Whether a file that is there is replaced."""
