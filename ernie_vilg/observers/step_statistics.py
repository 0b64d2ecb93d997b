"""Figures of gradients, weights, updates and activations of a step, for the tracker."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.statistics import StatisticsConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.state.step_statistics import KINDS, Statistics, StepStatistics
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.phases import Phase
from ernie_vilg.training.callbacks import StepBoundary


class StatisticsOfSteps:
    """The callback that measures a step every so many, while it is made."""

    phase = Phase.STATISTICS

    def __init__(self, config: StatisticsConfig) -> None:
        self.every = config.every
        self._config = config
        self._statistics: StepStatistics | None = None

    @contextmanager
    def around(self, engine: Engine, step: int) -> Iterator[None]:
        """Measure the step that is made within, if it is due."""
        if step % self.every:
            yield
            return
        if self._statistics is None:
            self._statistics = StepStatistics(engine)
        with self._statistics.measuring():
            yield

    def run(self, boundary: StepBoundary[PretrainConfig, Engine]) -> Observation:
        """Return the figures of the step that was just made; all ranks must call."""
        assert self._statistics is not None, "the step was made in `around`"
        measured = self._statistics.reduce()
        return Observation(metrics=figures(measured, by_layer=self._config.by_layer), pictures={})


def figures(statistics: Statistics, *, by_layer: bool) -> dict[str, Any]:
    """Return the figures of a step by their names in the log.

    Args:
        statistics: squares and largest hidden states of the step.
        by_layer: whether to give the norms of each layer as well.
    """
    squares = statistics.squares
    kinds = squares.sum(dim=0)  # [kind, 3]
    metrics: dict[str, Any] = {}
    for index, kind in enumerate(KINDS):
        gradient, weight, ratio = _norms(kinds[index])
        if weight:  # else the model has no parameter of this kind
            metrics[f"gradient_norm/{kind}"] = gradient
            metrics[f"weight_norm/{kind}"] = weight
            metrics[f"update_ratio/{kind}"] = ratio
    if by_layer:
        layers = [_norms(layer) for layer in squares.sum(dim=1)]
        metrics["gradient_norm_by_layer"] = [gradient for gradient, _, _ in layers]
        metrics["weight_norm_by_layer"] = [weight for _, weight, _ in layers]
        metrics["update_ratio_by_layer"] = [ratio for _, _, ratio in layers]
    metrics["largest_activation"] = statistics.largest.tolist()
    return {f"statistics/{name}": value for name, value in metrics.items()}


def _norms(squares: Tensor) -> tuple[float, float, float | None]:
    """Return the norms of gradient and weight, and the update's over the weight's."""
    gradient, weight, update = squares.sqrt().tolist()
    return gradient, weight, update / weight if weight else None
