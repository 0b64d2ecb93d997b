"""Retention: superseded checkpoints are removed.

None is removed before a newer checkpoint was read back from the device. A checkpoint loses its name
by one rename, and then its files, so that a checkpoint with a name is always whole.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ernie_vilg.checkpoint.consolidated import discard_outdated
from ernie_vilg.checkpoint.folder import committed_checkpoints, step_of
from ernie_vilg.storage.files import remove, without_name

logger = logging.getLogger(__name__)


BestOf = Callable[[Sequence[int]], int | None]
"""Returns the step of the best of some checkpoints; None if none is known to be."""


def no_best(steps: Sequence[int]) -> int | None:
    """Return None: no checkpoint is better than another."""
    return None


def superseded_steps(
    steps: Iterable[int], saved: int, *, keep: int, keep_every: int, best_of: BestOf = no_best
) -> list[int]:
    """Return the steps of the checkpoints to remove after a save.

    Args:
        steps: steps of all checkpoints. Those above `saved` were damaged when the run started, or
            it would have resumed from them; they do not count and stay.
        saved: step of the checkpoint that was just read back.
        keep: number of newest checkpoints to keep.
        keep_every: multiples of this step stay for good, except step 0; 0: none do.
        best_of: the best of the checkpoints up to `saved` stays.
    """
    older = sorted((step for step in steps if step < saved), reverse=True)
    best = best_of([*older, saved])
    return [
        step
        for step in older[keep - 1 :]
        if step != best and not (keep_every and step and not step % keep_every)
    ]


class Retention:
    """Removes superseded checkpoints in a thread, because large folders take long."""

    def __init__(
        self, run_dir: Path, *, keep: int, keep_every: int, best_of: BestOf = no_best
    ) -> None:
        self._run_dir = run_dir
        self._best_of = best_of
        self._keep = keep
        self._keep_every = keep_every
        self._thread: threading.Thread | None = None

    def apply(self, saved: int) -> None:
        """Begin to remove the checkpoints, also consolidated ones, that step `saved` supersedes.

        Raises:
            OSError: one cannot be renamed.
        """
        self.finish()
        folders = {step_of(path): path for path in committed_checkpoints(self._run_dir)}
        steps = superseded_steps(
            [step for step in folders if step is not None],
            saved,
            keep=self._keep,
            keep_every=self._keep_every,
            best_of=self._best_of,
        )
        nameless = [without_name(folders[step]) for step in steps]
        self._thread = threading.Thread(
            target=self._remove, args=(nameless, saved), name="checkpoint-remover", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until they are removed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _remove(self, folders: Sequence[Path], saved: int) -> None:
        try:
            for folder in folders:
                remove(folder)
            discard_outdated(self._run_dir, saved)
        except OSError as error:
            logger.warning("superseded checkpoints stay until the next start: %s", error)
