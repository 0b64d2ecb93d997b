"""Health of both directions while a model trains: their gradients, and round trips."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.evaluation.health_picture import HealthRow, health_picture
from ernie_vilg.evaluation.pairs import Pair, read_pairs
from ernie_vilg.evaluation.round_trip import RoundTrips, agreement_of_captions, take_round_trips
from ernie_vilg.evaluation.two_way import TwoWay, compare_directions, suggested_weights
from ernie_vilg.generation.decode import ShouldStop, StoppedError, never
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.observers.model_of_run import model_of_run, within_memory
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes, write_json


@within_memory("health")
def measure_health(
    config: PretrainConfig,
    step: int,
    weights: dict[str, Tensor],
    should_stop: ShouldStop = never,
) -> Observation | None:
    """Compare both directions on the first pairs of `health.pairs`.

    It writes `health/step_<step>.png` and `.json` into the run folder. It changes neither the run's
    weights nor the state of a random generator.

    Args:
        config: settings of the run.
        step: steps taken so far.
        weights: every parameter by name, whole, in any precision.
        should_stop: called repeatedly; true ends the measurement.

    Returns:
        the figures and the picture; `health/skipped` alone if the GPU lacks the memory; None if
        `should_stop` returned true. Nothing is written then.
    """
    folder = config.health.pairs or config.samples.pairs
    assert folder is not None  # checked by PretrainConfig
    model, batch_size = model_of_run(config, weights, config.health.count)
    size = model.image_tokenizer.config.image_size
    pairs = read_pairs(Path(folder), count=config.health.count, image_size=size)
    text = model.text_ids([pair.caption for pair in pairs])
    # A clone, because autograd refuses tensors made in inference mode.
    codes = model.encode_images([pair.image for pair in pairs]).flatten(1).clone()
    try:
        two_way = compare_directions(
            model.transformer,
            config.model,
            (text, codes),
            batch_size=batch_size,
            should_stop=should_stop,
        )
        trips = take_round_trips(
            model, text, codes, temperature=config.samples.temperature, should_stop=should_stop
        )
    except StoppedError:
        return None
    metrics = health_metrics(two_way, trips, (text, codes), config.objective)
    rows = _rows(model, pairs, trips)
    path = RunFolder(Path(config.run_dir)).health(step)
    write_bytes(path, _picture(step, two_way, trips, rows))
    write_json(path.with_suffix(".json"), _record(step, metrics, rows))
    return Observation(
        metrics=metrics, pictures={"health": path}, captions={"health": _legend(rows)}
    )


def health_metrics(
    two_way: TwoWay, trips: RoundTrips, pairs: tuple[Tensor, Tensor], objective: ObjectiveConfig
) -> dict[str, float]:
    """Return the figures of a measurement by their names in the log.

    Args:
        two_way: both directions' losses and gradients.
        trips: both round trips.
        pairs: true text ids [pairs, text_length] and codes [pairs, num_image_tokens].
        objective: the present weights of both losses.
    """
    text, codes = pairs
    whole = two_way.whole
    text_to_image_weight, image_to_text_weight = suggested_weights(whole, objective)
    is_exact = (trips.rewritten == text).all(dim=1)
    metrics = {
        "loss_text_to_image": two_way.text_to_image_loss,
        "loss_image_to_text": two_way.image_to_text_loss,
        "gradient_norm_text_to_image": whole.text_to_image_norm,
        "gradient_norm_image_to_text": whole.image_to_text_norm,
        "gradient_cosine": whole.cosine,
        **{f"gradient_cosine_{name}": part.cosine for name, part in two_way.groups.items()},
        "suggested_text_to_image_weight": text_to_image_weight,
        "suggested_image_to_text_weight": image_to_text_weight,
        "text_log_likelihood_given_image": _mean(trips.text_given_image),
        "text_log_likelihood_given_drawing": _mean(trips.text_given_drawing),
        "image_log_likelihood_given_text": _mean(trips.image_given_text),
        "image_log_likelihood_given_writing": _mean(trips.image_given_writing),
        "round_trip_caption_rouge_l": agreement_of_captions(text, trips.rewritten),
        "round_trip_caption_exact": _mean(is_exact),
        "drawn_code_agreement": _mean(trips.drawn.codes == codes),
        "round_trip_code_agreement": _mean(trips.redrawn.codes == codes),
    }
    return {f"health/{name}": value for name, value in metrics.items()}


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _rows(model: ErnieVilg, pairs: list[Pair], trips: RoundTrips) -> list[HealthRow]:
    columns = zip(
        pairs,
        model.pictures(trips.drawn),
        model.pictures(trips.redrawn),
        model.captions(trips.rewritten),
        model.captions(trips.written),
        strict=True,
    )
    return [
        HealthRow(
            pictures=(pair.image, drawn, redrawn), captions=(pair.caption, rewritten, written)
        )
        for pair, drawn, redrawn, rewritten, written in columns
    ]


def _picture(step: int, two_way: TwoWay, trips: RoundTrips, rows: list[HealthRow]) -> bytes:
    return health_picture(
        rows,
        title=f"two-way health at step {step}",
        cosines={
            "whole model": two_way.whole.cosine,
            **{name: part.cosine for name, part in two_way.groups.items()},
        },
        likelihoods={
            "caption": (_mean(trips.text_given_image), _mean(trips.text_given_drawing)),
            "picture": (_mean(trips.image_given_text), _mean(trips.image_given_writing)),
        },
    )


def _record(step: int, metrics: dict[str, float], rows: list[HealthRow]) -> dict[str, Any]:
    names = ("caption", "rewritten_for_its_drawing", "written")
    return {
        "step": step,
        "metrics": metrics,
        "pairs": [dict(zip(names, row.captions, strict=True)) for row in rows],
    }


def _legend(rows: list[HealthRow]) -> str:
    """Return a line per pair: the true caption and the captions written for both pictures."""
    return "\n".join(f"{index}. {' | '.join(row.captions)}" for index, row in enumerate(rows, 1))
