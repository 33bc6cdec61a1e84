# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, SIGINT and SIGHUP: an end between two requests, never within one."""

import signal
from types import FrameType
from typing import NoReturn


class Stopped(Exception):
    """Raised out of a wait by a signal. ``args[0]`` is its name."""


class Stop:
    """Turns a signal into :class:`Stopped`, at once while nothing is being served, else at the next :meth:`wait`.

    ``waiting`` is public and plain because the loop sets it twice a request.
    """

    __slots__ = ("pending", "waiting")

    def __init__(self) -> None:
        self.waiting = False
        self.pending = ""

    def install(self) -> None:
        """Catch the signals from now on; SIGHUP only where it is not ignored, as under nohup(1)."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._arrived)

    def wait(self) -> None:
        """From here on a signal raises, until ``waiting`` is False again. :raises Stopped: for one that came before."""
        self.waiting = True
        if self.pending:
            self._end()

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self.pending = signal.Signals(number).name
        if self.waiting:
            self._end()

    def _end(self) -> NoReturn:
        self.waiting = False  # a second signal must not disturb the end
        raise Stopped(self.pending)
