"""The verdict on a hang: which ranks hold up the run, by every rank's last heartbeat.

A rank without a new heartbeat is stopped or gone, or its machine is. Among live ranks, one that is
in the n-th collective of a group waits for the members that have started fewer than n. Following
these waits ends at ranks that wait for nobody, which hold up the run; or it goes round in a circle,
because ranks call collectives in different orders.

Source: torch's Flight Recorder searches for the rank that is behind in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_vilg.resilience.heartbeats import Beat
from ernie_vilg.resilience.members import Member
from ernie_vilg.runs.phases import Phase

_MAX_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Facts about all ranks at a timeout."""

    members: Sequence[Member]
    """Every rank, in their order."""
    beats: Mapping[int, Beat]
    """Last heartbeat of each rank that has any."""
    silent: frozenset[int]
    """Ranks without a new heartbeat."""
    states: Mapping[int, str]
    """Kernel's states of silent ranks on this machine, in words."""


@dataclass(frozen=True, kw_only=True)
class HangVerdict:
    """The ranks that hold up the run."""

    headline: str
    """One or two sentences for people."""
    suspects: tuple[int, ...]
    """Ranks that the others wait for."""


def find_suspects(findings: Findings) -> HangVerdict:
    """Name the ranks that hold up the run, with their phases and collectives."""
    members, beats = findings.members, findings.beats
    waits = {rank: late_members(rank, beats) for rank in beats}
    num_waiting = sum(bool(late) for rank, late in waits.items() if rank not in findings.silent)
    if findings.silent:
        suspects = sorted(findings.silent)
        told = _join([f"{members[rank]}: {_silence(rank, findings)}" for rank in suspects])
        return HangVerdict(
            headline=f"no heartbeat from {told}{_waiters(num_waiting)}", suspects=tuple(suspects)
        )
    waited_for = sorted(set().union(*waits.values()))
    suspects = [rank for rank in waited_for if not waits.get(rank)]
    if suspects:
        told = _join([f"{members[rank]} is {describe(beats[rank])}" for rank in suspects])
        return HangVerdict(headline=f"{told}{_waiters(num_waiting)}", suspects=tuple(suspects))
    if waited_for:
        told = _join(
            [f"{members[rank]} waits in {_collective(beats[rank])}" for rank in waited_for]
        )
        return HangVerdict(
            headline=f"ranks wait for each other, in collectives of different orders: {told}",
            suspects=tuple(waited_for),
        )
    return _verdict_without_waits(findings)


def late_members(rank: int, beats: Mapping[int, Beat]) -> set[int]:
    """Return the ranks that have not started the collective that `rank` waits in."""
    waits_in = beats[rank].collective
    if waits_in is None:
        return set()
    return {
        member
        for member in waits_in.members
        if member in beats and beats[member].counts.get(waits_in.key, 0) < waits_in.number
    }


def describe(beat: Beat) -> str:
    """Write a heartbeat for people."""
    words = f"{beat.phase}, step {beat.step}, for {beat.seconds:.0f} s"
    if beat.collective is not None:
        words += f", in {beat.collective.words}"
    elif beat.last:
        words += f", after {beat.last}"
    return words + (f" ({beat.reading})" if beat.reading else "")


def table(findings: Findings) -> list[str]:
    """Return a line per rank."""
    lines = []
    for member in findings.members:
        beat = findings.beats.get(member.rank)
        words = "nothing known" if beat is None else describe(beat)
        if beat is not None and (late := late_members(member.rank, findings.beats)):
            words += f"; waits for {_ranks(late)}"
        if member.rank in findings.silent:
            words = f"NO HEARTBEAT, {_silence(member.rank, findings)}; last seen: {words}"
        lines.append(f"{member}: {words}")
    return lines


def _verdict_without_waits(findings: Findings) -> HangVerdict:
    beats = findings.beats
    in_collectives = [beat for beat in beats.values() if beat.collective is not None]
    if in_collectives:
        return HangVerdict(
            headline=f"every rank has started {_collective(in_collectives[0])}, and it does not "
            "end: look at the network between the machines",
            suspects=(),
        )
    slowest = min(beats, key=lambda rank: _progress(beats[rank]), default=None)
    if slowest is None:
        return HangVerdict(headline="nothing is known of any rank", suspects=())
    return HangVerdict(
        headline=f"no rank waits in a collective; {findings.members[slowest]} is "
        f"{describe(beats[slowest])}",
        suspects=(slowest,),
    )


def _progress(beat: Beat) -> tuple[int, bool]:
    """Return a key that grows as a rank goes on: what follows a step has the step's number."""
    return beat.step, beat.phase not in (Phase.DATA, Phase.STEP)


def _collective(beat: Beat) -> str:
    assert beat.collective is not None, "the rank waits in one"
    return beat.collective.words


def _silence(rank: int, findings: Findings) -> str:
    if rank in findings.states:
        return findings.states[rank]
    return "on another machine, look there for a dead process or a lost network"


def _waiters(count: int) -> str:
    return f"; {count} {'rank waits' if count == 1 else 'ranks wait'}" if count else ""


def _ranks(ranks: set[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + _join([str(rank) for rank in sorted(ranks)])


def _join(words: list[str]) -> str:
    num_hidden = len(words) - _MAX_NAMED
    return ", ".join(words[:_MAX_NAMED]) + (f" and {num_hidden} more" if num_hidden > 0 else "")
