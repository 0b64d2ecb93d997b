"""Settings of the trace of some steps."""

from dataclasses import dataclass

from ernie_vilg.config.schema import NaturalInt, PositiveInt, Settings
from ernie_vilg.errors import InputError

MOST_STEPS = 100
"""Largest number of traced steps: a step has thousands of events, and viewers load them all."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Settings, section="profile"):
    """A trace of every operation in some steps, and on a GPU of every allocation."""

    steps: tuple[PositiveInt, ...] = ()
    """First and last step, such as [10,15]; none turns it off. A start traces them once, those
    that it makes."""
    ranks: tuple[NaturalInt, ...] = (0,)
    """Ranks that write a trace; 0 is the leader."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps and len(self.steps) != 2:
            raise InputError(
                f"profile.steps={list(self.steps)}: give the first and the last step, such as "
                "[10,15], or [] to turn it off"
            )
        if self.steps and not 0 <= self.steps[1] - self.steps[0] < MOST_STEPS:
            raise InputError(
                f"profile.steps={list(self.steps)}: the last step must not be below the first, and "
                f"at most {MOST_STEPS} steps are traced"
            )
        if not self.ranks or len(set(self.ranks)) < len(self.ranks):
            raise InputError(
                f"profile.ranks={list(self.ranks)}: name at least one rank, and none twice"
            )

    def check_run(self, steps: int, world_size: int) -> None:
        """Check that a run makes these steps on these ranks.

        Args:
            steps: steps of the run.
            world_size: number of its ranks.

        Raises:
            InputError: it does not.
        """
        if not self.steps:
            return
        if self.steps[1] > steps:
            raise InputError(
                f"profile.steps={list(self.steps)} with training.steps={steps}: the run ends "
                "before, lower the former"
            )
        if max(self.ranks) >= world_size:
            raise InputError(
                f"profile.ranks={list(self.ranks)} on {world_size} rank(s): they count from 0, so "
                f"{world_size - 1} is the last"
            )
