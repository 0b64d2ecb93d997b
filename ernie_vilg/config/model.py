"""Settings of the transformer's shape and of its two objectives.

Source: ERNIE-ViLG (arXiv:2112.15283, sections 4.1 and 5).
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ernie_vilg.config.image_tokenizer import CodebookSize, ImageTokenizerConfig
from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.config.schema import (
    Follows,
    FractionBelowOne,
    NaturalFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Settings,
    from_json,
)
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS


@dataclass(frozen=True, kw_only=True)
class ReconstructorConfig(Settings, section="model.reconstructor"):
    """Reconstruction of pictures from the transformer's output (paper, section 3.1.3)."""

    kind: Literal["two_stage", "end_to_end"] = "two_stage"
    """two_stage: the frozen image tokenizer decodes the codes. end_to_end: the last layer's hidden
    states at the image slots are mapped to the decoder's inputs, and the decoder is trained with
    the transformer."""
    hidden_position: Literal["input", "prediction"] = "input"
    """Slot whose hidden state represents a code: the slot that has the code as input, as the
    paper's text suggests, or the slot that predicts it. The paper does not say. "input" needs one
    more slot per sequence, for the last code."""
    initialize_decoder: bool = True
    """Whether the decoder starts with the image tokenizer's weights instead of fresh ones. The
    paper does not say."""
    decoder: ImageTokenizerConfig | None = None
    """Architecture of the decoder; null takes the image tokenizer's."""

    @property
    def is_end_to_end(self) -> bool:
        """Whether the transformer is trained through a decoder."""
        return self.kind == "end_to_end"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings, section="model"):
    """Transformer for both directions, over `[text slots | image slots]`."""

    hidden_size: Annotated[int, Range(at_least=1, at_most=1 << 20)]
    """Width of the residual stream."""
    num_layers: Annotated[int, Range(at_least=1, at_most=1000)]
    """Number of transformer blocks."""
    num_heads: PositiveInt
    """Number of attention heads per block; must divide `hidden_size`."""
    ffn_multiplier: Annotated[int, Range(at_least=1, at_most=1024)] = 4
    """Width of the feed-forward layer divided by `hidden_size`."""
    text_vocab_size: Annotated[
        int,
        Range(above=NUM_SPECIAL_IDS, at_most=1 << 26, reason="special ids come first"),
        Follows(source="data.text_tokenizer"),
    ]
    """Number of rows of the text embedding; at least the text tokenizer's number of ids. Null takes
    that number, rounded up to a multiple of 128."""
    text_length: Annotated[
        int, Range(at_least=2, at_most=1 << 20, reason="one piece and the end of text")
    ]
    """Number of text slots per sequence, with the end of text."""
    codebook_size: Annotated[CodebookSize, Follows(source="data.image_tokenizer")]
    """Number of image codes; equals the image tokenizer's. Null takes that."""
    image_grid_size: Annotated[
        int, Range(at_least=1, at_most=1024), Follows(source="data.image_tokenizer")
    ]
    """Image tokens along one side; equals the image tokenizer's. Null takes that."""
    layer_norm_epsilon: PositiveFloat = 1.0e-5
    """Term added to the variance in every layer norm."""
    initializer_std: PositiveFloat = 0.02
    """Standard deviation of fresh weights."""
    segment_std: NaturalFloat | None = None
    """Standard deviation of the fresh vectors that tell source from target slots; null takes
    `initializer_std`, 0 starts without a difference."""
    text_padding: Literal["learned", "repeated"] = "learned"
    """Content of the text slots after a caption where it is the source. learned: a vector per slot,
    as in DALL-E. repeated: the caption again and again, each copy at the first one's positions, so
    that attention sees the caption alone, some of its pieces once more than others. An empty
    caption has the learned vectors."""
    codebook_std: NaturalFloat = 0.0
    """Standard deviation of fresh image embeddings, and of the image half of the head, where they
    start as a random map of the image tokenizer's codes, so that codes of like pictures start
    alike. 0 starts every code apart, with `initializer_std`."""
    attention: Literal["full", "sparse"] = "full"
    """full: every image slot sees all image slots that its direction allows. sparse: a row, column
    or convolutional pattern per layer (paper, section 3.1.2)."""
    row_pattern: Literal["raster", "block"] = "raster"
    """Pattern of the sparse row layers in text-to-image. raster: as many slots before the query as
    a row has, as in DALL-E. block: the query's own row. The paper does not say what its
    "block-wise" means."""
    convolution_size: PositiveInt = 11
    """Side of the square around the query in the sparse last layer; odd."""
    tied_embeddings: bool = False
    """Whether the output projections are the embedding tables."""
    qk_norm: bool = False
    """Whether queries and keys have a layer norm per head (ViT-22B, arXiv:2302.05442)."""
    sandwich_norm: bool = False
    """Whether attention and feed-forward also end with a layer norm (CogView, arXiv:2105.13290)."""
    pb_relax: NaturalFloat = 0.0
    """Divisor of the queries before their product with the keys, and factor of the scores in
    float32 after it, so that the product does not overflow (CogView: 32). 0 turns it off."""
    residual_scaling: Literal["none", "initializer", "branch"] = "initializer"
    """Scaling that keeps the residual stream's variance from growing with depth. initializer: fresh
    weights of layers that write to the stream are divided by sqrt(2 * num_layers), as in GPT-2.
    branch: their outputs are divided by it. none: no scaling."""
    dropout: FractionBelowOne = 0.0
    """Fraction of values that training sets to zero, in the embeddings and in the outputs of
    attention and feed-forward."""
    block_gradient_scale: PositiveFloat = 1.0
    """Factor of gradients inside each block's branches, and divisor of their weights' gradients, so
    that gradients do not vanish in float16 (DALL-E, arXiv:2102.12092, section 2.4). A power of two;
    for precision=fp16 only."""
    reconstructor: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    """Reconstruction of pictures."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters, for fine-tuning."""

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
                "the query is in the middle"
            )
        if math.frexp(self.block_gradient_scale)[0] != 0.5:
            raise InputError(
                f"model.block_gradient_scale={self.block_gradient_scale}: choose a power of two, "
                "such as 1024, so that scaling rounds nothing"
            )
        self.lora.check(self.num_layers, self.hidden_size)

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
        """Image slots per sequence: one per code, and one for the last code as input if the
        reconstructor needs it.
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

    Each term is a mean over its target tokens. The paper's plain sum has 1,024 image terms, which
    would dominate some tens of text terms. The paper's weights are both 1.
    """

    text_to_image_weight: NaturalFloat = 1.0
    """Weight of the mean negative log-likelihood of image codes given text."""
    image_to_text_weight: NaturalFloat = 1.0
    """Weight of the mean negative log-likelihood of text pieces given image codes."""
    z_loss_weight: NaturalFloat = 0.0
    """Weight of the mean squared logarithm of the softmax's denominator in both directions, which
    keeps logits from drifting (PaLM, arXiv:2204.02311: 1e-4)."""
    reconstruction_weight: NaturalFloat = 1.0
    """Weight of the reconstruction loss, with `reconstructor=end_to_end`."""
    absolute_error_weight: NaturalFloat = 1.0
    """Weight of the mean absolute error in the reconstruction loss; pixels are in [-1, 1]. The
    paper does not state its reconstruction loss."""
    squared_error_weight: NaturalFloat = 1.0
    """Weight of the mean squared error in the reconstruction loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = (self.text_to_image_weight, self.image_to_text_weight)
        if max(weights) == 0:
            raise InputError(
                f"objective.text_to_image_weight={weights[0]}, objective.image_to_text_weight="
                f"{weights[1]}: one must be above 0"
            )


def model_config_from_json(content: Any) -> ModelConfig:
    """Return the settings of a model from their JSON values.

    Raises:
        InputError: the content is not a model's settings.
    """
    return from_json(content, ModelConfig, "model")
