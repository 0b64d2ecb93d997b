"""Things that the stages share: folders, the card, and the measuring processes."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.support.measurer import Measurer, Result, Task
from benchmarks.support.results import ROOT

PROBES = "gpu_acceptance_parts.probes"
"""Module of the measuring processes."""


@dataclass(kw_only=True)
class Context:
    """Folders, the card, and the processes of the probes."""

    work: Path
    """Folder of run folders, caches and logs; kept between calls."""
    results: Path
    """Folder of the files to take home."""
    card: str
    """Name of the GPU in torch; empty for a rehearsal on the CPU."""
    preset: str | None
    """File of conf/gpu/ for the card, without suffix; None if there is none."""
    passed: Callable[[str], list[Result]] = lambda _: []
    """Function that returns the figures of a stage that has passed."""
    _lanes: threading.local = field(default_factory=threading.local)
    _open: list[Measurer] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def has_gpu(self) -> bool:
        """Whether the stages run on a GPU, at full size."""
        return bool(self.card)

    def log(self, name: str) -> Path:
        """Return the path of a log file."""
        folder = self.work / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def ask(self, task: Task, limit_seconds: float) -> Result:
        """Ask this thread's measuring process, starting one if there is none.

        Probes of one thread share a process, its imports and its compiled kernels. A process that
        failed is replaced.

        Raises:
            TimeoutError: there is no answer within the limit.
            RuntimeError: the process failed; the message ends with its last lines.
        """
        lane: Measurer | None = getattr(self._lanes, "measurer", None)
        if lane is None:
            lane = self._lanes.measurer = self._stack.enter_context(Measurer(PROBES))
            self._open.append(lane)
        is_late = threading.Event()
        measurer = lane  # of this thread, while the timer's thread may end it

        def end() -> None:
            is_late.set()
            measurer.kill()

        timer = threading.Timer(limit_seconds, end)
        timer.start()
        try:
            return lane.ask(task)
        except BaseException as error:
            lane.kill()
            self._lanes.measurer = None
            if is_late.is_set():
                raise TimeoutError(f"not done after {limit_seconds:.0f} s") from error
            raise
        finally:
            timer.cancel()

    def close_lanes(self) -> None:
        """End the measuring processes, so that they hold no memory while others measure."""
        for lane in self._open:
            lane.kill()
        self._stack.close()
        self._open.clear()
        self._lanes = threading.local()


def card_preset(card: str) -> str | None:
    """Return the file of conf/gpu/, without suffix, that has the card's name; None without one."""
    from omegaconf import OmegaConf

    names = {path.stem: OmegaConf.load(path).name for path in ROOT.glob("conf/gpu/*.yaml")}
    return next((stem for stem, name in sorted(names.items()) if name == card), None)
