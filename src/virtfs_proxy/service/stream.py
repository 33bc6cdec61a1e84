# SPDX-License-Identifier: Apache-2.0
"""The loop of a service that answers one connection in lock-step: frames in, replies out. It knows no protocol.

One receive brings a whole request where the peer waits for replies; more than one request in a receive, or less, is
served just as well.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from virtfs_proxy.service.poll import Poll
from virtfs_proxy.service.signals import Stop, Stopped

_INT: Final = struct.Struct("=i")
SEND_TIMEOUT: Final = 30
"""Seconds that a peer may leave a reply unread before it counts as gone."""

_NOT_PASSED: Final = frozenset((errno.ETOOMANYREFS, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS))
"""What sendmsg(2) says of a descriptor that it can't take along; the connection is good for another answer."""


class Hangup(Exception):
    """The peer broke the protocol in a way that has no answer. The text is for the log."""


class Protocol(NamedTuple):
    """What the loop must know of a protocol.

    :param header_size: bytes to have before a frame's length is known.
    :param limit: of a frame, in bytes, header included.
    :param length: of a frame, header included, from a buffer and the offset of its header. It raises Hangup over the
        limit.
    :param answer: the reply to a whole frame: bytes, or a descriptor to pass, which the loop closes. It raises Hangup.
    :param passing: the bytes that a descriptor goes with.
    :param not_passed: the reply instead of a descriptor that can't be passed, from the errno that says why.
    """

    header_size: int
    limit: int
    length: Callable[[bytearray, int], int]
    answer: Callable[[bytes], bytes | int]
    passing: bytes
    not_passed: Callable[[int], bytes]


def serve(connection: socket.socket, protocol: Protocol, poll: Poll, stop: Stop) -> None:
    """Answer requests until the peer closes its end.

    :raises Hangup: when the peer breaks the protocol, vanishes within a request or leaves replies unread.
    :raises Stopped: for a signal, between two requests.
    :raises OSError: as recv(2), sendmsg(2); EPIPE and ECONNRESET when the peer is gone.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 1, 0))
    buffer = bytearray(protocol.limit)
    view = memoryview(buffer)
    header_size, length_of, answer = protocol.header_size, protocol.length, protocol.answer
    receive, send = connection.recv_into, connection.send
    have = 0
    while True:
        stop.wait()
        if poll.active:
            poll.wait()
        got = receive(view[have:] if have else view)
        stop.waiting = False
        if not got:
            break
        have += got
        start = 0
        while have - start >= header_size:
            length = length_of(buffer, start)
            if have - start < length:
                break
            reply = answer(bytes(view[start : start + length]))
            start += length
            if isinstance(reply, int):
                _pass(connection, reply, protocol, stop)
            else:
                sent = _try(send, reply)
                if sent != len(reply):
                    _send_rest(connection, reply[sent:], stop)
        have -= start
        if have and start:
            buffer[:have] = buffer[start : start + have]
    if have:
        raise Hangup(f"peer left within a request, after {have} bytes of it")


def _try(send: Callable[..., int], *arguments: object) -> int:
    """Bytes that went out: 0 when the second of SO_SNDTIMEO has passed without room for any."""
    try:
        return send(*arguments)
    except BlockingIOError:
        return 0


def _send_rest(connection: socket.socket, rest: bytes, stop: Stop) -> None:
    """The slow way, for a peer that asks on without reading."""
    for _ in range(SEND_TIMEOUT):
        rest = rest[_try(connection.send, rest) :]
        if not rest:
            return
        if stop.pending:
            raise Stopped(stop.pending)
    raise Hangup(f"peer has read nothing for {SEND_TIMEOUT} s")


def _pass(connection: socket.socket, fd: int, protocol: Protocol, stop: Stop) -> None:
    """Send a descriptor and close it, whatever comes of the sending."""
    try:
        with_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(fd))]
        for _ in range(SEND_TIMEOUT):
            if _try(connection.sendmsg, [protocol.passing], with_it):
                return
            if stop.pending:
                raise Stopped(stop.pending)
        raise Hangup(f"peer has read nothing for {SEND_TIMEOUT} s")
    except OSError as error:
        if error.errno not in _NOT_PASSED:
            raise
        _send_rest(connection, protocol.not_passed(error.errno), stop)
    finally:
        os.close(fd)

