"""The rank that holds up the others is found from all last heartbeats."""

from dataclasses import replace

from ernie_vilg.resilience.hang_verdict import Findings, find_suspects, table
from ernie_vilg.resilience.heartbeats import Beat, CollectiveNote
from ernie_vilg.resilience.members import Member
from ernie_vilg.system.processes import ProcessMark

STEP = Beat(phase="training", step=12, seconds=240)

MEMBERS = [
    Member(
        rank=rank,
        coordinates=f"tensor 0, pipeline 0, data {rank}",
        host=f"node{rank}",
        machine=str(rank),
        process=ProcessMark(process_id=100 + rank, start_ticks=rank),
    )
    for rank in range(4)
]


def waiting(key: str, members: list[int], number: int, **counts: int) -> Beat:
    """Return the heartbeat of a rank in the `number`-th collective of a group."""
    words = f"all_reduce of {key} (number {number})"
    note = CollectiveNote(words=words, key=key, members=members, number=number)
    return replace(STEP, collective=note, counts={key: number, **counts})


def findings(beats: dict[int, Beat], silent: dict[int, str] | None = None) -> Findings:
    silent = silent or {}
    return Findings(members=MEMBERS, beats=beats, silent=frozenset(silent), states=silent)


def test_a_silent_rank_is_named_with_what_the_kernel_says() -> None:
    beats = {rank: waiting("world", [0, 1, 2, 3], 5) for rank in (0, 1, 3)}
    beats[2] = replace(STEP, counts={"world": 4})

    verdict = find_suspects(findings(beats, {2: "its process is stopped by a signal"}))

    assert verdict.suspects == (2,)
    assert verdict.headline == (
        "no heartbeat from rank 2 (tensor 0, pipeline 0, data 2 on node2, pid 102): its process "
        "is stopped by a signal; 3 ranks wait"
    )


def test_the_rank_at_the_end_of_a_chain_of_waits_is_named() -> None:
    verdict = find_suspects(
        findings(
            {
                0: waiting("0 and 1", [0, 1], 9),
                1: waiting("1 and 2", [1, 2], 4, **{"0 and 1": 8}),
                2: replace(STEP, phase="saving", counts={"1 and 2": 3}),
                3: waiting("world", [0, 1, 2, 3], 2),
            }
        )
    )

    assert verdict.suspects == (2,)
    assert "rank 2 (tensor 0, pipeline 0, data 2 on node2, pid 102) is saving" in verdict.headline


def test_ranks_that_wait_for_each_other_are_told_to_call_in_different_orders() -> None:
    verdict = find_suspects(
        findings(
            {
                0: waiting("a", [0, 1], 1, b=0),
                1: waiting("b", [0, 1], 1, a=0),
            }
        )
    )

    assert verdict.suspects == (0, 1)
    assert "ranks wait for each other" in verdict.headline
    assert "all_reduce of a (number 1)" in verdict.headline
    assert "all_reduce of b (number 1)" in verdict.headline


def test_a_collective_that_all_have_started_points_to_the_network() -> None:
    verdict = find_suspects(
        findings({rank: waiting("world", [0, 1, 2, 3], 5) for rank in range(4)})
    )

    assert verdict.suspects == ()
    assert "every rank has started all_reduce of world (number 5)" in verdict.headline
    assert "network" in verdict.headline


def test_where_nobody_waits_the_rank_with_the_fewest_steps_is_named() -> None:
    verdict = find_suspects(
        findings({0: STEP, 1: replace(STEP, step=11, reading="worker 0: reading x")})
    )

    assert verdict.suspects == (1,)
    assert "rank 1" in verdict.headline
    assert "worker 0: reading x" in verdict.headline


def test_a_rank_within_a_step_is_behind_one_that_has_made_it() -> None:
    verdict = find_suspects(findings({0: replace(STEP, phase="saving"), 1: STEP}))

    assert verdict.suspects == (1,)


def test_the_table_says_of_every_rank_whom_it_waits_for() -> None:
    lines = table(
        findings(
            {0: waiting("world", [0, 1, 2, 3], 5), 1: replace(STEP, counts={"world": 4})},
            {2: "its process is gone"},
        )
    )

    assert lines == [
        "rank 0 (tensor 0, pipeline 0, data 0 on node0, pid 100): training, step 12, for "
        "240 s, in all_reduce of world (number 5); waits for rank 1",
        "rank 1 (tensor 0, pipeline 0, data 1 on node1, pid 101): training, step 12, for 240 s",
        "rank 2 (tensor 0, pipeline 0, data 2 on node2, pid 102): NO HEARTBEAT, its process is "
        "gone; last seen: nothing known",
        "rank 3 (tensor 0, pipeline 0, data 3 on node3, pid 103): nothing known",
    ]
