"""Skips an update on all ranks if a gradient or the loss is not finite, or if the loss spikes.

Each rank computes the norm of the gradients that it is about to use, and its part of the loss. One
small all-gather shows both of every rank to every rank, so all decide alike, before any weight
changes; it also carries the squares that `updates` clips by. The decision is a tensor on the
device, which the fused optimizer obeys (`found_inf`, the protocol of torch's GradScaler): weights,
moments, the count of steps and the average of the weights stay as they are, bit for bit.

Where DeepSpeed makes the update, it also skips some, by the norm of the whole gradient. That norm
counts a replicated tensor on one rank only, so it misses a non-finite value on another replica;
this guard checks every rank. If both find one, DeepSpeed returns before the optimizer runs, and the
decision is the same. In float16 DeepSpeed handles overflows itself, by lowering the loss scale;
they are no fault, and the guard does not check gradients then.

A loss x is a spike if, after at least `spike_window` accepted steps,

    x > mean + spike_deviations * max(deviation, LEAST_DEVIATION * |mean|)

with the running mean and variance of the accepted losses. The n-th accepted step updates them with
a = max(1 / n, 1 / spike_window): d = x - mean; mean += a * d; variance = (1 - a) * (variance +
a * d^2). They are exact for the first `spike_window` steps and decay exponentially afterwards.

Source: the running variance is West's (1979), weighted as by Finch (2009).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.parallel.engine.updates import DeepSpeedUpdate, Update
from ernie_vilg.parallel.engine.zero_shards import ZeroShards
from ernie_vilg.parallel.layout.groups import Groups

LEAST_DEVIATION = 0.01
"""Smallest deviation, as a fraction of the mean, for a loss that hardly moves."""

REASONS = ("", "nan", "inf", "spike")
"""Reasons to skip an update, by their number in a decision; 0 means that it is made."""

_NAN, _INF, _SPIKE = 1, 2, 3
_STATISTICS = ("count", "mean", "variance")
_HEAD = 4  # numbers of a decision before those of each rank


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision about one update, read on the host."""

    reason: str
    """Reason to skip the update, one of `REASONS`; empty if it was made."""
    loss: float
    """Mean loss of the global batch."""
    limit: float
    """Largest loss that is no spike; infinity while there is no limit."""
    gradient_norm: float
    """Norm of the whole gradient, before clipping; infinity if it is not finite."""
    ranks: tuple[int, ...]
    """Ranks whose loss or gradients were not finite. Gradients are summed over replicas before, so
    the rank of a loss is the better hint."""

    @property
    def is_made(self) -> bool:
        """Whether the weights changed."""
        return not self.reason


class PendingDecision:
    """A decision that is being copied to the host."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy.

        Args:
            values: number of the reason, loss, limit and norm, then loss and norm of each rank,
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
        """Return the decision; waits until the device has made it."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        code, loss, limit, norm, *of_ranks = self._values.tolist()
        is_finite = [math.isfinite(value) for value in of_ranks]
        pairs = zip(is_finite[::2], is_finite[1::2], strict=True)
        bad = [rank for rank, both in enumerate(pairs) if not all(both)]
        return Decision(
            reason=REASONS[int(code)],
            loss=loss,
            limit=limit,
            gradient_norm=norm if math.isfinite(norm) and norm >= 0 else math.inf,
            ranks=tuple(bad),
        )


