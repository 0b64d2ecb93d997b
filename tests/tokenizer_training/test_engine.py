"""The image tokenizer's step: the same on any number of ranks, resumed exactly, skipped whole."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.launch import Launch
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.tokenizer_training.engine import TokenizerEngine, to_device
from ernie_vilg.tokenizer_training.results import metrics_of
from ernie_vilg.tokenizer_training.saved_state import read_tokenizer
from tests.distributed import run_distributed
from tests.tokenizer_training.engine_runs import (
    ADVERSARIAL,
    SIZE,
    START,
    TRAIN_FROM,
    Quantizer,
    build,
    differing,
    engine_config,
    lone_engine,
    replicated_state,
    result,
    saved_state,
    take_step,
    without_discriminator,
    write_snapshot,
)

STEPS = 6
TOLERANCE = 1e-5
"""Largest norm of a difference, of float32 sums in another order, over the tensor's norm."""
LARGE_EPSILON = 1.0e-3
"""Epsilon with which AdamW does not magnify the rounding of gradients that are almost 0."""


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        tolerance = TOLERANCE * (2 if name.endswith("second moment") else 1)  # a square
        difference = float((other[name] - value).double().norm())
        assert difference <= tolerance * float(value.double().norm()), name


def _steps(engine: TokenizerEngine, steps: range, micro_batches: int = 1) -> dict[str, Tensor]:
    """Return every step's results, and the state after the last one."""
    results = {
        f"results of step {step}": take_step(engine, step, micro_batches=micro_batches)
        for step in steps
    }
    return results | replicated_state(engine)


def _ranks_save_midway(launch: Launch, quantizer: Quantizer, folder: Path) -> dict[str, Tensor]:
    engine = build_on(launch, quantizer)
    _steps(engine, range(STEPS - 1))
    write_snapshot(engine, folder)
    return _steps(engine, range(STEPS - 1, STEPS))


def _ranks_take_steps(launch: Launch, quantizer: Quantizer) -> dict[str, Tensor]:
    return _steps(build_on(launch, quantizer), range(STEPS))


def build_on(launch: Launch, quantizer: Quantizer) -> TokenizerEngine:
    start_processes(launch, timeout_seconds=60)
    return build(engine_config(quantizer, epsilon=LARGE_EPSILON))


@pytest.mark.distributed
@pytest.mark.parametrize("quantizer", ["ema", "nearest"])
def test_two_ranks_take_the_steps_of_one(quantizer: Quantizer) -> None:
    # Adaptive weight, LeCAM, an averaged codebook, revival and the average of the weights included;
    # the first moments hold the gradients.
    with lone_engine(engine_config(quantizer, epsilon=LARGE_EPSILON)) as engine:
        alone = _steps(engine, range(STEPS))

    first, second = run_distributed(_ranks_take_steps, 2, quantizer)

    assert differing(first, second) == []
    assert result(first["results of step 5"], "adaptive_factor") > 0
    assert_close(alone, first)


@pytest.mark.distributed
def test_one_rank_goes_on_where_two_stopped(tmp_path: Path) -> None:
    first, _ = run_distributed(_ranks_save_midway, 2, "ema", tmp_path)

    with lone_engine(engine_config("ema", epsilon=LARGE_EPSILON)) as engine:
        engine.load(tmp_path)
        alone = _steps(engine, range(STEPS - 1, STEPS))

    assert_close(alone, first)


def test_micro_batches_add_up_to_the_batch() -> None:
    # Not so with the adaptive weight, whose factor is that of each micro-batch.
    adversarial = replace(ADVERSARIAL, adaptive=False)
    config = engine_config("ema", adversarial=adversarial, epsilon=LARGE_EPSILON)
    with lone_engine(config) as engine:
        whole = _steps(engine, range(STEPS))

    with lone_engine(config) as engine:
        parted = _steps(engine, range(STEPS), micro_batches=2)

    assert_close(whole, parted)


@pytest.mark.parametrize(
    ("quantizer", "input_noise"),
    [("ema", 0.0), ("nearest", 0.0), ("gumbel", 0.0), ("gumbel", 0.2)],
)
def test_a_resumed_engine_goes_on_bit_for_bit(
    quantizer: Quantizer, input_noise: float, tmp_path: Path
) -> None:
    config = engine_config(quantizer, input_noise=input_noise)
    # From before, and from after the step at which the discriminator's term begins to count.
    for saved in (2, START + 1):
        with lone_engine(config) as engine:
            _steps(engine, range(saved))
            write_snapshot(engine, tmp_path)
            guard_state = engine.guard_state()
            whole = _steps(engine, range(saved, STEPS)) | saved_state(engine)

        with lone_engine(config) as engine:
            engine.load(tmp_path)
            engine.load_guard_state(guard_state)
            parted = _steps(engine, range(saved, STEPS)) | saved_state(engine)

        assert differing(whole, parted) == []


