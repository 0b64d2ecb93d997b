"""Who holds up a run, from what every rank last said.

A rank that has left no new sign of life is stopped, gone, or its machine is. Among those that live,
a rank that waits in the n-th collective of some group waits for the members that have started fewer
than n. Following that leads to ranks that wait for nobody: they hold up the run, with what they are
doing; or in a circle: then ranks call collectives in different orders.

Source: ours; the search for the rank that is behind follows torch's Flight Recorder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ernie_vilg.resilience.heartbeats import Beat, Member
from ernie_vilg.runs.phases import Phase

_MAX_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known when time is up."""

    crew: Sequence[Member]
    """Every rank, in their order."""
    beats: Mapping[int, Beat]
    """The last sign of life of each rank that has left one."""
    silent: frozenset[int]
    """Ranks without a new sign of life."""
    states: Mapping[int, str]
    """What the kernel says of silent ranks of this machine."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who it is."""

    headline: str
    """One or two sentences."""
    suspects: tuple[int, ...]
    """Ranks that hold up the others."""


def judge(findings: Findings) -> Verdict:
    """Name the ranks that hold up the run, and say what is known of them."""
    waits = {rank: late_members(rank, findings.beats) for rank in findings.beats}
    num_waiting = sum(bool(late) for rank, late in waits.items() if rank not in findings.silent)
    if findings.silent:
        suspects = sorted(findings.silent)
        told = _join([f"{findings.crew[rank]}: {_silence(rank, findings)}" for rank in suspects])
        return Verdict(
            headline=f"no sign of life from {told}{_waiters(num_waiting)}", suspects=tuple(suspects)
        )
    waited_for = set().union(*waits.values()) if waits else set()
    suspects = sorted(rank for rank in waited_for if not waits.get(rank))
    if suspects:
        told = _join([f"{findings.crew[r]} is {doing(findings.beats[r])}" for r in suspects])
        return Verdict(headline=f"{told}{_waiters(num_waiting)}", suspects=tuple(suspects))
    if waited_for:
        told = _join([f"{findings.crew[r]} waits in {_place(findings, r)}" for r in waited_for])
        return Verdict(
            headline=f"ranks wait for each other, in collectives of different orders: {told}",
            suspects=tuple(sorted(waited_for)),
        )
    return _nobody_waits(findings)


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


def doing(beat: Beat) -> str:
    """Say what a rank was doing."""
    words = f"{beat.phase}, step {beat.step}, for {beat.seconds:.0f} s"
    if beat.collective is not None:
        words += f", in {beat.collective.words}"
    elif beat.last:
        words += f", after {beat.last}"
    return words + (f" ({beat.reading})" if beat.reading else "")


def table(findings: Findings) -> list[str]:
    """Return a line per rank."""
    lines = []
    for member in findings.crew:
        beat = findings.beats.get(member.rank)
        words = "nothing known" if beat is None else doing(beat)
        if beat is not None and (late := late_members(member.rank, findings.beats)):
            words += f"; waits for {_ranks(late)}"
        if member.rank in findings.silent:
            words = f"NO SIGN OF LIFE, {_silence(member.rank, findings)}; last seen: {words}"
        lines.append(f"{member}: {words}")
    return lines


def _nobody_waits(findings: Findings) -> Verdict:
    in_collectives = [rank for rank, beat in findings.beats.items() if beat.collective is not None]
    if in_collectives:
        return Verdict(
            headline=f"every rank has started {_place(findings, in_collectives[0])}, and it does "
            "not end: look at the network between the machines",
            suspects=(),
        )
    slowest = min(findings.beats, key=lambda rank: _progress(findings.beats[rank]), default=None)
    if slowest is None:
        return Verdict(headline="nothing is known of any rank", suspects=())
    return Verdict(
        headline=f"no rank waits in a collective; {findings.crew[slowest]} is "
        f"{doing(findings.beats[slowest])}",
        suspects=(slowest,),
    )


def _progress(beat: Beat) -> tuple[int, bool]:
    """Return a key that grows as a rank goes on; what follows a step has the step's number."""
    return beat.step, beat.phase not in (Phase.DATA, Phase.STEP)


def _place(findings: Findings, rank: int) -> str:
    collective = findings.beats[rank].collective
    assert collective is not None, "it waits"
    return collective.words


def _silence(rank: int, findings: Findings) -> str:
    if rank in findings.states:
        return findings.states[rank]
    return "on another machine, look there for a dead process or a lost network"


def _waiters(count: int) -> str:
    return f"; {count} {'rank waits' if count == 1 else 'ranks wait'}" if count else ""


def _ranks(ranks: set[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + _join([str(rank) for rank in sorted(ranks)])


def _join(words: list[str]) -> str:
    left_out = len(words) - _MAX_NAMED
    return ", ".join(words[:_MAX_NAMED]) + (f" and {left_out} more" if left_out > 0 else "")
