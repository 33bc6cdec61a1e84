# SPDX-License-Identifier: Apache-2.0
"""The table of bytes, run both ways: into handlers and out of them, out of the client and back into it."""

import errno
import os
import socket
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import pytest
from tests.wire.table import A_FD, EXCHANGES, IDS, Exchange, refusal

from virtfs_proxy.codec import Fields, Malformed, bind
from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.proxy.client import ProxyClient
from virtfs_proxy.proxy.messages import REQUESTS
from virtfs_proxy.proxy.server import answer
from virtfs_proxy.proxy.session import Session
from virtfs_proxy.service.log import ERROR, Log
from virtfs_proxy.service.stream import Hangup

ROWS = {row.name: row for row in REQUESTS}
each = pytest.mark.parametrize("exchange", EXCHANGES, ids=IDS)


class Scripted:
    """An export that does nothing, and has this to say of it: a value, or an exception."""

    def __init__(self, done: Any = None) -> None:
        self.done = done
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            self.calls.append(name)
            if isinstance(self.done, Exception):
                raise self.done
            return self.done

        return call


def session(export: Scripted) -> Session:
    return Session(cast("Export", export), Log("test", ERROR))


def recorder() -> ModuleType:
    """Handlers that return their arguments."""
    made = ModuleType("recorder")
    for row in REQUESTS:
        names = ", ".join(name for name, _ in row.items())
        exec(f"def {row.name}(s, {names}): return {{k: v for k, v in locals().items() if k != 's'}}", made.__dict__)
    return made


def test_every_request_and_every_shape_is_in_the_table() -> None:
    assert {exchange.name for exchange in EXCHANGES} == ROWS.keys()
    assert {int.from_bytes(exchange.frame[:4], "little") for exchange in EXCHANGES} == set(range(2, 22))


@each
def test_bytes_to_arguments(exchange: Exchange) -> None:
    opcode, size = struct.unpack_from("<II", exchange.frame)
    assert size == len(exchange.frame) - 8
    row, decode = bind("=", REQUESTS, recorder(), errno.ENOBUFS)[opcode]
    assert row.name == exchange.name
    assert decode(None, exchange.frame, 8) == exchange.values


@each
def test_arguments_to_bytes(exchange: Exchange) -> None:
    assert Fields("=", ROWS[exchange.name].fields).pack(exchange.values) == exchange.frame[8:]
    assert Fields("=", ROWS[exchange.name].fields).unpack(exchange.frame[8:]) == exchange.values


@each
def test_result_to_bytes(exchange: Exchange) -> None:
    """The server's side of a reply; a descriptor is the loop's to send (test_arrival.py)."""
    export = Scripted(exchange.done)
    reply = answer(session(export), exchange.frame)
    assert reply == (A_FD if exchange.told == A_FD else exchange.answer)
    assert export.calls == [exchange.name]


@each
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO])
def test_errno_to_bytes(exchange: Exchange, code: int) -> None:
    reply = answer(session(Scripted(OSError(code, "no"))), exchange.frame)
    assert reply == refusal(code, exchange.name)


@each
def test_client_to_bytes_and_bytes_to_client(exchange: Exchange) -> None:
    ours, theirs = socket.socketpair()
    with ours, ProxyClient(theirs) as client:
        ours.settimeout(10)
        if exchange.told == A_FD:
            with open(os.devnull, "rb") as file:
                socket.send_fds(ours, [exchange.answer], [file.fileno()])
                told = client.call(exchange.name, **exchange.values)
                assert isinstance(told, int)
                assert os.path.sameopenfile(told, file.fileno())
                os.close(told)
        else:
            ours.sendall(exchange.answer)
            assert client.call(exchange.name, **exchange.values) == exchange.told
        assert ours.recv(4096) == exchange.frame


@each
def test_refusal_to_client(exchange: Exchange) -> None:
    ours, theirs = socket.socketpair()
    with ours, ProxyClient(theirs) as client:
        ours.sendall(refusal(errno.ENOENT, exchange.name))
        with pytest.raises(FileNotFoundError):
            client.call(exchange.name, **exchange.values)


