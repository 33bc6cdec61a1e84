# SPDX-License-Identifier: Apache-2.0
"""Going into the background, with a parent that stays until the service can be used."""

import os
import signal
from typing import NoReturn

from virtfs_proxy.service.log import Log

_READY = b"+"


class Parent:
    """The waiting parent, as its child sees it: told once how the start ended."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def descriptors(self) -> set[int]:
        """What must stay open until the start has ended."""
        return {self._pipe}

    def ready(self) -> None:
        """Let the parent exit with 0."""
        self._tell(_READY)

    def failed(self, text: str) -> None:
        """Let the parent say why and exit with 1."""
        self._tell(text.encode("utf-8", "backslashreplace"))

    def _tell(self, message: bytes) -> None:
        try:
            os.write(self._pipe, message)
        except BrokenPipeError:
            pass  # somebody killed the parent: the service itself is none the worse for it
        os.close(self._pipe)


def detach(log: Log) -> Parent:
    """fork(2) and setsid(2): returns in the child alone.

    The parent waits for :meth:`Parent.ready` or :meth:`Parent.failed`, or for the end of its child, and exits.

    :raises OSError: as pipe(2) and fork(2).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, the child's status could not be asked for
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # whoever waits for the start may give up; the child goes on
        os.close(writing)
        _await(child, reading, log)
    os.close(reading)
    os.setsid()
    return Parent(writing)


def _await(child: int, reading: int, log: Log) -> NoReturn:
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read()
    if message == _READY:
        os._exit(0)
    if not message:
        _, status = os.waitpid(child, 0)
        message = f"ended while starting, with status {os.waitstatus_to_exitcode(status)}".encode()
    log.error(message.decode())
    os._exit(1)
