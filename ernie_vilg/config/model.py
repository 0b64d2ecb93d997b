"""The transformer's shape and the weights of its two objectives.

Source: the shapes of ERNIE-ViLG (arXiv:2112.15283, sections 4.1 and 5).
"""

from dataclasses import dataclass

from ernie_vilg.vocabulary import NUM_SPECIAL_IDS


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
    """Standard deviation of fresh weights; layers that write to the residual stream get it
    divided by sqrt(2 * num_layers)."""

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "ffn_multiplier",
            "codebook_size",
            "image_grid_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size="
                f"{self.hidden_size}: choose a divisor, so that every head has the same width"
            )
        if self.text_length < 2:
            raise ValueError(
                f"model.text_length={self.text_length}: at least 2 slots are needed, one piece "
                "and the end of text"
            )
        if self.text_vocab_size <= NUM_SPECIAL_IDS:
            raise ValueError(
                f"model.text_vocab_size={self.text_vocab_size}: the first {NUM_SPECIAL_IDS} ids "
                "are special, choose at least the text tokenizer's number of pieces"
            )
        if self.codebook_size > 1 << 16:
            raise ValueError(
                f"model.codebook_size={self.codebook_size}: token shards store 16-bit codes, "
                f"choose at most {1 << 16}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_image_tokens(self) -> int:
        """Image slots per sequence."""
        return self.image_grid_size**2

    @property
    def seq_length(self) -> int:
        """Slots per sequence, text and image."""
        return self.text_length + self.num_image_tokens


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

    def __post_init__(self) -> None:
        weights = (self.text_to_image_weight, self.image_to_text_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"objective.text_to_image_weight={weights[0]}, objective.image_to_text_weight="
                f"{weights[1]}: weights must not be negative, and one must be above 0"
            )