class UpdateGuard:
    """The guard of one engine, which decides about each update before it is made."""

    def __init__(
        self,
        update: Update,
        groups: Groups,
        config: GuardsConfig,
        *,
        read_loss: Callable[[], Tensor],
        scales_loss: bool = False,
    ) -> None:
        """Guard an update.

        Args:
            update: update to make or to skip.
            groups: this rank's groups.
            config: definition of a spike.
            read_loss: returns this rank's loss summed over the step's micro-batches, float32 [];
                zero on ranks without the head.
            scales_loss: whether DeepSpeed scales the loss and handles overflows itself.
        """
        self.update = update
        """Update that is made or skipped."""
        self._config = config
        self._read_loss = read_loss
        self._scales_loss = scales_loss
        self._num_copies = groups.data_size * groups.tensor_size
        self._num_losses = 0  # of a step
        self._world_size = groups.world_size
        self._device = groups.device
        self._statistics = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._values = torch.zeros(
            _HEAD + 2 * self._world_size, dtype=torch.float64, device=self._device
        )

    @property
    def last_skip(self) -> Tensor:
        """Flag that is 1 if the last update was skipped, else 0; float32 [] on the device."""
        return (self._values[0] > 0).float()

    def last_decision(self) -> PendingDecision:
        """Return the decision about the last update, without waiting for the device."""
        return PendingDecision(self._values)

    def state(self) -> dict[str, float]:
        """Return the running statistics as JSON numbers, exactly; waits for the device."""
        return dict(zip(_STATISTICS, self._statistics.tolist(), strict=True))

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from the statistics of `state`; an empty one starts fresh ones."""
        values = [float(state.get(name, 0.0)) for name in _STATISTICS]
        self._statistics = torch.tensor(values, dtype=torch.float64, device=self._device)

    def begin_step(self, num_micro_batches: int) -> None:
        """Prepare for the backward passes of a step.

        Args:
            num_micro_batches: number of micro-batches per replica, with a pass each.
        """
        self._num_losses = self._num_copies * num_micro_batches
        self.update.begin_step(num_micro_batches)

    @torch.no_grad()
    def make_update(self) -> None:
        """Decide with all ranks, then make or skip the update."""
        table = self._exchange()
        of_ranks = table[:, :2]
        loss = of_ranks[:, 0].sum() / self._num_losses
        limit = spike_limit(self._statistics, self._config)
        code = skip_reason(of_ranks, loss, limit)
        norm = self.update.apply((code > 0).float(), table[:, 2].sum())
        if not self._scales_loss:  # finite values whose squares overflow
            code = torch.where((code == 0) & ~norm.isfinite(), _INF, code)
        self._statistics = torch.where(
            code == 0, updated_statistics(self._statistics, loss, self._config), self._statistics
        )
        head = torch.stack([code.double(), loss, limit, norm])
        self._values = torch.cat([head, of_ranks.flatten()])

    def _exchange(self) -> Tensor:
        """Return loss, norm and squares that count of every rank, float64 [rank, 3]."""
        mine = torch.cat([self._read_loss().double().reshape(1), self.update.norms()])
        # Gathered, not reduced, so that each rank adds the same numbers in the same order.
        of_ranks = mine.new_empty(self._world_size * 3)
        dist.all_gather_into_tensor(of_ranks, mine)
        return of_ranks.view(self._world_size, 3)


def guard_deepspeed(
    shards: ZeroShards,
    groups: Groups,
    config: GuardsConfig,
    *,
    read_loss: Callable[[], Tensor],
    scales_loss: bool,
    update: Update | None = None,
) -> UpdateGuard:
    """Replace the `step` of DeepSpeed's optimizer by a guarded update, and return the guard.

    Args:
        shards: tensors that the optimizer updates.
        groups: as in `UpdateGuard`.
        config: as in `UpdateGuard`.
        read_loss: as in `UpdateGuard`.
        scales_loss: as in `UpdateGuard`.
        update: update to make; None: DeepSpeed's.
    """
    of_deepspeed = shards.replace_step(lambda closure=None: guard.make_update())
    guard = UpdateGuard(
        update or DeepSpeedUpdate(shards, of_deepspeed, groups.device, has_norm=not scales_loss),
        groups,
        config,
        read_loss=read_loss,
        scales_loss=scales_loss,
    )
    return guard


def skip_reason(of_ranks: Tensor, loss: Tensor, limit: Tensor) -> Tensor:
    """Return the number of the reason to skip an update.

    Args:
        of_ranks: loss and gradient norm of each rank, float64 [rank, 2].
        loss: mean loss of the global batch, float64 [].
        limit: largest loss that is no spike, float64 [].

    Returns:
        index into `REASONS`, int64 [], on the device of the arguments.
    """
    is_infinite, is_nan = of_ranks.isinf().any(), of_ranks.isnan().any()
    code = torch.where(loss > limit, _SPIKE, 0)
    code = torch.where(is_infinite, _INF, code)
    return torch.where(is_nan, _NAN, code)


def spike_limit(statistics: Tensor, config: GuardsConfig) -> Tensor:
    """Return the largest loss of the next step that is no spike.

    Args:
        statistics: number, mean and variance of the accepted losses, float64 [3].
        config: definition of a spike.

    Returns:
        the limit, float64 []; infinity before `spike_window` steps or without a spike check.
    """
    count, mean, variance = statistics.unbind()
    deviation = torch.maximum(variance.sqrt(), LEAST_DEVIATION * mean.abs())
    limit = mean + config.spike_deviations * deviation
    is_young = count < config.spike_window
    never = is_young if config.spike_deviations else torch.ones_like(is_young)
    return torch.where(never, math.inf, limit)


def updated_statistics(statistics: Tensor, loss: Tensor, config: GuardsConfig) -> Tensor:
    """Return the statistics after one more accepted loss.

    Args:
        statistics: number, mean and variance of the losses so far, float64 [3].
        loss: the next accepted loss, float64 [].
        config: definition of a spike, with its window.
    """
    count, mean, variance = statistics.unbind()
    count = count + 1
    weight = (1 / count).clamp(min=1 / config.spike_window)
    difference = loss - mean
    variance = (1 - weight) * (variance + weight * difference.square())
    return torch.stack([count, mean + weight * difference, variance])
