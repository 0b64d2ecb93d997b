"""Groups of parameters get their learning rates and decays, whatever rank holds them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.optimizer import OptimizerConfig, ParameterGroupConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.parameter_groups import (
    group_index,
    group_sizes,
    groups_in_words,
    parameter_groups,
)
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.distributed import run_distributed
from tests.parallel.parity import (
    GROUPS,
    LEARNING_RATE,
    MODEL,
    Row,
    Variant,
    config_of,
    micro_batches,
)
from tests.parallel.resharding import gather_state

# Computed apart from the library: AdamW's first update moves a weight by the learning rate times
# the sign of its gradient, up to epsilon, and decay takes learning rate times decay times weight.
ADAM = OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=0)
EXPECTED = {
    "0.text_embedding.weight": (0.1, 0.0),
    "0.image_row": (0.1, 0.0),
    "1.attention.output.weight": (1.0, 0.01),
    "1.feed_forward_branch.norm.weight": (1.0, 0.0),
    "1.attention.output.bias": (3.0, 0.5),
    "2.attention.output.weight": (1.0, 20.0),
    "2.attention.output.bias": (3.0, 0.5),
    "3.feed_forward.up.weight": (5.0, 0.01),
    "3.feed_forward.up.bias": (3.0, 0.5),
    "3.attention_branch.norm.weight": (5.0, 0.0),
    "5.image_logits.weight": (1.0, 0.01),
    "5.norm.bias": (3.0, 0.5),
}
"""Factor of the learning rate and decay of parameters of every kind."""
ROWS = [
    pytest.param(Variant(), (1, 1, 2), torch.float32, id="data 2"),
    pytest.param(Variant(), (1, 1, 2), torch.bfloat16, id="data 2, bf16"),
    pytest.param(Variant(zero=2), (1, 1, 2), torch.float32, id="ZeRO 2"),
    pytest.param(Variant(zero=3), (1, 1, 2), torch.bfloat16, id="ZeRO 3, bf16"),
    pytest.param(Variant(sequence_parallel=True), (2, 1, 1), torch.bfloat16, id="tensor 2, bf16"),
    pytest.param(Variant(), (1, 2, 1), torch.bfloat16, id="pipeline 2, bf16"),
]


def update(launch: Launch, row: Row, precision: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the float32 weights before and after an update by name."""
    device = start_processes(launch, timeout_seconds=60)
    config = config_of(row)
    groups = build_groups(row.tensor, row.pipeline, device)
    engine = build_engine(config, groups, precision)
    batches = micro_batches(groups, config, 0)
    states = []
    for learning_rate in (0.0, LEARNING_RATE):  # the first one starts the moments alone
        engine.train_batch(batches, learning_rate)
        states.append(gather_state(engine, config))
    before, after = states
    return {name: (before[f"fp32 of {name}"], after[f"fp32 of {name}"]) for name in EXPECTED}


@pytest.mark.distributed
@pytest.mark.parametrize(("variant", "layout", "precision"), ROWS)
def test_each_parameter_gets_the_rate_and_decay_of_its_group(
    variant: Variant, layout: tuple[int, int, int], precision: torch.dtype
) -> None:
    row = Row(
        tensor=layout[0],
        pipeline=layout[1],
        data=layout[2],
        variant=replace(variant, has_groups=True),
    )

    weights, *_ = run_distributed(update, 2, row, precision)

    for name, (factor, decay) in EXPECTED.items():
        before, after = weights[name]
        rate = LEARNING_RATE * factor
        sizes = ((before * (1 - rate * decay) - after) / rate).abs()
        # Gradients of 0 move nothing; those near epsilon move less, and no gradient moves more.
        assert sizes.max() == pytest.approx(1.0, abs=0.01), name


def test_the_first_pattern_that_matches_holds() -> None:
    config = config_of(Row(tensor=1, pipeline=1, data=1, variant=Variant(has_groups=True)))
    groups = parameter_groups(config.optimizer)

    found = {name: groups[group_index(name, config.optimizer)] for name in EXPECTED}

    assert {
        name: (group.learning_rate_factor, group.weight_decay) for name, group in found.items()
    } == EXPECTED


def test_a_group_with_one_of_two_kinds_is_one_group_and_says_its_size() -> None:
    config = replace(ADAM, groups=GROUPS)

    words = groups_in_words(MODEL, config).split("; ")

    width, slots = MODEL.hidden_size, MODEL.text_length
    tables = MODEL.text_vocab_size + MODEL.codebook_size
    # begin of image, padding, positions, rows, columns, 4 segments, both tables
    embedding = width * (1 + 2 * slots + 2 * MODEL.image_grid_size + 4 + tables)
    # query, key and value; output; up; down; two norms
    biases = 4 * width * (3 + 1 + 4 + 1 + 2) + width + tables
    assert words[2:] == [
        f"{embedding:,} parameters of 0.* with learning rate x 0.1, weight decay 0",
        f"{biases:,} parameters of *.bias with learning rate x 3, weight decay 0.5",
        f"{width**2:,} parameters of 2.attention.output.* with weight decay 20",
        f"{12 * width**2:,} parameters of 3.* with learning rate x 5, weight decay 0.01",
        f"{2 * width:,} parameters of 3.* with learning rate x 5, weight decay 0",
    ]
    assert words[1] == f"{(3 * 2 + 1) * width:,} parameters with weight decay 0"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        pytest.param(
            ["*.bias", "*.biases"],
            r"optimizer\.groups\[1\]\.pattern=\*\.biases matches no .* such as 5\.norm\.bias",
            id="no such name",
        ),
        pytest.param(["bias"], "matches no parameter", id="part of a name"),
        pytest.param(["5.*", "6.*"], r"pattern=6\.\* matches no", id="no such layer"),
        pytest.param(
            ["*.bias", "1.*.bias"],
            r"groups\[1\].*earlier pattern has taken",
            id="hidden behind one",
        ),
        pytest.param(["*.bias", "*.bias"], r"groups\[1\].*earlier", id="twice"),
    ],
)
def test_a_pattern_without_parameters_is_refused(patterns: list[str], message: str) -> None:
    groups = tuple(ParameterGroupConfig(pattern=pattern) for pattern in patterns)

    with pytest.raises(InputError, match=message):
        group_sizes(MODEL, replace(ADAM, groups=groups))


def test_without_groups_matrices_decay_and_nothing_else() -> None:
    groups = parameter_groups(replace(ADAM, weight_decay=0.3))

    assert [(group.learning_rate_factor, group.weight_decay) for group in groups] == [
        (1.0, 0.3),
        (1.0, 0.0),
    ]
    assert group_index("3.attention.output.weight", ADAM) == 0
    assert group_index("3.attention.output.bias", ADAM) == 1
    assert group_index("0.text_embedding.weight", ADAM) == 1