@each
def test_every_truncation_is_refused_and_reaches_no_handler(exchange: Exchange) -> None:
    export = Scripted(exchange.done)
    body = exchange.frame[8:]
    for length in range(len(body)):
        frame = exchange.frame[:4] + struct.pack("<I", length) + body[:length]
        assert answer(session(export), frame) == refusal(errno.ENOBUFS, exchange.name), length
    assert export.calls == []


@each
@pytest.mark.parametrize("more", [b"\0", b"\0\0\0\0", b"x" * 100])
def test_trailing_bytes_are_refused_and_reach_no_handler(exchange: Exchange, more: bytes) -> None:
    export = Scripted(exchange.done)
    body = exchange.frame[8:] + more
    frame = exchange.frame[:4] + struct.pack("<I", len(body)) + body
    assert answer(session(export), frame) == refusal(errno.ENOBUFS, exchange.name)
    assert export.calls == []


@each
def test_lengths_over_the_body_are_refused_and_reach_no_handler(exchange: Exchange) -> None:
    """Each u16 that counts a string, in turn, says 65,535."""
    export = Scripted(exchange.done)
    offset = 8
    for name, kind in ROWS[exchange.name].items():
        if kind in {"path", "text", "bytes"}:
            lie = exchange.frame[:offset] + b"\xff\xff" + exchange.frame[offset + 2 :]
            assert answer(session(export), lie) == refusal(errno.ENOBUFS, exchange.name), name
            offset += 2 + len(exchange.values[name])
        else:
            offset += 8 if kind in {"u64", "i64"} else 4
    assert offset == len(exchange.frame)
    assert export.calls == []


@pytest.mark.parametrize("length", [65_535, 65_536])
@pytest.mark.parametrize("name", ["lgetxattr", "llistxattr", "readlink"])
def test_a_reply_that_has_no_room_is_refused(name: str, length: int) -> None:
    exchange = next(exchange for exchange in EXCHANGES if exchange.name == name)
    frame = Fields("=", ROWS[name].fields).pack({**exchange.values, "size": 1 << 20})
    reply = answer(session(Scripted(bytes(length))), exchange.frame[:8] + frame)
    assert reply == refusal(errno.ENOBUFS, name)


def test_the_longest_reply() -> None:
    exchange = next(exchange for exchange in EXCHANGES if exchange.name == "lgetxattr")
    body = Fields("=", ROWS["lgetxattr"].fields).pack({**exchange.values, "size": 65_536})
    reply = answer(session(Scripted(b"v" * 65_534)), exchange.frame[:8] + body)
    assert reply == bytes.fromhex("00000000 00000100 feff") + b"v" * 65_534


@pytest.mark.parametrize("kind", [0, 1, 22, 1 << 8, 0xFFFFFFFF])
def test_an_unknown_type_has_no_reply(kind: int) -> None:
    with pytest.raises(Hangup, match=str(kind)):
        answer(session(Scripted()), struct.pack("<II", kind, 0))


def test_a_bug_is_eio_and_the_next_request_is_served(capfd: pytest.CaptureFixture[str]) -> None:
    served = session(Scripted(ZeroDivisionError("of a handler")))
    exchange = EXCHANGES[0]
    assert answer(served, exchange.frame) == refusal(errno.EIO, exchange.name)
    assert "ZeroDivisionError: of a handler" in capfd.readouterr().err
    served.export = cast("Export", Scripted(A_FD))
    assert answer(served, exchange.frame) == A_FD


def test_a_reply_that_is_no_answer_is_not_taken_for_one() -> None:
    for reply in ("00000000 05000000 0300 2e2f61", "00000000 06000000 0500 2e2f6161"):
        with pytest.raises(Malformed) as refused:
            Fields("=", ROWS["readlink"].reply).unpack(bytes.fromhex(reply)[8:-1])
        assert refused.value.errno == errno.EPROTO