def test_the_encoder_alone_sees_the_noise() -> None:
    images = to_device(torch.full((4, 3, SIZE, SIZE), 128, dtype=torch.uint8), torch.device("cpu"))
    metrics = {}
    for input_noise in (0.0, 0.5):
        config = engine_config("nearest", input_noise=input_noise)
        with lone_engine(config) as engine:
            sums = engine._no_sums()
            generator = engine._generator("noise")
            output = engine._passes.tokenizer(
                images, sums, step=0, progress=0.0, generator=generator
            )
            metrics[input_noise] = metrics_of(sums.results(1, 1), 1, config)

    assert metrics[0.0]["perplexity"] == pytest.approx(1)
    assert metrics[0.5]["perplexity"] > 1
    error = float((output.reconstruction.clamp(-1, 1) - images).square().mean())
    assert metrics[0.5]["psnr"] == pytest.approx(-10 * math.log10(error / 4), rel=1e-5)


def _spoil_a_loss(engine: TokenizerEngine, network: str) -> None:
    """Let the loss of a network be NaN from now on."""
    whole: Any = getattr(engine._passes, network)

    def spoilt(*arguments: Any, **named: Any) -> Any:
        output = whole(*arguments, **named)
        if isinstance(output, Tensor):
            return output * torch.nan
        return output._replace(loss=output.loss * torch.nan)

    engine._passes.__dict__[network] = spoilt


