"""What the loop needs of the ledger, which one rank alone writes.

Source: ours.
"""

from typing import Protocol


class StepLog(Protocol):
    """The black box: which positions of the sequence each step trained on."""

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Record a step that has just been made, counted from 1."""

    def flush(self) -> None:
        """Take all records to the device."""

    def close(self) -> None:
        """Flush and close."""


class SilentStepLog:
    """Of all ranks but the leader."""

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
