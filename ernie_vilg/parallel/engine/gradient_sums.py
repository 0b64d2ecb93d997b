"""Gradients added to float32 sums where they are made.

A step's gradient is a sum over micro-batches, and ZeRO 1 keeps that sum in float32 over its passes.
Linear layers add each product to it directly (`ernie_vilg.model.linear`), so the largest gradients
are never written in the weights' own precision. All other parameters get a gradient from autograd,
which a hook adds to the sums and frees, one parameter after another during the backward pass.

ZeRO 2 and 3 reduce gradients during the backward pass, float16 scales them, and an offloaded
optimizer moves them to the host: there is no such sum, and autograd does all.
"""

from torch import nn

from ernie_vilg.model.linear import SUMS, Linear
from ernie_vilg.parallel.engine.optimizer import IS_FROZEN
from ernie_vilg.parallel.engine.zero_shards import ZeroShards


def attach_gradient_sums(module: nn.Module, shards: ZeroShards) -> None:
    """Let linear layers add their weights' gradients to the sums of a ZeRO optimizer, if any.

    Frozen weights have no such sums: their gradient is replaced by zero on its way.

    A weight that is also an embedding table gets the embedding's part from autograd.
    """
    weights = {layer.weight for layer in module.modules() if isinstance(layer, Linear)}
    for parameter, sums in shards.summed_parameters().items():
        if parameter in weights and not getattr(parameter, IS_FROZEN, False):
            setattr(parameter, SUMS, sums)
