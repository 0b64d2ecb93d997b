"""What one optimizer step has to do, whoever's model it is.

A transformer of ours and a GPT of a peer fill the same few numbers, so that what predicts our
steps can be held against steps that peers published.

Source: ours; operations as in Narayanan et al. 2021 (arXiv:2104.04473, appendix).
"""

from dataclasses import dataclass

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.flops import attention_flops, layer_flops, product_flops
from ernie_vilg.planning.stage_shards import stage_shards

FUSED_BYTES = 62.0
"""Moved per token and hidden value by a block's norms, GELU and residuals, forward and backward,
where each is one kernel (PERFORMANCE.md: 2.2 GB for 8,704 tokens of 4,096)."""
EAGER_BYTES = 124.0
"""The same with torch's own kernels, one per operation: an assumption, twice as much."""


TOKEN_SAMPLES_PER_SECOND = 17_768.0
"""Token samples that one core reads per second, 16 at a time (docs/benchmarks.md)."""
PICTURES_PER_SECOND = 207.0
"""PNG files of 256 pixels that one core decodes per second (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model as the step time sees it. Operations are forward; a sample is what the micro-batch
    counts: a pair, both directions, of ours, a sequence of a GPT.
    """

    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks."""
    tokens: int
    """Per sample."""
    block_flops: float
    """Of one block's matrix products, per sample."""
    attention_flops: float
    """Of one block's scores and sums, on average, per sample."""
    head_flops: float
    """Of the projections on the vocabulary, per sample."""
    block_parameters: int
    """Of one block."""
    outer_parameters: int
    """Of embeddings and head together."""
    elementwise_bytes: float = EAGER_BYTES
    """Moved per token and hidden value of a block, forward and backward."""
    samples_per_reader: float = TOKEN_SAMPLES_PER_SECOND
    """That one core reads per second."""
    attention_bytes: float = 0.0
    """Moved by one block's attention where it writes its scores down, per sample, forward and
    backward; 0 for flash attention."""

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self.num_layers * self.block_parameters + self.outer_parameters

    @property
    def flops(self) -> float:
        """Model operations per sample, forward and backward: the numerator of MFU."""
        blocks = self.num_layers * (self.block_flops + self.attention_flops)
        return 3 * (blocks + self.head_flops)


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """Shares of a forward pass that the backward pass runs again."""

    matrix: float = 0.0
    """Of the matrix products, and of the tensor ranks' messages with them."""
    attention: float = 0.0
    """Of scores and sums."""
    elementwise: float = 0.0
    """Of what lies between the products."""


RECOMPUTATION = {
    "none": Recomputation(),
    "selective": Recomputation(attention=1.0, elementwise=0.5),
    "full": Recomputation(matrix=1.0, attention=1.0, elementwise=1.0),
}
"""By `ParallelismConfig.activation_checkpointing`."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the work is spread."""

    tensor: int = 1
    """Ranks that share each product."""
    pipeline: int = 1
    """Stages."""
    data: int = 1
    """Replicas."""
    zero_stage: int = 1
    """1, 2 or 3; 3 stands for FSDP too."""
    micro_batch: int
    """Samples per replica per pass."""
    num_micro_batches: int
    """Passes per step."""
    sequence_parallel: bool = False
    """Whether tensor ranks share norms and residuals."""
    recomputation: Recomputation = Recomputation()
    """What the backward pass runs again."""
    offload: bool = False
    """Whether the optimizer runs on the host."""
    virtual_stages: int = 1
    """Parts of each stage (interleaved schedule; DeepSpeed has 1)."""
    gradient_bytes: int = 2
    """Per parameter in the reduction among replicas."""
    readers: int = 1
    """Processes per replica that read ahead; 0 reads while training waits."""
    hides_messages: bool = False
    """Whether the messages of tensor ranks, and the gathering of weights, pass behind products, as
    Megatron-LM's may. Ours do not."""

    @property
    def num_gpus(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.data


def workload_of_model(model: ModelConfig, *, fused: bool = False) -> Workload:
    """Describe a model of ours.

    Args:
        model: its shape.
        fused: whether torch.compile fuses what lies between the matrix products.
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
        elementwise_bytes=FUSED_BYTES if fused else EAGER_BYTES,
        samples_per_reader=(
            PICTURES_PER_SECOND
            if model.reconstructor.is_end_to_end  # trains on pixels too
            else TOKEN_SAMPLES_PER_SECOND
        ),
    )


def spread_of_layout(layout: ParallelismConfig, num_gpus: int, readers: int) -> Spread:
    """Describe a layout of ours on so many GPUs.

    Args:
        layout: the layout.
        num_gpus: that it is spread over.
        readers: `LoaderConfig.num_workers`.

    Raises:
        InputError: it does not fit them.
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
        readers=readers,
    )
