"""The layers of adapters: a linear layer's output gets `alpha / rank * B A x` added.

B starts as zero, so the first output is that of the linear layer alone. Under tensor parallelism
an adapter is split as its layer is: B of a layer with split outputs, A of one with split inputs.

Source: LoRA (arXiv:2106.09685, section 4.1).
"""

from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.linear import Linear


def add_adapters(block: nn.Module, config: ModelConfig, block_index: int) -> None:
    """Add the adapters of a block, without values.

    Args:
        block: a block whose linear layers exist, whole or as a tensor rank's part.
        config: the model's shape.
        block_index: index of the block, from 1.
    """
    if not config.lora.rank:
        return
    for name, layer in list(block.named_modules()):
        if isinstance(layer, Linear) and config.lora.adapts(f"{block_index}.{name}"):
            layer.lora_a = Linear(layer.in_features, config.lora.rank, bias=False)
            layer.lora_b = Linear(config.lora.rank, layer.out_features, bias=False)
            layer.adapter_scale = config.lora.scale
