"""A step's number becomes one replica's decoded samples, read ahead by workers.

The global batch of step s is a run of positions of the training sequence, and a replica takes one
of equal parts of it (`sequence.order.ReplicaSlice`), whatever the layout. The data state of a
checkpoint is therefore its step. Tokens and pictures are read in the same way.
"""

from collections.abc import Callable
from functools import partial
from typing import Generic

from ernie_vilg.data.batches.workers import OnWait, PrefetchedSteps
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_reader import DecodedSamples, SampleReader
from ernie_vilg.data.sequence.sample_sequence import ContentT, SampleSequence
from ernie_vilg.data.shards.damage import DamageAccount, DamageFinding


class StepSamples(Generic[ContentT]):
    """One replica's samples of every step, and the account of damage among them."""

    def __init__(
        self,
        sequence: SampleSequence[ContentT],
        replica: ReplicaSlice,
        *,
        known_damage: tuple[DamageFinding, ...] = (),
        on_damage: Callable[[list[DamageFinding]], object] = lambda findings: None,
        pin_memory: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            sequence: the training sequence.
            replica: this replica's positions.
            known_damage: damage found before, which counts towards the limits.
            on_damage: called with new findings.
            pin_memory: whether samples are in pinned memory.

        Raises:
            InputError: the shards cannot be read with these settings.
        """
        self._on_damage = on_damage
        self._account = DamageAccount(sequence.damage_limits, known_damage)
        self._steps = PrefetchedSteps(
            partial(_StepReader, sequence, replica), sequence.loader, pin_memory=pin_memory
        )

    def at(self, step: int) -> DecodedSamples[ContentT]:
        """Return this replica's samples of a step.

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError: a shard differs from the manifest, or a sample cannot be used; or, with
                `loader.damage=skip`, too many do.
            TimeoutError: reading stalls; the message names the shard.
            RuntimeError: a worker died.
        """
        return self.account_for(self._steps.at(step))

    def account_for(self, samples: DecodedSamples[ContentT]) -> DecodedSamples[ContentT]:
        """Add damage among some samples to the account; return the samples.

        Raises:
            InputError: a limit is reached.
        """
        new = self._account.add(samples.findings, samples.origins.is_damaged)
        if new:
            self._on_damage(new)
        return samples

    @property
    def doing(self) -> str:
        """Activity of the workers, with the shards they wait for; any thread may ask."""
        return self._steps.doing

    def close(self) -> None:
        """End the workers and close every file."""
        self._steps.close()


class _StepReader(Generic[ContentT]):
    """Reads one replica's samples of steps, in a worker or in the rank itself."""

    def __init__(
        self, sequence: SampleSequence[ContentT], replica: ReplicaSlice, on_wait: OnWait
    ) -> None:
        self._replica = replica
        self._reader = SampleReader(sequence, on_wait)

    def at(self, step: int) -> DecodedSamples[ContentT]:
        return self._reader.read(self._replica.positions(step))

    def close(self) -> None:
        self._reader.close()
