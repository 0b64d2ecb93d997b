"""The work of one optimizer step as a few numbers, for any transformer.

Our model and a peer's GPT fill the same numbers, so the predictor of our steps can be compared with
steps that peers published.

Source: operations as in Narayanan et al. 2021 (arXiv:2104.04473, appendix).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks, pattern_of_block
from ernie_vilg.model.block_sparse import BLOCK_SIZE, transpose_grid
from ernie_vilg.model.flops import attention_flops, layer_flops, product_flops
from ernie_vilg.planning.stage_shards import stage_shards

COMPILED_BYTES = 115.0
"""Bytes moved per token and hidden value by a compiled block's norms, GELU, residuals and copies of
queries, keys and values, forward and backward; fitted to the measured rows of `planning.md`."""
EAGER_BYTES = 250.0
"""The same with one of torch's kernels per operation; fitted to the measured eager row."""
FLASH_RATE = 0.45
"""Rate of the products of attention in a kernel for dense masks, as a fraction of that of matrix
products."""
FLEX_RATE = 0.10
"""Rate of flex_attention's products over the pairs of the blocks that it computes, as a fraction of
that of matrix products: 45 ms at 8 x 2 of the measured rows."""

TOKEN_SAMPLES_PER_SECOND = 17_768.0
"""Token samples that one core reads per second, 16 at a time (docs/benchmarks.md)."""
PICTURES_PER_SECOND = 207.0
"""PNG files of 256 pixels that one core decodes per second (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The sizes of a model that determine its step time.

    Operations are those of the forward pass. A sample is the unit of the micro-batch: a pair in
    both directions for our model, a sequence for a GPT.
    """

    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Number of blocks."""
    tokens: int
    """Tokens per sample."""
    block_flops: float
    """Operations of one block's matrix products, per sample."""
    attention_flops: float
    """Operations of one block's attention scores and sums, per sample, averaged over blocks."""
    head_flops: float
    """Operations of the output projections, per sample."""
    block_parameters: int
    """Number of parameters of one block."""
    outer_parameters: int
    """Number of parameters of embeddings and head together."""
    elementwise_bytes: float = EAGER_BYTES
    """Bytes moved by element-wise passes per token and hidden value of a block, forward and
    backward."""
    samples_per_reader: float = TOKEN_SAMPLES_PER_SECOND
    """Samples that one core reads per second."""
    attention_bytes: float = 0.0
    """Bytes that one block's attention moves per sample, forward and backward, if it writes its
    scores to memory; 0 for flash attention."""
    computed_attention_flops: float | None = None
    """Operations that the kernel of attention computes per block and sample, averaged over blocks,
    masked pairs of its blocks included; None: `attention_flops`."""
    attention_rate: float = FLASH_RATE
    """Rate of attention's products, as a fraction of that of matrix products."""

    fp8_share: float = 0.0
    """Fraction of the blocks whose products are 8-bit."""

    @property
    def scored_flops(self) -> float:
        """Operations of attention that the kernel runs per block and sample."""
        return self.computed_attention_flops or self.attention_flops

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return self.num_layers * self.block_parameters + self.outer_parameters

    @property
    def flops(self) -> float:
        """Model operations per sample, forward and backward: the numerator of MFU."""
        blocks = self.num_layers * (self.block_flops + self.attention_flops)
        return 3 * (blocks + self.head_flops)


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """Fractions of a forward pass that the backward pass repeats."""

    matrix: float = 0.0
    """Fraction of the matrix products and of the tensor ranks' communication."""
    attention: float = 0.0
    """Fraction of attention's scores and sums."""
    elementwise: float = 0.0
    """Fraction of the element-wise passes."""


RECOMPUTATION = {
    "none": Recomputation(),
    "selective": Recomputation(attention=1.0, elementwise=0.5),
    "full": Recomputation(matrix=1.0, attention=1.0, elementwise=1.0),
}
"""Recomputation by the value of `ParallelismConfig.activation_checkpointing`."""


