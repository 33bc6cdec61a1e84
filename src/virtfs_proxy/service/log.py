# SPDX-License-Identifier: Apache-2.0
"""Where a service tells what it does: stderr, or syslog through a socket connected before the root changes.

The standard library's handler, and syslog(3), connect again when the socket fails: inside the export, where the
guest may have put a socket at dev/log. This one connects once.
"""

import os
import socket
import sys
from typing import Final

ERROR: Final = 3  # the priorities of syslog(3)
WARNING: Final = 4
INFO: Final = 6
DEBUG: Final = 7
LEVELS: Final = {"error": ERROR, "warning": WARNING, "info": INFO, "debug": DEBUG}
LOG_DAEMON: Final = 3 << 3
SYSLOG_SOCKET: Final = b"/dev/log"
LIMIT: Final = 20
"""Refused requests, and bugs, that are logged one by one; the rest are counted: a guest must not fill the disk."""

_LAST: Final = "; later ones are counted only"


class Log:
    """A log with a threshold. Callers on the request path test ``level`` before they build a message.

    :param name: of the program, in front of every line.
    :param level: ERROR to DEBUG; lesser messages are dropped.
    """

    def __init__(self, name: str, level: int = INFO) -> None:
        self.name = name
        self.level = level
        self.refused = 0
        self.bugs = 0
        self._syslog: socket.socket | None = None

    def to_syslog(self, path: bytes = SYSLOG_SOCKET) -> bool:
        """Send to syslog (facility LOG_DAEMON) from now on; False, and stderr still, where no such socket is."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            return False
        sock.setblocking(False)
        self._syslog = sock
        return True

    def descriptors(self) -> set[int]:
        """What must stay open for the log to go on."""
        return {self._syslog.fileno()} if self._syslog else set()

    def error(self, text: str) -> None:
        """Something does not work."""
        self._emit(ERROR, text)

    def warning(self, text: str) -> None:
        """Something is odd, the service goes on."""
        if self.level >= WARNING:
            self._emit(WARNING, text)

    def info(self, text: str) -> None:
        """Beginnings and ends."""
        if self.level >= INFO:
            self._emit(INFO, text)

    def debug(self, text: str) -> None:
        """Every step and request."""
        if self.level >= DEBUG:
            self._emit(DEBUG, text)

    def refusal(self, text: str) -> None:
        """A request that no honest peer sends: the first ones in full, the rest as a count."""
        self.refused += 1
        if self.refused <= LIMIT:
            self.warning(f"refused: {text}{_LAST if self.refused == LIMIT else ''}")

    def bug(self, text: str) -> None:
        """An exception that no request should be able to raise; bounded likewise."""
        self.bugs += 1
        if self.bugs <= LIMIT:
            self.error(f"bug: {text}{_LAST if self.bugs == LIMIT else ''}")

    def _emit(self, priority: int, text: str) -> None:
        if not text.isprintable():  # a peer's name must not forge a line, or steer a terminal
            # ascii() and not a codec: one would have to be imported, from where the guest writes.
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        line = text.encode("utf-8", "backslashreplace")
        try:
            if self._syslog:
                head = f"<{LOG_DAEMON | priority}>{self.name}[{os.getpid()}]: "
                self._syslog.send(head.encode() + line[:1800])
            elif sys.stderr:
                os.write(2, self.name.encode() + b": " + line + b"\n")
        except OSError:
            pass  # a log that can't be written must not end the service
