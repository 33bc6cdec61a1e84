# SPDX-License-Identifier: Apache-2.0
"""The loop of a service that answers one connection in lock-step: frames in, replies out. It knows no protocol.

One receive brings a whole request where the peer waits for replies; more than one request in a receive, or less, is
served just as well.

Taking a message off the queue wakes its sender, as if it had waited for room (unix_write_space in the kernel's
net/unix/af_unix.c). Where peer and service have a CPU each, that wake-up comes too early, and the peer goes to sleep
again: a fifth of a round trip. So the loop looks at a request (MSG_PEEK), and takes it off when its reply is at hand.
On one CPU the second call costs more than it saves.

What is received is a fresh object of the largest size: it costs no more than a slice of a buffer that stays, as malloc
has the same memory at hand again and takes back what was not filled.
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
_MSG_PEEK: Final = int(socket.MSG_PEEK)  # plain numbers: the module's are Enums, slower to pass
_MSG_WAITALL: Final = int(socket.MSG_WAITALL)
_SOL_SOCKET: Final = socket.SOL_SOCKET
_SCM_RIGHTS: Final = socket.SCM_RIGHTS
SEND_TIMEOUT: Final = 30
"""Seconds that a peer may leave a reply unread before it counts as gone."""

_NOT_PASSED: Final = frozenset((errno.ETOOMANYREFS, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS))
"""What sendmsg(2) says of a descriptor that it can't take along; the connection is good for another answer."""


class Hangup(Exception):
    """The peer broke the protocol in a way that has no answer. The text is for the log."""


class Protocol(NamedTuple):
    """What the loop must know of a protocol.

    :param size: unpacks, from a frame's bytes and an offset, a tuple whose first item tells the frame's length.
    :param extra: added to that item, it is the frame's length in bytes, header included.
    :param header: bytes to have before size can be unpacked.
    :param limit: of a frame, in bytes, header included.
    :param answer: the reply to a whole frame: bytes, or a descriptor to pass, which the loop closes. It raises Hangup.
    :param passing: the bytes that a descriptor goes with.
    :param not_passed: the reply instead of a descriptor that can't be passed, from the errno that says why.
    """

    size: Callable[[bytes, int], tuple[int, ...]]
    extra: int
    header: int
    limit: int
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
    receive, look = connection.recv, poll.wait if poll.active else None
    frames, limit = _answering(connection, protocol, stop), protocol.limit
    rest = b""
    while True:
        peek = _MSG_PEEK if look and not rest else 0
        stop.waiting = True  # stop.wait(), without a call where no signal has come
        if stop.pending:
            stop.wait()
        if look:
            look()
        data = receive(limit, peek)
        stop.waiting = False
        if not data:
            break
        data = rest + data if rest else data
        answered = frames(data, peek)
        if not peek:
            rest = data[answered:]
        elif not answered:  # no whole request: off with it, or looking again would find the same
            rest = receive(len(data), _MSG_WAITALL)
    if rest:
        raise Hangup(f"peer left within a request, after {len(rest)} bytes of it")


def _answering(connection: socket.socket, protocol: Protocol, stop: Stop) -> Callable[[bytes, int], int]:
    """A function that answers the whole frames in some bytes and returns their length.

    Its second argument says that the bytes are still in the queue: it takes off what it answers. A closure: what it
    needs is at hand, and the interpreter calls it without going through C, as partial would.
    """
    size, extra, header, limit, answer = protocol[:5]
    send, receive = connection.send, connection.recv

    def frames(data: bytes, queued: int) -> int:
        have, start = len(data), 0
        while have - start >= header:
            length = size(data, start)[0] + extra
            if length > limit:
                raise Hangup(f"a request says it is {length} bytes long, the limit is {limit}")
            if have - start < length:
                break
            reply = answer(data if length == have else data[start : start + length])
            start += length
            if isinstance(reply, int):
                _pass(connection, reply, protocol, stop)
            if queued:  # before a reply of bytes, after a descriptor, which takes longer to send: both measured
                receive(length, _MSG_WAITALL)
            if isinstance(reply, int):
                continue
            try:
                sent = send(reply)
            except BlockingIOError:
                sent = 0
            if sent != len(reply):
                _send_rest(connection, reply[sent:], stop)
        return start

    return frames


def _send_rest(connection: socket.socket, rest: bytes, stop: Stop) -> None:
    """The slow way, for a peer that asks on without reading."""
    for _ in range(SEND_TIMEOUT):
        try:
            rest = rest[connection.send(rest) :]
        except BlockingIOError:  # a second has passed without room for any
            pass
        if not rest:
            return
        if stop.pending:
            raise Stopped(stop.pending)
    raise Hangup(f"peer has read nothing for {SEND_TIMEOUT} s")


def _pass(connection: socket.socket, fd: int, protocol: Protocol, stop: Stop) -> None:
    """Send a descriptor and close it, whatever comes of the sending."""
    try:
        message = [protocol.passing], [(_SOL_SOCKET, _SCM_RIGHTS, _INT.pack(fd))]
        for _ in range(SEND_TIMEOUT):
            try:
                connection.sendmsg(*message)
                return
            except BlockingIOError:  # a second has passed without room for it
                pass
            if stop.pending:
                raise Stopped(stop.pending)
        raise Hangup(f"peer has read nothing for {SEND_TIMEOUT} s")
    except OSError as error:
        if error.errno not in _NOT_PASSED:
            raise
        _send_rest(connection, protocol.not_passed(error.errno), stop)
    finally:
        os.close(fd)