@dataclass(frozen=True, kw_only=True)
class GradientTraffic:
    """Memory traffic and waits around the gradients of a step, by the code that handles them.

    Bytes are those read and written, per parameter, beyond those of the product that makes the
    gradient.
    """

    pass_bytes: float
    """Bytes per parameter of the rank and micro-batch."""
    step_bytes: float
    """Bytes per parameter of the rank and step: copies around the reduction, zeroing, and passes
    over the whole gradient."""
    update_bytes: float
    """Bytes per parameter that this replica updates and step: AdamW, and passes over its part."""
    pass_waits: float = 0.0
    """Times per micro-batch that the GPU waits for the host."""
    step_waits: float = 0.0
    """Times per step that the GPU waits for the host."""
    keeps_gradients: bool = False
    """Whether 16-bit gradients are kept beside the sums."""
    copies_sums: bool = False
    """Whether the sums are copied for their reduction."""


SUMMED = GradientTraffic(pass_bytes=6, step_bytes=4, update_bytes=38, step_waits=2)
"""ZeRO 1: products add to float32 sums, 8 bytes instead of the 2 of a 16-bit gradient. The sums are
zeroed. One pass for the norm, AdamW in float32 (28), weights to 16 bit (6)."""
PARTITIONED = GradientTraffic(pass_bytes=10, step_bytes=4, update_bytes=38, step_waits=2)
"""ZeRO 2, and 1 with an offloaded optimizer; assumed: each gradient is copied into DeepSpeed's
bucket and out of it, and its part is added to float32 sums."""
GATHERED = replace(PARTITIONED, pass_bytes=18)
"""ZeRO 3, assumed: weights are also copied out of the buffer of their all-gather, twice."""
COPIED = GradientTraffic(
    pass_bytes=26,
    step_bytes=48,
    update_bytes=38,
    pass_waits=7,
    keeps_gradients=True,
    copies_sums=True,
)
"""DeepSpeed's BF16_Optimizer. In a pass it zeroes 16-bit gradients (2), adds to them (6), and adds
a float32 copy of them (6) to the sums (12). At the end it copies the sums into one tensor and back
for the reduction (32), takes their norm (4), clips (8) and zeroes (4) them. The host waits for the
GPU twice for a timer and five times for the tensors of a micro-batch."""
COPIED_AT_ONCE = replace(COPIED, pass_bytes=22, pass_waits=5, keeps_gradients=False)
"""The same with `immediate_grad_update` and without the timer: a gradient is written once (4)
instead of zeroed and added to."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The layout of a workload over GPUs."""

    tensor: int = 1
    """Number of ranks that split each product."""
    pipeline: int = 1
    """Number of pipeline stages."""
    data: int = 1
    """Number of replicas."""
    zero_stage: int = 1
    """ZeRO stage: 1, 2 or 3; 3 also describes FSDP."""
    micro_batch: int
    """Samples per replica and pass."""
    num_micro_batches: int
    """Number of passes per step."""
    sequence_parallel: bool = False
    """Whether tensor ranks split norms and residuals."""
    recomputation: Recomputation = Recomputation()
    """Fractions of the forward pass that the backward pass repeats."""
    offload: bool = False
    """Whether the optimizer runs on the host."""
    virtual_stages: int = 1
    """Parts of each stage in an interleaved schedule; 1 under DeepSpeed."""
    gradient_bytes: int = 2
    """Bytes per parameter in the reduction among replicas."""
    readers: int = 1
    """Loader processes per replica; 0 reads while training waits."""
    hides_messages: bool = False
    """Whether tensor ranks' communication and the all-gather of weights overlap with products, as
    Megatron-LM can. Ours do not."""

    gradients: GradientTraffic = SUMMED
    """Memory traffic and waits around gradients."""
    reduces_early: bool = False
    """Whether ZeRO 1 reduces gradients during the last backward pass."""
    hidden_tensor_share: float = 0.0
    """Fraction of tensor ranks' communication in the backward pass that can overlap with
    products."""

    @property
    def num_gpus(self) -> int:
        """Number of GPUs."""
        return self.tensor * self.pipeline * self.data


def computed_flops(model: ModelConfig, block_index: int) -> float:
    """Return the operations of one block's scores and sums, forward, per pair; index from 1.

    Every pair counts of each block of the mask in which a query sees a key.
    """
    return 4.0 * model.hidden_size * _computed_pairs(model, pattern_of_block(model, block_index))


