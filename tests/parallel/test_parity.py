"""Every layout computes the losses and gradient norms of one process."""

import math
from dataclasses import replace

import pytest

from tests.distributed import run_distributed
from tests.parallel.conftest import record_row
from tests.parallel.parity import (
    FAST_LAYOUTS,
    LAYOUTS,
    MODEL,
    RELATIVE_TOLERANCE,
    Row,
    Variant,
    config_of,
    largest_difference,
    reference_of,
    results_of,
    rows_of,
    train_all,
)

ONE_PROCESS = Row(tensor=1, pipeline=1, data=1)


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    (_, text_to_image, image_to_text, *_), _ = reference_of(Variant())[0]

    # Fresh weights are small, so all codes and pieces are about equally likely.
    assert text_to_image == pytest.approx(math.log(MODEL.codebook_size), rel=0.02)
    assert image_to_text == pytest.approx(math.log(MODEL.text_vocab_size), rel=0.02)


def test_loss_does_not_depend_on_the_micro_batch() -> None:
    config = config_of(ONE_PROCESS)
    whole = replace(config, parallelism=replace(config.parallelism, micro_batch_size=8))

    ((history,),) = run_distributed(train_all, 1, [whole])

    assert largest_difference(history, reference_of(Variant())) <= RELATIVE_TOLERANCE


def test_groups_of_the_optimizer_change_the_losses() -> None:
    tied = Variant(extra="tied embeddings")

    (first, *_, last), (same, *_, other) = (
        reference_of(replace(tied, has_groups=has_groups)) for has_groups in (False, True)
    )

    assert first[0] == same[0]  # no update was made
    assert largest_difference([last], [other]) > 100 * RELATIVE_TOLERANCE


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("extra", ["", "dropout"])
def test_recomputing_changes_no_bit(checkpointing: str, extra: str) -> None:
    config = config_of(replace(ONE_PROCESS, variant=Variant(extra=extra)))
    layout = replace(config.parallelism, activation_checkpointing=checkpointing)

    ((history,),) = run_distributed(train_all, 1, [replace(config, parallelism=layout)])

    assert history == reference_of(Variant(extra=extra))


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["full", "sparse"])
def test_a_gpu_equals_the_cpu(attention: str) -> None:
    row = replace(ONE_PROCESS, variant=Variant(attention=attention))

    ((history,),) = run_distributed(train_all, 1, [config_of(row)], use_gpu=True)

    # A GPU has other kernels; TF32 is off.
    assert largest_difference(history, reference_of(row.variant)) <= 1e-3


@pytest.mark.gpu
def test_float16_with_scaled_gradients_trains_on_a_gpu() -> None:
    config = config_of(ONE_PROCESS)
    scaled = replace(config.model, block_gradient_scale=1024.0)

    ((history,),) = run_distributed(
        train_all, 1, [replace(config, precision="fp16", model=scaled)], use_gpu=True
    )

    # The loss scaler may skip steps until it has found its scale, so only the first loss is known.
    assert history[0][0] == pytest.approx(reference_of(Variant())[0][0], rel=1e-2)
    assert all(math.isfinite(loss) for losses, _ in history for loss in losses)


@pytest.mark.distributed
@pytest.mark.timeout(1800)  # the first row of a layout computes all of them
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.id, marks=[] if layout in FAST_LAYOUTS else [pytest.mark.slow])
        for layout in LAYOUTS
        for row in rows_of(layout)
    ],
)
def test_layout_equals_one_process(row: Row) -> None:
    reference = reference_of(row.variant)
    difference = max(
        largest_difference(history, reference) for history in results_of(row.layout)[row]
    )

    record_row(row, difference)
    assert difference <= RELATIVE_TOLERANCE
