"""Which checkpoints of a run are kept, and how the others go.

Nothing goes before a newer checkpoint was read back from the device. A checkpoint first loses its
name, by one rename, and then its files: one that has a name is whole.

Source: ours.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from ernie_vilg.checkpoint.consolidated import discard_outdated
from ernie_vilg.checkpoint.folder import committed_checkpoints, step_of
from ernie_vilg.storage.files import remove, without_name

logger = logging.getLogger(__name__)


def superseded_steps(steps: Iterable[int], saved: int, *, keep: int, keep_every: int) -> list[int]:
    """Return the steps whose checkpoints go, now that one more is saved.

    Args:
        steps: of all checkpoints. Those above `saved` were found damaged when the run was started,
            or it would have gone on from them; they neither count nor go.
        saved: the step of the checkpoint that was just read back.
        keep: newest checkpoints that stay.
        keep_every: multiples of it stay for good, but for step 0; 0: none do.
    """
    older = sorted((step for step in steps if step < saved), reverse=True)
    return [
        step for step in older[keep - 1 :] if not (keep_every and step and not step % keep_every)
    ]


class Retention:
    """Removes what is superseded, beside training: a large folder takes its time."""

    def __init__(self, run_dir: Path, *, keep: int, keep_every: int) -> None:
        self._run_dir = run_dir
        self._keep = keep
        self._keep_every = keep_every
        self._thread: threading.Thread | None = None

    def apply(self, saved: int) -> None:
        """Begin to remove what the checkpoint of step `saved` supersedes, other layouts' included.

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
        )
        nameless = [without_name(folders[step]) for step in steps]
        self._thread = threading.Thread(
            target=self._remove, args=(nameless, saved), name="checkpoint-remover", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was superseded is gone."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _remove(self, folders: Sequence[Path], saved: int) -> None:
        try:
            for folder in folders:
                remove(folder)
            discard_outdated(self._run_dir, saved)
        except OSError as error:
            logger.warning("it is left until the next start: %s", error)
