"""The number of parameters that train, and whether every pipeline stage has some."""

import itertools

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.flops import layer_flops
from ernie_vilg.model.partition import stage_bounds
from ernie_vilg.model.transformer import num_parameters, parameter_sizes
from ernie_vilg.parallel.engine.optimizer import num_trained


def count_trained(config: PretrainConfig) -> int:
    """Return the number of single weights that train.

    Raises:
        InputError: a pattern of `training.frozen` matches no parameter, nothing is left to train,
            or a pipeline stage has no adapter.
    """
    model = config.model
    trained = num_trained(parameter_sizes(model), model, config.training.frozen)
    stages = config.parallelism.pipeline_parallel_size
    if model.lora.rank and stages > 1:
        adapted = {int(name.partition(".")[0]) for name in model.lora.layers(model.num_layers)}
        for first, end in itertools.pairwise(stage_bounds(layer_flops(model), stages)):
            if adapted.isdisjoint(range(first, end)):
                raise InputError(
                    f"model.lora.targets={','.join(model.lora.targets)} adapts no layer of the "
                    f"pipeline stage of layers {first} to {end - 1}, where nothing would train: "
                    "name layers of every stage, or lower parallelism.pipeline_parallel_size="
                    f"{stages}"
                )
    return trained


def trained_in_words(config: PretrainConfig, trained: int) -> str:
    """Return how many parameters train, and why the others do not; empty if all do."""
    if trained == num_parameters(config.model):
        return ""
    lora = config.model.lora
    why = f", adapters of rank {lora.rank}" if lora.rank else ""
    return f"{trained:,} parameters{why}; the others keep their values"
