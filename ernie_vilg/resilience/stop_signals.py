"""Signals noted when they arrive, while the main thread is inside a long call.

Python runs signal handlers in the main thread, between two bytecode instructions; a backward pass
or a collective is one instruction. Python's C handler, however, writes the number of every signal
to a file descriptor at once (`signal.set_wakeup_fd`). A thread reads it there, and the main thread
is never interrupted.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_END = 0
"""Number that no signal has; ends the listener."""


class StopSignals:
    """Passes signals to a function between `start` and `stop`; main thread only."""

    def __init__(self, numbers: Sequence[int], on_signal: Callable[[int], None]) -> None:
        """Prepare; `start` installs the handlers.

        Args:
            numbers: signals that no longer have their usual effect.
            on_signal: called with a signal's number, in another thread.
        """
        self._numbers = numbers
        self._on_signal = on_signal
        self._handlers: dict[int, Any] = {}
        self._mask: set[int] = set()
        self._read_end, self._write_end = -1, -1
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)

    def start(self) -> None:
        """Install the handlers and start the listener."""
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)  # a full pipe must not stop the C handler
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in self._numbers:
            self._handlers[number] = signal.signal(number, _ignore)
            signal.siginterrupt(number, False)  # libraries' system calls resume
        self._listener.start()
        # A parent may have blocked them, and its children inherit that.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def stop(self) -> None:
        """Restore the earlier handlers and end the listener."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.write(self._write_end, bytes([_END]))
        self._listener.join()
        os.close(self._write_end)
        os.close(self._read_end)

    def _listen(self) -> None:
        while True:
            for number in os.read(self._read_end, 64):
                if number == _END:
                    return
                if number in self._numbers:
                    self._on_signal(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python writes to the descriptor only if a signal has a handler."""
