"""The transformer's shape and the weights of its two objectives.

Source: the shapes of ERNIE-ViLG (arXiv:2112.15283, sections 4.1 and 5).
"""

import math
from dataclasses import dataclass, field
from typing import Any

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS

ATTENTIONS = ("full", "sparse")
ROW_PATTERNS = ("raster", "block")
RESIDUAL_SCALINGS = ("none", "initializer", "branch")
RECONSTRUCTORS = ("two_stage", "end_to_end")
HIDDEN_POSITIONS = ("input", "prediction")


@dataclass(frozen=True, kw_only=True)
class ReconstructorConfig:
    """How pictures are made from what the transformer writes (paper, section 3.1.3)."""

    kind: str = "two_stage"
    """two_stage: codes are looked up in the codebook and decoded by the frozen image tokenizer.
    end_to_end: the last layer's hidden states at the image slots are mapped to the decoder's
    inputs, and the decoder is trained with the transformer."""
    hidden_position: str = "input"
    """Which hidden state stands for a code: that of the slot where it is the input, as the
    paper's words read, or of the slot where it is the prediction. The paper does not say.
    "input" takes one slot more per sequence, in which the last code is the input."""
    initialize_decoder: bool = True
    """Whether the decoder starts at the image tokenizer's weights; without, at fresh ones. The
    paper does not say."""
    decoder: ImageTokenizerConfig | None = None
    """The decoder's architecture; null takes that of data.image_tokenizer."""

    def __post_init__(self) -> None:
        _require_choice("model.reconstructor.kind", self.kind, RECONSTRUCTORS)
        _require_choice(
            "model.reconstructor.hidden_position", self.hidden_position, HIDDEN_POSITIONS
        )

    @property
    def is_end_to_end(self) -> bool:
        """Whether the transformer is trained through a decoder."""
        return self.kind == "end_to_end"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One transformer for both directions, over `[text slots | image slots]`."""

    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Transformer blocks."""
    num_heads: int
    """Attention heads per block; must divide `hidden_size`."""
    ffn_multiplier: int = 4
    """Width of the feed-forward layer over `hidden_size`."""
    text_vocab_size: int
    """Rows of the text embedding; at least the text tokenizer's number of pieces."""
    text_length: int
    """Text slots per sequence, the end of text included."""
    codebook_size: int
    """Image codes; equals the image tokenizer's."""
    image_grid_size: int
    """Image tokens along one side; equals the image tokenizer's."""
    layer_norm_epsilon: float = 1.0e-5
    """Added to the variance in every layer norm."""
    initializer_std: float = 0.02
    """Standard deviation of fresh weights."""
    attention: str = "full"
    """full: every image slot sees all image slots that its direction allows. sparse: one of
    the row, column and convolutional patterns per layer (paper, section 3.1.2)."""
    row_pattern: str = "raster"
    """Of the sparse row layers in text-to-image. raster: the slots of one row's length before
    the query, reaching the one above it, as in DALL-E. block: the query's own row alone. The
    paper does not say which its "block-wise" is."""
    convolution_size: int = 11
    """Side of the square around the query that the sparse last layer sees; odd."""
    tied_embeddings: bool = False
    """Whether the output projections are the embedding tables."""
    qk_norm: bool = False
    """Whether queries and keys go through a layer norm per head (ViT-22B, arXiv:2302.05442)."""
    sandwich_norm: bool = False
    """Whether attention and feed-forward also end in a layer norm (CogView, arXiv:2105.13290)."""
    pb_relax: float = 0.0
    """Divides the queries before, and multiplies the scores in float32 after, their product with
    the keys, so that the product cannot overflow (CogView; 32 there). 0 leaves it out."""
    residual_scaling: str = "initializer"
    """What keeps the residual stream's variance from growing with depth. initializer: fresh
    weights of layers that write to it are divided by sqrt(2 * num_layers), as in GPT-2. branch:
    what they write is divided by it, always. none: nothing."""
    dropout: float = 0.0
    """Share of values set to zero, in training, in the embeddings and in what attention and
    feed-forward write to the residual stream."""
    block_gradient_scale: float = 1.0
    """Multiplies gradients inside each block's branches, and divides those of their weights, so
    that they do not vanish in float16 (DALL-E, arXiv:2102.12092, section 2.4). A power of two;
    for precision=fp16 only."""
    reconstructor: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    """How pictures are made."""

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "ffn_multiplier",
            "codebook_size",
            "image_grid_size",
            "convolution_size",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}={getattr(self, name)}: must be at least 1")
        for name in ("layer_norm_epsilon", "initializer_std"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name}={getattr(self, name)}: must be above 0")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size="
                f"{self.hidden_size}: choose a divisor, so that every head has the same width"
            )
        _require_choice("model.attention", self.attention, ATTENTIONS)
        _require_choice("model.row_pattern", self.row_pattern, ROW_PATTERNS)
        _require_choice("model.residual_scaling", self.residual_scaling, RESIDUAL_SCALINGS)
        if self.convolution_size % 2 == 0:
            raise InputError(
                f"model.convolution_size={self.convolution_size}: choose an odd number, so that "
                "the query stands in the middle"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout}: must be from 0 to below 1")
        if self.pb_relax < 0:
            raise InputError(f"model.pb_relax={self.pb_relax}: must be 0 (off) or above")
        if self.block_gradient_scale <= 0 or math.frexp(self.block_gradient_scale)[0] != 0.5:
            raise InputError(
                f"model.block_gradient_scale={self.block_gradient_scale}: choose a power of two, "
                "such as 1024, so that scaling rounds nothing"
            )
        if self.text_length < 2:
            raise InputError(
                f"model.text_length={self.text_length}: at least 2 slots are needed, one piece "
                "and the end of text"
            )
        if self.text_vocab_size <= NUM_SPECIAL_IDS:
            raise InputError(
                f"model.text_vocab_size={self.text_vocab_size}: the first {NUM_SPECIAL_IDS} ids "
                "are special, choose at least the text tokenizer's number of pieces"
            )
        if self.codebook_size > 1 << 16:
            raise InputError(
                f"model.codebook_size={self.codebook_size}: token shards store 16-bit codes, "
                f"choose at most {1 << 16}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_image_tokens(self) -> int:
        """Image codes per picture."""
        return self.image_grid_size**2

    @property
    def num_image_slots(self) -> int:
        """Image slots per sequence: one per code, and the one in which the last code is the
        input where the reconstructor needs it.
        """
        reconstructor = self.reconstructor
        needs_last = reconstructor.is_end_to_end and reconstructor.hidden_position == "input"
        return self.num_image_tokens + needs_last

    @property
    def seq_length(self) -> int:
        """Slots per sequence, text and image."""
        return self.text_length + self.num_image_slots


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training loss, `w_ti * L_txt2img + w_it * L_img2txt` (paper, equation 5).

    Each term is a mean over its target tokens, not the paper's plain sum, whose 1,024 image
    terms would drown some tens of text terms. The paper's weights are both 1.
    """

    text_to_image_weight: float = 1.0
    """Weight of the mean negative log-likelihood of image codes given text."""
    image_to_text_weight: float = 1.0
    """Weight of the mean negative log-likelihood of text pieces given image codes."""
    z_loss_weight: float = 0.0
    """Weight of the mean squared logarithm of the softmax's denominator, in both directions,
    which keeps logits from drifting (PaLM, arXiv:2204.02311: 1e-4)."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction, with `reconstructor=end_to_end`."""
    absolute_error_weight: float = 1.0
    """In the reconstruction, of the mean absolute error; pixels are in [-1, 1]. The paper does
    not state the form of its reconstruction loss."""
    squared_error_weight: float = 1.0
    """In the reconstruction, of the mean squared error."""

    def __post_init__(self) -> None:
        weights = (self.text_to_image_weight, self.image_to_text_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise InputError(
                f"objective.text_to_image_weight={weights[0]}, objective.image_to_text_weight="
                f"{weights[1]}: weights must not be negative, and one must be above 0"
            )
        for name in (
            "z_loss_weight",
            "reconstruction_weight",
            "absolute_error_weight",
            "squared_error_weight",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"objective.{name}={getattr(self, name)}: must not be negative")


def model_config_from_json(content: Any) -> ModelConfig:
    """Return the settings that `dataclasses.asdict` made JSON of.

    Raises:
        InputError: they are not a model's.
    """
    return from_json(content, ModelConfig, "model")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value}: choose {' or '.join(choices)}")
