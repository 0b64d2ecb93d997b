"""The transformer's shape and the weights of its two objectives.

Source: the shapes of ERNIE-ViLG (arXiv:2112.15283, sections 4.1 and 5).
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ernie_vilg.config.image_tokenizer import CodebookSize, ImageTokenizerConfig
from ernie_vilg.config.schema import (
    NaturalFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Settings,
    ShareBelowOne,
    from_json,
)
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS


@dataclass(frozen=True, kw_only=True)
class ReconstructorConfig(Settings, section="model.reconstructor"):
    """How pictures are made from what the transformer writes (paper, section 3.1.3)."""

    kind: Literal["two_stage", "end_to_end"] = "two_stage"
    """two_stage: codes are looked up in the codebook and decoded by the frozen image tokenizer.
    end_to_end: the last layer's hidden states at the image slots are mapped to the decoder's
    inputs, and the decoder is trained with the transformer."""
    hidden_position: Literal["input", "prediction"] = "input"
    """Which hidden state stands for a code: that of the slot where it is the input, as the
    paper's words read, or of the slot where it is the prediction. The paper does not say.
    "input" takes one slot more per sequence, in which the last code is the input."""
    initialize_decoder: bool = True
    """Whether the decoder starts at the image tokenizer's weights; without, at fresh ones. The
    paper does not say."""
    decoder: ImageTokenizerConfig | None = None
    """The decoder's architecture; null takes that of data.image_tokenizer."""

    @property
    def is_end_to_end(self) -> bool:
        """Whether the transformer is trained through a decoder."""
        return self.kind == "end_to_end"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings, section="model"):
    """One transformer for both directions, over `[text slots | image slots]`."""

    hidden_size: Annotated[int, Range(at_least=1, at_most=1 << 20)]
    """Width of the residual stream."""
    num_layers: Annotated[int, Range(at_least=1, at_most=1000)]
    """Transformer blocks."""
    num_heads: PositiveInt
    """Attention heads per block; must divide `hidden_size`."""
    ffn_multiplier: Annotated[int, Range(at_least=1, at_most=1024)] = 4
    """Width of the feed-forward layer over `hidden_size`."""
    text_vocab_size: Annotated[
        int, Range(above=NUM_SPECIAL_IDS, at_most=1 << 26, reason="special ids come first")
    ]
    """Rows of the text embedding; at least the text tokenizer's number of pieces."""
    text_length: Annotated[
        int, Range(at_least=2, at_most=1 << 20, reason="one piece and the end of text")
    ]
    """Text slots per sequence, the end of text included."""
    codebook_size: CodebookSize
    """Image codes; equals the image tokenizer's."""
    image_grid_size: Annotated[int, Range(at_least=1, at_most=1024)]
    """Image tokens along one side; equals the image tokenizer's."""
    layer_norm_epsilon: PositiveFloat = 1.0e-5
    """Added to the variance in every layer norm."""
    initializer_std: PositiveFloat = 0.02
    """Standard deviation of fresh weights."""
    attention: Literal["full", "sparse"] = "full"
    """full: every image slot sees all image slots that its direction allows. sparse: one of
    the row, column and convolutional patterns per layer (paper, section 3.1.2)."""
    row_pattern: Literal["raster", "block"] = "raster"
    """Of the sparse row layers in text-to-image. raster: the slots of one row's length before
    the query, reaching the one above it, as in DALL-E. block: the query's own row alone. The
    paper does not say which its "block-wise" is."""
    convolution_size: PositiveInt = 11
    """Side of the square around the query that the sparse last layer sees; odd."""
    tied_embeddings: bool = False
    """Whether the output projections are the embedding tables."""
    qk_norm: bool = False
    """Whether queries and keys go through a layer norm per head (ViT-22B, arXiv:2302.05442)."""
    sandwich_norm: bool = False
    """Whether attention and feed-forward also end in a layer norm (CogView, arXiv:2105.13290)."""
    pb_relax: NaturalFloat = 0.0
    """Divides the queries before, and multiplies the scores in float32 after, their product with
    the keys, so that the product cannot overflow (CogView; 32 there). 0 leaves it out."""
    residual_scaling: Literal["none", "initializer", "branch"] = "initializer"
    """What keeps the residual stream's variance from growing with depth. initializer: fresh
    weights of layers that write to it are divided by sqrt(2 * num_layers), as in GPT-2. branch:
    what they write is divided by it, always. none: nothing."""
    dropout: ShareBelowOne = 0.0
    """Share of values set to zero, in training, in the embeddings and in what attention and
    feed-forward write to the residual stream."""
    block_gradient_scale: PositiveFloat = 1.0
    """Multiplies gradients inside each block's branches, and divides those of their weights, so
    that they do not vanish in float16 (DALL-E, arXiv:2102.12092, section 2.4). A power of two;
    for precision=fp16 only."""
    reconstructor: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    """How pictures are made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size="
                f"{self.hidden_size}: choose a divisor, so that every head has the same width"
            )
        if self.convolution_size % 2 == 0:
            raise InputError(
                f"model.convolution_size={self.convolution_size}: choose an odd number, so that "
                "the query stands in the middle"
            )
        if math.frexp(self.block_gradient_scale)[0] != 0.5:
            raise InputError(
                f"model.block_gradient_scale={self.block_gradient_scale}: choose a power of two, "
                "such as 1024, so that scaling rounds nothing"
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
class ObjectiveConfig(Settings, section="objective"):
    """The training loss, `w_ti * L_txt2img + w_it * L_img2txt` (paper, equation 5).

    Each term is a mean over its target tokens, not the paper's plain sum, whose 1,024 image
    terms would drown some tens of text terms. The paper's weights are both 1.
    """

    text_to_image_weight: NaturalFloat = 1.0
    """Weight of the mean negative log-likelihood of image codes given text."""
    image_to_text_weight: NaturalFloat = 1.0
    """Weight of the mean negative log-likelihood of text pieces given image codes."""
    z_loss_weight: NaturalFloat = 0.0
    """Weight of the mean squared logarithm of the softmax's denominator, in both directions,
    which keeps logits from drifting (PaLM, arXiv:2204.02311: 1e-4)."""
    reconstruction_weight: NaturalFloat = 1.0
    """Weight of the reconstruction, with `reconstructor=end_to_end`."""
    absolute_error_weight: NaturalFloat = 1.0
    """In the reconstruction, of the mean absolute error; pixels are in [-1, 1]. The paper does
    not state the form of its reconstruction loss."""
    squared_error_weight: NaturalFloat = 1.0
    """In the reconstruction, of the mean squared error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = (self.text_to_image_weight, self.image_to_text_weight)
        if max(weights) == 0:
            raise InputError(
                f"objective.text_to_image_weight={weights[0]}, objective.image_to_text_weight="
                f"{weights[1]}: one must be above 0"
            )


def model_config_from_json(content: Any) -> ModelConfig:
    """Return the settings that `dataclasses.asdict` made JSON of.

    Raises:
        InputError: they are not a model's.
    """
    return from_json(content, ModelConfig, "model")