def _spoil_the_second_rank(launch: Launch, network: str) -> dict[str, Any]:
    start_processes(launch, timeout_seconds=60)
    engine = build(engine_config("ema", revive_every=STEPS))
    _steps(engine, range(STEPS - 1))
    before = replicated_state(engine) | saved_state(engine)
    if launch.rank == 1:
        _spoil_a_loss(engine, network)
    take_step(engine, STEPS - 1)  # also one of revival
    decision = engine.last_decision().read()
    after = replicated_state(engine) | saved_state(engine)
    engine._passes.__dict__.pop(network, None)
    take_step(engine, STEPS)
    return {
        "reason": decision.reason,
        "changed": differing(before, after),
        "next": engine.last_decision().read().reason,
        "moved": differing(after, replicated_state(engine) | saved_state(engine)),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("network", ["tokenizer", "discriminator"])
def test_nan_on_one_rank_skips_the_step_of_both_networks_on_all(network: str) -> None:
    first, second = run_distributed(_spoil_the_second_rank, 2, network)

    for rank in (first, second):
        assert rank["reason"] == "nan"
        assert set(rank["changed"]) <= {"/image_tokenizer_training.pt/steps"}
        assert rank["next"] == ""
        for kind in ("tokenizer.kernels/weight", "discriminator.kernels/weight"):
            assert kind in rank["moved"]


def test_a_spike_of_the_reconstruction_loss_skips_the_step() -> None:
    config = engine_config(guards=GuardsConfig(spike_window=2, spike_deviations=3))
    with lone_engine(config) as engine:
        _steps(engine, range(3))
        before = saved_state(engine)

        engine._passes._loss.config = replace(config.objective, absolute_error_weight=50.0)
        take_step(engine, 3)

        assert engine.last_decision().read().reason == "spike"
        changed = differing(before, saved_state(engine))
    assert changed == ["/image_tokenizer_training.pt/steps"]


def test_the_discriminator_trains_before_its_term_counts() -> None:
    with lone_engine(engine_config("nearest")) as engine:
        of_steps = [saved_state(engine)]
        terms = []
        for step in range(START + 1):
            terms.append(result(take_step(engine, step), "adversarial_loss"))
            of_steps.append(saved_state(engine))
    with lone_engine(engine_config("nearest", adversarial=without_discriminator())) as engine:
        _steps(engine, range(START))
        without = saved_state(engine)

    place = "/image_tokenizer_training.pt/discriminator/updates"
    assert [int(state[place][0]) for state in of_steps] == [0, 0, 1, 2, 3]
    assert TRAIN_FROM == 1
    assert terms[:START] == [0.0] * START
    assert terms[START] != 0
    # Until its term counts, the tokenizer is the one of a run without discriminator.
    of_tokenizer = [name for name in without if name.startswith(place[:29] + "tokenizer")]
    assert of_tokenizer
    assert [name for name in of_tokenizer if not without[name].equal(of_steps[START][name])] == []


def test_the_rate_of_the_discriminator_follows_that_of_the_tokenizer() -> None:
    moved = {}
    for rate in (None, 2.0e-3):  # None: the tokenizer's, 1e-3
        adversarial = replace(ADVERSARIAL, train_from_step=0, learning_rate=rate)
        with lone_engine(engine_config(adversarial=adversarial)) as engine:
            before = replicated_state(engine)["discriminator.kernels/weight"]
            take_step(engine, 0)
            moved[rate] = replicated_state(engine)["discriminator.kernels/weight"] - before

    # The first step of AdamW is the rate times the sign of the gradient, and the decay.
    torch.testing.assert_close(moved[2.0e-3], 2 * moved[None])


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        pytest.param(0.0, 0.5, "the discriminator starts with fresh weights", id="none saved"),
        pytest.param(0.5, 0.0, "the discriminator is dropped", id="none wanted"),
    ],
)
def test_a_discriminator_that_begins_or_ends_at_a_restart_is_said(
    saved: float, loaded: float, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with lone_engine(engine_config(adversarial=replace(ADVERSARIAL, weight=saved))) as engine:
        _steps(engine, range(START + 1))
        write_snapshot(engine, tmp_path)

    with lone_engine(engine_config(adversarial=replace(ADVERSARIAL, weight=loaded))) as engine:
        engine.load(tmp_path)
        _steps(engine, range(START + 1, STEPS))

    assert message in caplog.text


def test_a_discriminator_of_another_shape_is_refused(tmp_path: Path) -> None:
    with lone_engine(engine_config()) as engine:
        write_snapshot(engine, tmp_path)

    wider = replace(ADVERSARIAL, base_channels=16)
    with (
        lone_engine(engine_config(adversarial=wider)) as engine,
        pytest.raises(InputError, match=r"set objective\.adversarial\.base_channels"),
    ):
        engine.load(tmp_path)


def test_unused_codes_move_only_after_a_step_that_was_made() -> None:
    for is_spoilt in (False, True):
        with lone_engine(engine_config("nearest", revive_every=STEPS)) as engine:
            _steps(engine, range(STEPS - 1))
            before = saved_state(engine)["/image_tokenizer_training.pt/code_counts"]
            if is_spoilt:
                _spoil_a_loss(engine, "tokenizer")
            take_step(engine, STEPS - 1)
            counts = saved_state(engine)["/image_tokenizer_training.pt/code_counts"]

        assert before.sum() == (STEPS - 1) * 8 * 4
        assert counts.tolist() == (before.tolist() if is_spoilt else [0] * 32)


def test_the_tokenizer_to_use_has_the_average_of_the_weights(tmp_path: Path) -> None:
    config = engine_config("ema")
    with lone_engine(config) as engine:
        _steps(engine, range(STEPS))
        write_snapshot(engine, tmp_path)
        used, state = engine.tokenizer().state_dict(), saved_state(engine)

    read = read_tokenizer(tmp_path, config.image_tokenizer)

    assert not read.training
    assert not any(each.requires_grad for each in read.parameters())
    assert differing(used, read.state_dict()) == []
    place = "/image_tokenizer_training.pt/tokenizer"
    name = "decoder.output.weight"
    assert used[name].equal(state[f"{place}/weight_average/{name}"])
    assert not used[name].equal(state[f"{place}/network/{name}"])


def test_a_step_in_bf16_keeps_weights_and_losses_in_float32() -> None:
    with lone_engine(engine_config()):
        engine = build(engine_config(), torch.bfloat16)
        results = [take_step(engine, step) for step in range(START + 1)]

        assert all(each.isfinite().all() for each in results)
        assert {each.dtype for each in replicated_state(engine).values()} <= {
            torch.float32,
            torch.int64,
        }


def test_metrics_of_a_run_are_those_of_its_terms() -> None:
    config = engine_config("nearest", adversarial=without_discriminator())
    with lone_engine(config) as engine:
        sums = take_step(engine, 0) + take_step(engine, 1)

    metrics = metrics_of(sums, 2, config)

    assert set(metrics) == {
        "loss", "reconstruction_loss", "commitment_loss", "codebook_loss", "psnr",
        "codebook_usage", "perplexity",
    }  # fmt: skip
    terms = ("reconstruction_loss", "commitment_loss", "codebook_loss")
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in terms), rel=1e-6)
    assert sums[-32:].sum() == 2 * 8 * 4  # codes of two steps of 8 pictures
