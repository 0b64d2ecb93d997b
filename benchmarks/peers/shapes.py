"""A GPT as a workload, and a published run of one.

Source: operations as in Narayanan et al. 2021 (arXiv:2104.04473, appendix).
"""

from dataclasses import dataclass

from ernie_vilg.planning.workload import Spread, Workload

FUSED_BYTES = 62.0
"""Bytes moved per token and hidden value by a block's norms, GELU and residuals, forward and
backward, if each is one kernel: 2.2 GB for 8,704 tokens of 4,096."""
EAGER_BYTES = 124.0
"""The same with one of torch's kernels per operation: twice as much, by assumption."""

_SCORE_BYTES = 30.0
"""Bytes moved per score by attention that writes scores to memory: about 15 fused passes of 2
bytes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a GPT."""

    hidden: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    heads: int
    """Number of attention heads."""
    seq: int
    """Tokens per sequence."""
    vocab: int
    """Number of rows of the embedding."""
    ffn_weights: float = 8.0
    """Weights of the feed-forward layer, divided by hidden squared."""
    key_value_share: float = 1.0
    """Key and value heads, divided by query heads."""

    @property
    def block_weights(self) -> float:
        """Weights of one block's products."""
        return (2 + 2 * self.key_value_share + self.ffn_weights) * self.hidden**2

    @property
    def counted_flops(self) -> float:
        """Operations per sequence, forward and backward, as peers count them.

        All scores count, including masked ones; recomputation does not.
        """
        scores = 4.0 * self.hidden * self.seq**2
        head = 2.0 * self.hidden * self.vocab * self.seq
        return 3 * (self.layers * (2.0 * self.block_weights * self.seq + scores) + head)


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """One published step."""

    name: str
    """Project, model and number of GPUs."""
    gpu: str
    """Preset of conf/gpu/."""
    workload: Workload
    """Workload of the model."""
    spread: Spread
    """Layout over the GPUs."""
    seconds: float
    """Published seconds of a step."""
    memory_bandwidth: float | None = None
    """Bytes per second of the GPU's memory, if the peer's differs from the preset's."""
    is_calibration: bool = False
    """Whether a factor is fitted to it."""
    has_new_kernels: bool = False
    """Whether the run is of 2025 or later: its products are assumed to reach the rate that was
    measured here, and no factor is applied."""

    @property
    def peer(self) -> str:
        """Project that published the run."""
        return self.name.split(" ")[0]

    @property
    def generation(self) -> str:
        """Generation of the GPU and of its kernels."""
        return self.gpu.partition("-")[0] + (" with new kernels" if self.has_new_kernels else "")


def gpt(shape: Shape, *, flash: bool = False, fused: bool = True, parts: int = 1) -> Workload:
    """Return the workload of a GPT; causal attention without flash computes all scores.

    Args:
        shape: its sizes.
        flash: whether attention is one kernel.
        fused: whether element-wise passes are fused.
        parts: number of ranks that split the tokens of a sequence (context parallelism); a sample
            is then one part.
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
