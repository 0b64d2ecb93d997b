"""Groups of parameters: the learning rate and the weight decay of each.

Without groups in the settings there are two: matrices of linear layers, which decay, and all other
parameters. Each group of the settings takes the parameters that its pattern matches and no earlier
one does; it is cut in two like the rest, unless it sets a decay for all of them. The group of a
parameter depends on its stored name only, so it is the same under every layout.
"""

from dataclasses import dataclass

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.name_patterns import check_matches, matches
from ernie_vilg.config.optimizer import OptimizerConfig, ParameterGroupConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import takes_weight_decay
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.model.transformer import parameter_sizes

UNDECAYED = 1
"""Index, in `parameter_groups`, of the group without weight decay that no pattern makes."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that the optimizer updates alike."""

    pattern: str
    """Pattern of the settings; empty: parameters that no pattern matches."""
    learning_rate_factor: float
    """Factor of the learning rate at every step."""
    weight_decay: float
    """Decoupled weight decay."""


def parameter_groups(config: OptimizerConfig) -> list[ParameterGroup]:
    """Return all groups of a run, in the order of `group_index`; some may have no parameters."""
    by_kind = (config.weight_decay, 0.0)
    rest = [
        ParameterGroup(pattern="", learning_rate_factor=1.0, weight_decay=decay)
        for decay in by_kind
    ]
    return rest + [
        ParameterGroup(
            pattern=group.pattern,
            learning_rate_factor=group.learning_rate_factor,
            weight_decay=decay,
        )
        for group in config.groups
        for decay in (by_kind if group.weight_decay is None else (group.weight_decay,))
    ]


def group_index(name: str, config: OptimizerConfig) -> int:
    """Return the index of a parameter's group in `parameter_groups`.

    Args:
        name: the result of `original_name`.
        config: settings of the optimizer.
    """
    owner = _owner(name, config)
    earlier = config.groups if owner is None else config.groups[:owner]
    is_cut = owner is None or config.groups[owner].weight_decay is None
    second = int(is_cut and not takes_weight_decay(name))
    if owner is None:
        return second
    return 2 + sum(1 if group.weight_decay is not None else 2 for group in earlier) + second


def group_sizes(model: ModelConfig, config: OptimizerConfig) -> list[tuple[ParameterGroup, int]]:
    """Return the groups that have parameters, and the number of values in each.

    Args:
        model: shape of the whole model.
        config: settings of the optimizer.

    Raises:
        InputError: a pattern matches no parameter, or only parameters that an earlier one has.
    """
    sizes = _sizes(model)
    owners = {_owner(name, config) for name in sizes}
    for index, group in enumerate(config.groups):
        if index not in owners:
            key = f"optimizer.groups[{index}].pattern"
            check_matches(key, group.pattern, sizes, what="parameter")
            raise InputError(
                f"{key}={group.pattern} matches only parameters that an earlier pattern has taken: "
                "place it before that one, or leave it out"
            )
    groups = parameter_groups(config)
    counts = [0] * len(groups)
    for name, size in sizes.items():
        counts[group_index(name, config)] += size
    return [(group, count) for group, count in zip(groups, counts, strict=True) if count]


def groups_in_words(model: ModelConfig, config: OptimizerConfig) -> str:
    """Return the groups that have parameters, on one line; raises like `group_sizes`."""
    words = []
    for group, size in group_sizes(model, config):
        of = f" of {group.pattern}" if group.pattern else ""
        factor = group.learning_rate_factor
        rate = "" if factor == 1 else f"learning rate x {factor:g}, "
        words.append(f"{size:,} parameters{of} with {rate}weight decay {group.weight_decay:g}")
    return "; ".join(words)


def matching_groups(
    model: ModelConfig, config: OptimizerConfig
) -> tuple[ParameterGroupConfig, ...]:
    """Return the groups of the settings that get a parameter of a model, in their order."""
    owners = {_owner(name, config) for name in _sizes(model)}
    return tuple(group for index, group in enumerate(config.groups) if index in owners)


def _sizes(model: ModelConfig) -> dict[str, int]:
    """Return the number of values of each parameter that the optimizer has, by name."""
    return {
        name: size
        for name, size in parameter_sizes(model).items()
        if has_optimizer_state(name, model)
    }


def _owner(name: str, config: OptimizerConfig) -> int | None:
    """Return the index of the first pattern that matches a name; None if none does."""
    owners = (index for index, group in enumerate(config.groups) if matches(name, [group.pattern]))
    return next(owners, None)
