# SPDX-License-Identifier: Apache-2.0
"""The helper that a client under test talks to: the test itself, on the other half of a socketpair."""

import errno
import os
import socket
import struct
from typing import Any

from virtfs_proxy.codec import Fields
from virtfs_proxy.proxy.client import ProxyClient
from virtfs_proxy.proxy.messages import MAX_BODY, REQUESTS

OK = struct.pack("=IIi", 0, 4, 0)
ENOENT = struct.pack("=IIi", 1, 4, -errno.ENOENT)
STAT = struct.pack("=3Q3I10Q", 1, 2, 3, 0o100644, 5, 6, 7, 8, 9, 10, 11, 12, 2**64 - 13, 14, 15, 16)
STATFS = struct.pack("=11Q", *range(1, 12))


def body(content: bytes, kind: int = 0) -> bytes:
    return struct.pack("=II", kind, len(content)) + content


def string(content: bytes) -> bytes:
    return body(struct.pack("=H", len(content)) + content)


class Helper:
    """The other end. What it is told to say lies in the socket before the client asks."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.client = ProxyClient(theirs)

    def say(self, reply: bytes, fds: list[int] | None = None) -> None:
        if fds:
            socket.send_fds(self.ours, [reply], fds)
        else:
            self.ours.sendall(reply)

    def heard(self) -> tuple[str, dict[str, Any]]:
        """The request that arrived, taken apart by the codec; there must be nothing behind it."""
        frame = self.ours.recv(MAX_BODY + 9)
        opcode, size = struct.unpack_from("=II", frame)
        assert len(frame) == 8 + size
        row = next(row for row in REQUESTS if row.opcode == opcode)
        return row.name, Fields("=", row.fields).unpack(frame[8:])

    def silent(self) -> bool:
        """Whether nothing has come."""
        self.ours.setblocking(False)
        try:
            return not self.ours.recv(1)
        except BlockingIOError:
            return True


def open_descriptors() -> int:
    """How many descriptors this process has open: a test that leaks one ends with more."""
    return len(os.listdir("/proc/self/fd"))
