"""A GPT as workload, and a published run of one.

Source: ours; operations as in Narayanan et al. 2021 (arXiv:2104.04473, appendix).
"""

from dataclasses import dataclass

from ernie_vilg.planning.workload import EAGER_BYTES, FUSED_BYTES, Spread, Workload

_SCORE_BYTES = 30.0
"""Moved per score by attention that writes its scores down: about 15 fused passes of 2 bytes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT."""

    hidden: int
    """Width."""
    layers: int
    """Blocks."""
    heads: int
    """Of attention."""
    seq: int
    """Tokens per sequence."""
    vocab: int
    """Rows of the embedding."""
    ffn_weights: float = 8.0
    """Weights of the feed-forward layer over hidden squared."""
    key_value_share: float = 1.0
    """Key and value heads over query heads."""

    @property
    def block_weights(self) -> float:
        """Weights of one block's products."""
        return (2 + 2 * self.key_value_share + self.ffn_weights) * self.hidden**2

    @property
    def counted_flops(self) -> float:
        """Operations per sequence, forward and backward, that peers count.

        All scores count, visible or not; recomputation does not.
        """
        scores = 4.0 * self.hidden * self.seq**2
        head = 2.0 * self.hidden * self.vocab * self.seq
        return 3 * (self.layers * (2.0 * self.block_weights * self.seq + scores) + head)


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """One published step."""

    name: str
    """Whose, which model, on how many GPUs."""
    gpu: str
    """Preset of conf/gpu/."""
    workload: Workload
    """The model."""
    spread: Spread
    """Its layout."""
    seconds: float
    """Published, of a step."""
    memory_bandwidth: float | None = None
    """Bytes per second of the GPU's memory, where the peer says that it has another than the
    preset."""
    is_calibration: bool = False
    """Whether a factor is fitted to it."""

    @property
    def peer(self) -> str:
        """Whose it is."""
        return self.name.split(" ")[0]

    @property
    def generation(self) -> str:
        """Of the GPU."""
        return self.gpu.partition("-")[0]


def gpt(shape: Shape, *, flash: bool = False, fused: bool = True, parts: int = 1) -> Workload:
    """Describe a GPT; causal attention that is not flash computes all scores.

    Args:
        shape: its size.
        flash: whether attention is one kernel.
        fused: whether passes between products are fused.
        parts: ranks among which the tokens of a sequence are shared (context parallelism); the
            sample is then such a part.
    """
    tokens = shape.seq // parts
    scores = shape.seq * tokens * (0.5 if flash else 1.0)
    return Workload(
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        tokens=tokens,
        block_flops=2.0 * shape.block_weights * tokens,
        attention_flops=4.0 * shape.hidden * scores,
        head_flops=2.0 * shape.hidden * shape.vocab * tokens,
        block_parameters=round(shape.block_weights),
        outer_parameters=2 * shape.vocab * shape.hidden,
        elementwise_bytes=FUSED_BYTES if fused else EAGER_BYTES,
        attention_bytes=0.0 if flash else _SCORE_BYTES * shape.heads * shape.seq * tokens,
    )