@lru_cache(maxsize=64)
def _computed_pairs(model: ModelConfig, pattern: Pattern) -> int:
    masks = both_masks(model, pattern)
    if pattern is Pattern.COLUMN:  # the kernel gets the picture column by column
        slots = transpose_grid(torch.arange(model.seq_length)[:, None], model)[:, 0]
        masks = masks[:, slots][:, :, slots]
    missing = -model.seq_length % BLOCK_SIZE
    blocks = F.pad(masks, (0, missing, 0, missing)).unflatten(2, (-1, BLOCK_SIZE))
    return int(blocks.unflatten(1, (-1, BLOCK_SIZE)).any(dim=4).any(dim=2).sum()) * BLOCK_SIZE**2


def workload_of_model(
    model: ModelConfig, *, fused: bool = False, linear_precision: str = "same"
) -> Workload:
    """Return the workload of our model.

    Args:
        model: its shape.
        fused: whether torch.compile fuses the element-wise passes.
        linear_precision: `PretrainConfig.linear_precision`.
    """
    blocks = range(1, model.num_layers + 1)
    (whole,) = stage_shards(model, ParallelismConfig(micro_batch_size=1, global_batch_size=1))
    block_parameters = sum(
        shape.numel() for name, shape in whole.shapes.items() if name.startswith("1.")
    )
    return Workload(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        tokens=len(Direction) * model.seq_length,
        block_flops=float(product_flops(model)),
        attention_flops=sum(attention_flops(model, index) for index in blocks) / len(blocks),
        head_flops=float(layer_flops(model)[-1]),
        block_parameters=block_parameters,
        outer_parameters=whole.num_parameters - len(blocks) * block_parameters,
        elementwise_bytes=COMPILED_BYTES if fused else EAGER_BYTES,
        computed_attention_flops=sum(computed_flops(model, index) for index in blocks)
        / len(blocks),
        attention_rate=FLEX_RATE,
        # All blocks but the first and the last.
        fp8_share=max(1 - 2 / len(blocks), 0.0) if linear_precision == "fp8" else 0.0,
        samples_per_reader=(
            PICTURES_PER_SECOND
            if model.reconstructor.is_end_to_end  # trains on pixels too
            else TOKEN_SAMPLES_PER_SECOND
        ),
    )


def spread_of_layout(layout: ParallelismConfig, num_gpus: int, readers: int) -> Spread:
    """Return one of our layouts on a number of GPUs.

    Args:
        layout: the layout.
        num_gpus: number of GPUs.
        readers: `LoaderConfig.num_workers`.

    Raises:
        InputError: the layout does not fit this number of GPUs.
    """
    return Spread(
        tensor=layout.tensor_parallel_size,
        pipeline=layout.pipeline_parallel_size,
        data=layout.data_parallel_size(num_gpus),
        zero_stage=layout.zero_stage,
        micro_batch=layout.micro_batch_size,
        num_micro_batches=layout.num_micro_batches(num_gpus),
        sequence_parallel=layout.sequence_parallel,
        recomputation=RECOMPUTATION[layout.activation_checkpointing],
        offload=layout.offload_optimizer,
        gradients=_traffic_of(layout),
        gradient_bytes=4 if layout.zero_stage == 1 else 2,
        reduces_early=True,
        # The collective of a column layer overlaps with the product of its weight's gradient. That
        # of a row layer does not; without sequence parallelism it has none.
        hidden_tensor_share=0.5 if layout.sequence_parallel else 1.0,
        readers=readers,
    )


def _traffic_of(layout: ParallelismConfig) -> GradientTraffic:
    if layout.zero_stage == 1 and not layout.offload_optimizer:
        return SUMMED
    return GATHERED if layout.zero_stage == 3 else PARTITIONED


def can_compile(layout: ParallelismConfig) -> bool:
    """Return whether blocks can be compiled: under ZeRO 3 they cannot."""
    return layout.zero_stage < 3


def workload_of_run(config: PretrainConfig) -> Workload:
    """Return the workload of a run."""
    return workload_of_model(
        config.model, fused=config.compile_blocks, linear_precision=config.linear_precision
    )
