# SPDX-License-Identifier: Apache-2.0
"""The proxy protocol over a stream: :func:`answer` has no socket in it, :func:`serve` has nothing else."""

import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from virtfs_proxy.codec import FIXED, Malformed, Request, bind, fields_of
from virtfs_proxy.proxy import handlers
from virtfs_proxy.proxy.messages import (
    ERROR,
    FD,
    FD_VALID,
    HEADER,
    HEADER_SIZE,
    MAX_BODY,
    REQUESTS,
    SHORT,
    SIZED,
    STATUS,
    SUCCESS,
)
from virtfs_proxy.proxy.session import Session
from virtfs_proxy.service import stream
from virtfs_proxy.service.errors import errno_of
from virtfs_proxy.service.log import DEBUG
from virtfs_proxy.service.poll import Poll
from virtfs_proxy.service.signals import Stop

_HEADER: Final = struct.Struct(HEADER)
_STATUS: Final = struct.Struct(HEADER + "i")
_VALUE: Final = struct.Struct(HEADER + "H")
_INT: Final = struct.Struct("=i")
_unpack_header: Final = _HEADER.unpack_from

Success = Callable[[Any], bytes | int]
Failure = Callable[[int], bytes]


def _status(errno: int) -> bytes:
    return _STATUS.pack(ERROR, 4, -errno)


def _number(errno: int) -> bytes:
    return _INT.pack(-errno)


def _sized(value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _STATUS.pack(SUCCESS, 4, value)
    return _counted(value)


def _counted(value: bytes) -> bytes:
    if len(value) > MAX_BODY - 2:
        raise OSError(SHORT, f"the reply is longer than {MAX_BODY} bytes")  # which the driver would not take anyway
    return _VALUE.pack(SUCCESS, 2 + len(value), len(value)) + value


def _fixed(fields: str) -> Success:
    codes = "".join(FIXED[kind] for _, kind in fields_of(fields))
    pack, size = struct.Struct(HEADER + codes).pack, struct.calcsize("=" + codes)
    return lambda values: pack(SUCCESS, size, *values)


def _shape(reply: str) -> tuple[Success, Failure]:
    """The pair of functions that build a reply of a shape: from what the handler returned, from an errno."""
    if reply == STATUS:
        done = _STATUS.pack(SUCCESS, 4, 0)
        return lambda _: done, _status
    if reply == FD:
        return lambda fd: fd, _number
    if reply == SIZED:
        return _sized, _status
    if reply == "target:bytes":
        return lambda values: _counted(*values), _status
    return _fixed(reply), _status


_Entry = tuple[Request, Callable[..., Any], Success, Failure]
_TABLE: Final[dict[int, _Entry]] = {
    opcode: (row, call, *_shape(row.reply)) for opcode, (row, call) in bind("=", REQUESTS, handlers, SHORT).items()
}


def answer(session: Session, frame: bytes) -> bytes | int:
    """Serve one request.

    :param frame: header and body, whole.
    :returns: the reply's bytes, or an open descriptor to pass with FD_VALID; whoever calls closes it.
    :raises Hangup: for a type that is no request: the protocol has no reply for it.
    """
    return answering(session)(frame)


def answering(session: Session) -> Callable[[bytes], bytes | int]:
    """:func:`answer` for one session. A closure costs a call less a request than a partial or a lambda would."""
    table, unpack, counts = _TABLE, _unpack_header, session.counts

    def answer(frame: bytes) -> bytes | int:
        opcode = unpack(frame)[0]
        try:
            row, call, success, failure = table[opcode]
        except KeyError:
            raise stream.Hangup(f"unknown request type {opcode}") from None
        counts[opcode] += 1
        try:
            return success(call(session, frame, HEADER_SIZE))
        except Exception as error:  # noqa: BLE001 - errno_of tells a bug from the rest, and logs it
            return failure(_refusal(session, row, error))

    return answer


def _refusal(session: Session, row: Request, error: Exception) -> int:
    """The errno for an exception, which is counted and logged."""
    session.errors += 1
    code = errno_of(error, session.log)
    if isinstance(error, Malformed):
        session.log.refusal(f"{row.name}: {error}")
    elif session.log.level >= DEBUG:
        session.log.debug(f"{row.name}: {error}")
    return code


def serve(session: Session, connection: socket.socket, poll: Poll, stop: Stop) -> None:
    """Answer a connection's requests; ends and errors as :func:`virtfs_proxy.service.stream.serve`."""
    protocol = stream.Protocol(
        size=struct.Struct(f"{HEADER[0]}4xI").unpack_from,
        extra=HEADER_SIZE,
        header=HEADER_SIZE,
        limit=HEADER_SIZE + MAX_BODY,
        answer=answering(session),
        passing=_INT.pack(FD_VALID),
        not_passed=_number,
    )
    stream.serve(connection, protocol, poll, stop)


def summary(session: Session) -> str:
    """What was served, for the log: a total, the errors, and a count for each request that came."""
    total = sum(session.counts)
    each = ", ".join(
        f"{_TABLE[opcode][0].name.upper()} {count}" for opcode, count in enumerate(session.counts) if count
    )
    refused = f", {session.log.refused} refused" if session.log.refused else ""
    return f"served {total} requests ({session.errors} errors{refused}){': ' if each else ''}{each}"
