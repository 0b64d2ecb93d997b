"""Garbage is collected at fixed steps only, while a run trains."""

import gc
import weakref

from ernie_vilg.system.garbage import COLLECT_EVERY, collect_after, collected_by_hand


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_garbage_stays_until_a_step_at_which_all_ranks_collect() -> None:
    with collected_by_hand():
        lost = weakref.ref(Node())
        for _ in range(10_000):  # many times what makes Python collect by itself
            Node()
        collect_after(COLLECT_EVERY + 1)
        assert lost() is not None
        collect_after(COLLECT_EVERY)
        assert lost() is None


def test_python_collects_again_after_the_run() -> None:
    with collected_by_hand():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0

    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
