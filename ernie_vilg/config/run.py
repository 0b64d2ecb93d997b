"""The settings that every training run has, whatever it trains.

`PretrainConfig` and `TrainImageTokenizerConfig` have them, so both runs share the loop and its
parts.
"""

from typing import Protocol

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.cluster import ClusterConfig
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.profile import ProfileConfig
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.errors import InputError


class RunLength(Protocol):
    """Length of a run, and its log."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the run, all restarts together."""

    @property
    def log_every(self) -> int:
        """Interval of lines in the log and in metrics.jsonl, steps."""


class RunConfig(Protocol):
    """Settings of a training run."""

    @property
    def run_dir(self) -> str:
        """Run folder for all files of the run."""

    @property
    def precision(self) -> str:
        """Number format of the networks, or auto."""

    @property
    def allow_changes(self) -> tuple[str, ...]:
        """Guarded settings that may change when the run resumes."""

    @property
    def batch_sizes(self) -> BatchSizes:
        """Samples of every optimizer step, all ranks together."""

    @property
    def training(self) -> RunLength:
        """Length of the run, and its log."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Optimizer and its schedule."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """Checkpoints."""

    @property
    def tracking(self) -> TrackingConfig:
        """W&B and TensorBoard."""

    @property
    def profile(self) -> ProfileConfig:
        """Trace of some steps."""

    @property
    def stopping(self) -> StoppingConfig:
        """Stopping on request."""

    @property
    def watch(self) -> WatchConfig:
        """Watchdog."""

    @property
    def guards(self) -> GuardsConfig:
        """Guards."""

    @property
    def cluster(self) -> ClusterConfig:
        """Machines."""


def require_timeouts_in_order(config: RunConfig) -> None:
    """Check that a hanging step is reported before its collectives fail.

    Raises:
        InputError: the timeout of a step is not below that of collectives.
    """
    step, collective = config.watch.step_timeout_seconds, config.cluster.collective_timeout_seconds
    if step >= collective:
        raise InputError(
            f"watch.step_timeout_seconds={step} is not below "
            f"cluster.collective_timeout_seconds={collective}: "
            "the run would end before it can say why, raise the latter"
        )
