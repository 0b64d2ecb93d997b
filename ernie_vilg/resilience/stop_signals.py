"""When which signal arrived, however long the main thread has been inside one call.

Python runs signal handlers in the main thread, between two of its instructions, and a backward
pass or a collective is one instruction. But Python's own C handler writes the number of every
signal into a file at once; a thread of ours reads it there. The main thread is never interrupted.

Source: ours, on `signal.set_wakeup_fd`.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_END = 0
"""No signal has this number."""


class StopSignals:
    """Hands over the signals that arrive between `start` and `stop`; of the main thread alone."""

    def __init__(self, numbers: Sequence[int], on_signal: Callable[[int], None]) -> None:
        """Prepare to listen.

        Args:
            numbers: signals that are handed over instead of what they do otherwise.
            on_signal: called with a signal's number, in another thread.
        """
        self._numbers = numbers
        self._on_signal = on_signal
        self._handlers: dict[int, Any] = {}
        self._mask: set[int] = set()
        self._read_end, self._write_end = -1, -1
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)

    def start(self) -> None:
        """Take the signals over."""
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)  # a full pipe must not stop the C handler
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in self._numbers:
            self._handlers[number] = signal.signal(number, _leave_to_listener)
            signal.siginterrupt(number, False)  # system calls of libraries go on
        self._listener.start()
        # Whoever started this process may have had them blocked, which is inherited.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def stop(self) -> None:
        """Give the signals back to what handled them before."""
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


def _leave_to_listener(number: int, frame: FrameType | None) -> None:
    """Do nothing: that there is a handler makes Python write the number down."""
