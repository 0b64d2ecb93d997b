"""Which updates are made: all ranks decide alike, once per step, before a weight changes.

An update is left out where a gradient or the loss is not finite, or where the loss jumps. Every
rank looks at the gradients that it is about to use and at its part of the loss; one small exchange
shows every rank all of them, so that no rank can decide otherwise. The verdict is a tensor on the
device, which the fused optimizer obeys there (`found_inf`, the protocol of torch's GradScaler):
weights, moments, the count of steps and the average of the weights stay as they are, bit for bit.

DeepSpeed leaves out updates too, by the norm of the whole gradient, before it reaches the
optimizer. That norm has every tensor that several ranks hold alike from one of them alone: a value
that is not finite on another one is seen here only. Where both see it, DeepSpeed returns early, and
the verdict is the same. Overflows of float16 are its own: it lowers the loss scale, which is no
fault, and gradients are not looked at here then.

A loss x is a spike if, after at least `spike_window` accepted steps,

    x > mean + spike_deviations * max(deviation, LEAST_DEVIATION * |mean|)

with the mean and the variance of the accepted steps so far, the n-th of which moves them by
a = max(1 / n, 1 / spike_window): d = x - mean; mean += a * d; variance = (1 - a) * (variance +
a * d^2). Up to `spike_window` steps these are those of all steps, later they forget exponentially.

Source: ours; the running variance is West's (1979), weighted as by Finch (2009).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.parallel.engine.zero_shards import ZeroShards
from ernie_vilg.parallel.layout.groups import Groups

LEAST_DEVIATION = 0.01
"""Share of the mean that counts as one deviation where the loss hardly moves."""

REASONS = ("", "nan", "inf", "spike")
"""Why an update is left out, by its number in a verdict; 0 where it is made."""

_NAN, _INF, _SPIKE = 1, 2, 3
_STATISTICS = ("count", "mean", "variance")
_HEAD = 4  # numbers of a verdict before those of each rank


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about one update, read on the host."""

    reason: str
    """One of `REASONS`."""
    loss: float
    """Mean over the global batch."""
    limit: float
    """Above which the loss would have been a spike; infinity while there is no limit."""
    gradient_norm: float
    """Of the whole gradient, before clipping; infinity where it is not finite."""
    ranks: tuple[int, ...]
    """Whose loss or gradients were not finite. With several replicas a gradient has been summed
    over all of them by then: the rank of a loss is the better hint."""

    @property
    def is_made(self) -> bool:
        """Whether the weights changed."""
        return not self.reason


