# SPDX-License-Identifier: Apache-2.0
"""Waiting for a lock-step peer: look for its next request for a while, then sleep.

A round trip of a few microseconds' work costs mostly the waking up. After a request the next one often follows
within microseconds, so it pays to look before sleeping, if another CPU is there for the peer to run on. How long
grows and shrinks with success, as the kernel's halt_poll_ns does for virtual CPUs (virt/kvm/kvm_main.c).
"""

import os
import select
import socket
from time import monotonic_ns
from typing import Final

_START: Final = 10_000
_GROW: Final = 2


class Poll:
    """Polls one socket.

    :param sock: to be read from.
    :param limit_us: microseconds to look at the most; 0 sleeps at once. Where only one CPU is available to the
        process, looking would keep the peer from running: it sleeps at once too.
    """

    __slots__ = ("_limit", "_ready", "_window", "active")

    def __init__(self, sock: socket.socket, limit_us: int) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._ready = poll.poll
        self._limit = limit_us * 1000
        self._window = 0
        self.active = limit_us > 0 and len(os.sched_getaffinity(0)) > 1

    def wait(self) -> None:
        """Return when there is something to read, or the peer has gone."""
        ready = self._ready
        started = monotonic_ns()
        if self._window:
            end = started + self._window
            while True:
                if ready(0):
                    return
                if monotonic_ns() > end:
                    break
        ready()
        self._resize(monotonic_ns() - started)

    def _resize(self, waited: int) -> None:
        if waited > self._limit:
            self._window = 0
        elif self._window < self._limit:
            self._window = min(max(self._window * _GROW, _START), self._limit)