class PendingDecision:
    """A verdict on its way to the host, which nobody has waited for yet."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy.

        Args:
            values: number of the reason, loss, limit, norm; then loss and norm of each rank;
                float64 [4 + 2 * ranks] on the device.
        """
        self._is_copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._is_copied = torch.cuda.Event()
            self._is_copied.record()
        else:
            self._values = values

    def read(self) -> Decision:
        """Return it, once the device has come that far."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        code, loss, limit, norm = self._values[:_HEAD].tolist()
        of_ranks = self._values[_HEAD:].view(-1, 2)
        bad = (~of_ranks.isfinite()).any(dim=1).nonzero().flatten().tolist()
        return Decision(
            reason=REASONS[int(code)],
            loss=loss,
            limit=limit,
            gradient_norm=norm if math.isfinite(norm) and norm >= 0 else math.inf,
            ranks=tuple(bad),
        )


class UpdateGuard:
    """Stands between DeepSpeed and the optimizer; one per engine, used by all ranks alike."""

    def __init__(
        self,
        shards: ZeroShards,
        groups: Groups,
        config: GuardsConfig,
        *,
        read_loss: Callable[[], Tensor],
        num_micro_batches: int,
        scales_loss: bool,
    ) -> None:
        """Take the place of the optimizer's `step`.

        Args:
            shards: what the optimizer updates.
            groups: this rank's place.
            config: what a spike is.
            read_loss: returns this rank's loss summed over the step's micro-batches, float32 [];
                zero on ranks without the head.
            num_micro_batches: of each replica and step.
            scales_loss: whether DeepSpeed does, and deals with overflows itself.
        """
        self._shards = shards
        self._update = shards.replace_step(self._guarded_update)
        self._config = config
        self._read_loss = read_loss
        self._scales_loss = scales_loss
        self._num_losses = groups.data_size * groups.tensor_size * num_micro_batches
        self._world_size = groups.world_size
        self._device = groups.device
        self._statistics = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._values = torch.zeros(
            _HEAD + 2 * self._world_size, dtype=torch.float64, device=self._device
        )

    @property
    def last_skip(self) -> Tensor:
        """1 where the last update was left out, else 0; float32 [] on the device."""
        return (self._values[0] > 0).float()

    def last_decision(self) -> PendingDecision:
        """Return the verdict about the last update, without waiting for the device."""
        return PendingDecision(self._values)

    def state(self) -> dict[str, float]:
        """Return the running statistics as JSON numbers, exactly; waits for the device."""
        return dict(zip(_STATISTICS, self._statistics.tolist(), strict=True))

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on with the statistics of `state`; with none where it is empty."""
        values = [float(state.get(name, 0.0)) for name in _STATISTICS]
        self._statistics = torch.tensor(values, dtype=torch.float64, device=self._device)

    @torch.no_grad()
    def _guarded_update(self, *arguments: Any, **keywords: Any) -> Any:
        """Decide, then let DeepSpeed make the update or leave it out."""
        of_ranks = self._exchange()
        loss = of_ranks[:, 0].sum() / self._num_losses
        limit = spike_limit(self._statistics, self._config)
        code = skip_reason(of_ranks, loss, limit)
        flag = (code > 0).float()
        optimizer: Any = self._shards.optimizer
        # The optimizer itself would copy it to the host without waiting for the copy.
        optimizer.found_inf = flag.cpu() if self._shards.is_offloaded else flag
        try:
            result = self._update(*arguments, **keywords)
        finally:
            optimizer.found_inf = None
        if self._shards.has_overflowed:
            self._shards.drop_gradients()
            if not self._scales_loss:  # the values may be finite, and the sum of their squares not
                code = torch.where(code == 0, _INF, code)
        self._statistics = torch.where(
            code == 0, updated_statistics(self._statistics, loss, self._config), self._statistics
        )
        norm = torch.as_tensor(self._shards.gradient_norm, device=self._device)
        head = [code.double(), loss, limit, norm.double().reshape(())]
        self._values = torch.cat([torch.stack(head), of_ranks.flatten()])
        return result

    def _exchange(self) -> Tensor:
        """Return every rank's loss and gradient norm, float64 [rank, 2]; a collective."""
        norm = torch.zeros((), device=self._device)
        if not self._scales_loss:
            norm = get_total_norm(self._shards.gradients()).to(self._device)
        mine = torch.stack([self._read_loss().double(), norm.double()])
        # Gathered, not reduced: each rank adds the same numbers in the same order.
        of_ranks = mine.new_empty(self._world_size * 2)
        dist.all_gather_into_tensor(of_ranks, mine)
        return of_ranks.view(self._world_size, 2)


def skip_reason(of_ranks: Tensor, loss: Tensor, limit: Tensor) -> Tensor:
    """Return the number of the reason to leave an update out.

    Args:
        of_ranks: loss and gradient norm of each rank, float64 [rank, 2].
        loss: of the global batch, float64 [].
        limit: above which a loss is a spike, float64 [].

    Returns:
        index into `REASONS`, int64 [], on the device of the arguments.
    """
    is_infinite, is_nan = of_ranks.isinf().any(), of_ranks.isnan().any()
    code = torch.where(loss > limit, _SPIKE, 0)
    code = torch.where(is_infinite, _INF, code)
    return torch.where(is_nan, _NAN, code)


def spike_limit(statistics: Tensor, config: GuardsConfig) -> Tensor:
    """Return the loss above which the next step is a spike.

    Args:
        statistics: number, mean and variance of the accepted losses, float64 [3].
        config: what a spike is.

    Returns:
        float64 []; infinity before `spike_window` steps, and where spikes are not looked for.
    """
    count, mean, variance = statistics.unbind()
    deviation = torch.maximum(variance.sqrt(), LEAST_DEVIATION * mean.abs())
    limit = mean + config.spike_deviations * deviation
    is_young = count < config.spike_window
    never = is_young if config.spike_deviations else torch.ones_like(is_young)
    return torch.where(never, math.inf, limit)


def updated_statistics(statistics: Tensor, loss: Tensor, config: GuardsConfig) -> Tensor:
    """Return the statistics with one more accepted loss.

    Args:
        statistics: number, mean and variance of the losses so far, float64 [3].
        loss: the next one, float64 [].
        config: gives the window.
    """
    count, mean, variance = statistics.unbind()
    count = count + 1
    share = (1 / count).clamp(min=1 / config.spike_window)
    difference = loss - mean
    variance = (1 - share) * (variance + share * difference.square())
    return torch.stack([count, mean + share * difference, variance])
