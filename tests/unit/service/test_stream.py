# SPDX-License-Identifier: Apache-2.0
"""The loop, with a protocol of the test's own: a frame is a length (u16) and so many bytes, the reply their reverse."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from virtfs_proxy.service import stream
from virtfs_proxy.service.poll import Poll
from virtfs_proxy.service.signals import Stop, Stopped
from virtfs_proxy.service.stream import Hangup, Protocol, serve

LIMIT = 1002


def _frame(body: bytes) -> bytes:
    return struct.pack("=H", len(body)) + body


class Server:
    """The loop in a thread, and the peer's socket."""

    def __init__(self, polling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1} if polling else {0})
        self.peer, self.connection = socket.socketpair()
        self.peer.settimeout(30)
        self.served: list[bytes] = []
        self.given: list[int] = []
        self.ended: BaseException | None = None
        self.stop = Stop()
        self.protocol = Protocol(
            size=struct.Struct("=H").unpack_from,
            extra=2,
            header=2,
            limit=LIMIT,
            answer=self.answer,
            passing=b"pass",
            not_passed=lambda code: b"%04d" % code,
        )
        self.poll = Poll(self.connection, 50)
        assert self.poll.active is polling
        self.thread = threading.Thread(target=self._run)

    def answer(self, frame: bytes) -> bytes | int:
        assert isinstance(frame, bytes)
        self.served.append(frame[2:])
        if frame[2:] == b"bad":
            raise Hangup("told to")
        if frame[2:] == b"fd":
            self.given.append(os.open("/dev/null", os.O_RDONLY))
            return self.given[-1]
        return frame[:1:-1]

    def _run(self) -> None:
        try:
            serve(self.connection, self.protocol, self.poll, self.stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.ended = error
        self.connection.close()

    def start(self) -> None:
        self.thread.start()

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (part := self.peer.recv(count - len(data))):
            data += part
        return data

    def end(self) -> None:
        """Hang up and wait for its end."""
        self.peer.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(params=[True, False], ids=["polling", "sleeping"])
def prepared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(request.param, monkeypatch)
    yield server
    server.peer.close()
    if server.thread.ident:
        server.thread.join(60)
    server.connection.close()


@pytest.fixture
def server(prepared: Server) -> Server:
    prepared.start()
    return prepared


BODIES = [b"", b"a", b"hello", b"x" * 1000]


def test_lock_step(server: Server) -> None:
    for body in BODIES * 3:
        server.peer.sendall(_frame(body))
        assert server.receive(len(body)) == body[::-1]
    server.end()
    assert server.ended is None
    assert server.served == BODIES * 3


def test_bytewise(server: Server) -> None:
    """A request in as many pieces as it has bytes; nothing is answered before the last."""
    body = b"hello"
    for done in range(3):
        for n, byte in enumerate(_frame(body)):
            assert len(server.served) == done
            server.peer.sendall(bytes([byte]))
            if n < len(body) + 1:
                server.peer.settimeout(0.005)
                with pytest.raises(TimeoutError):
                    server.peer.recv(1)
                server.peer.settimeout(30)
        assert server.receive(5) == b"olleh"
    server.end()
    assert server.ended is None


def test_many_in_one_send(server: Server) -> None:
    server.peer.sendall(b"".join(_frame(body) for body in BODIES) * 20)
    assert server.receive(20 * 1006) == b"".join(body[::-1] for body in BODIES) * 20
    server.end()
    assert server.served == BODIES * 20


@pytest.mark.parametrize("cut", [1, 2, 3, 500, 1001])
def test_one_and_a_part_then_the_rest(server: Server, cut: int) -> None:
    big = _frame(b"y" * 1000)
    for _ in range(3):
        server.peer.sendall(_frame(b"first") + big[:cut])
        assert server.receive(5) == b"tsrif"
        server.peer.sendall(big[cut:] + _frame(b"last"))
        assert server.receive(1004) == b"y" * 1000 + b"tsal"
    server.end()
    assert server.ended is None
    assert server.served == [b"first", b"y" * 1000, b"last"] * 3


@pytest.mark.parametrize("sent", [1, 2, 6])
def test_a_peer_that_leaves_within_a_request(server: Server, sent: int) -> None:
    server.peer.sendall(_frame(b"whole") + _frame(b"hello")[:sent])
    assert server.receive(5) == b"elohw"
    server.end()
    assert isinstance(server.ended, Hangup)
    assert f"after {sent} bytes" in str(server.ended)
    assert server.served == [b"whole"]


def test_a_peer_that_shuts_its_sending_half_gets_its_replies(server: Server) -> None:
    server.peer.sendall(_frame(b"abc") * 10)
    server.peer.shutdown(socket.SHUT_WR)
    assert server.receive(40) == b"cba" * 10
    server.end()
    assert server.ended is None


def test_a_frame_over_the_limit_ends_it_unread(server: Server) -> None:
    server.peer.sendall(_frame(b"abc") + struct.pack("=H", LIMIT - 1))
    assert server.receive(3) == b"cba"
    server.thread.join(60)
    assert isinstance(server.ended, Hangup)
    assert f"{LIMIT + 1} bytes" in str(server.ended)


def test_hangup_by_the_protocol(server: Server) -> None:
    server.peer.sendall(_frame(b"abc") + _frame(b"bad") + _frame(b"never"))
    assert server.receive(3) == b"cba"
    server.thread.join(60)
    assert isinstance(server.ended, Hangup)
    assert server.served == [b"abc", b"bad"]


def test_descriptors_are_passed_and_closed(server: Server) -> None:
    for _ in range(3):
        server.peer.sendall(_frame(b"fd"))
        data, fds, _, _ = socket.recv_fds(server.peer, 4, 4)
        assert data == b"pass"
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null"]
        os.close(fds[0])
        server.peer.sendall(_frame(b"ab"))
        assert server.receive(2) == b"ba"
        assert not os.path.exists(f"/proc/self/fd/{server.given[-1]}")
    server.end()


class Failing:
    """A connection whose sendmsg fails."""

    def __init__(self, sock: socket.socket, code: int) -> None:
        self._sock = sock
        self._code = code

    def sendmsg(self, *_: Any) -> int:
        raise OSError(self._code, os.strerror(self._code))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS])
def test_a_descriptor_that_cannot_be_passed_is_an_answer(prepared: Server, code: int) -> None:
    plain = prepared.connection
    prepared.connection = Failing(plain, code)  # type: ignore[assignment]
    prepared.start()
    prepared.peer.sendall(_frame(b"fd") + _frame(b"ab"))
    assert prepared.receive(6) == b"%04dba" % code
    assert not os.path.exists(f"/proc/self/fd/{prepared.given[0]}")
    prepared.end()
    assert prepared.ended is None


def test_a_peer_gone_before_a_descriptor_came(prepared: Server) -> None:
    plain = prepared.connection
    prepared.connection = Failing(plain, errno.EPIPE)  # type: ignore[assignment]
    prepared.start()
    prepared.peer.sendall(_frame(b"fd"))
    prepared.thread.join(60)
    assert isinstance(prepared.ended, BrokenPipeError)
    assert not os.path.exists(f"/proc/self/fd/{prepared.given[0]}")


def _small(server: Server) -> None:
    for sock in (server.peer, server.connection):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


@pytest.mark.parametrize("body", [b"z" * 900, b"fd"])
def test_replies_that_are_read_late_come_whole(prepared: Server, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the socket holds: the loop waits, tries again, and loses nothing."""
    _short_timeout(monkeypatch)
    _small(prepared)
    prepared.start()
    count = 100
    sender = threading.Thread(target=lambda: prepared.peer.sendall(_frame(body) * count))
    sender.start()
    prepared.thread.join(0.2)  # long enough for a few of the loop's tries
    for _ in range(count):
        data, fds, _, _ = socket.recv_fds(prepared.peer, 1 if body != b"fd" else 4, 4)
        for fd in fds:
            os.close(fd)
        if body == b"fd":
            assert (data, len(fds)) == (b"pass", 1)
        else:
            assert data + prepared.receive(899) == body
    sender.join(60)
    prepared.end()
    assert prepared.ended is None


def _short_timeout(monkeypatch: pytest.MonkeyPatch, tries: int = 1000) -> None:
    """A try of the loop lasts 20 ms instead of a second."""
    pack = struct.pack
    monkeypatch.setattr(stream, "SEND_TIMEOUT", tries)
    monkeypatch.setattr(
        struct, "pack", lambda form, *values: pack(form, 0, 20_000) if form == "@ll" else pack(form, *values)
    )


@pytest.mark.parametrize("body", [b"z" * 900, b"fd"])
def test_a_peer_that_never_reads_counts_as_gone(prepared: Server, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    _short_timeout(monkeypatch, tries=5)
    _small(prepared)
    prepared.start()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        prepared.peer.sendall(_frame(body) * 10_000)
    prepared.thread.join(60)
    assert isinstance(prepared.ended, Hangup)
    assert "read nothing" in str(prepared.ended)
    assert not [fd for fd in prepared.given if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.mark.parametrize("body", [b"z" * 900, b"fd"])
def test_a_signal_ends_the_waiting_for_such_a_peer(
    prepared: Server, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_timeout(monkeypatch)
    _small(prepared)
    prepared.start()
    prepared.peer.settimeout(0.3)
    with pytest.raises(TimeoutError):
        prepared.peer.sendall(_frame(body) * 10_000)
    prepared.stop.pending = "SIGTERM"  # as Stop's handler does while a request is served
    prepared.thread.join(60)
    assert isinstance(prepared.ended, Stopped)


def test_a_signal_ends_it_between_two_requests(prepared: Server) -> None:
    """The one that is served when it comes is answered; the next is not begun."""
    answer = prepared.answer

    def signalled(frame: bytes) -> bytes | int:
        prepared.stop.pending = "SIGTERM"
        return answer(frame)

    prepared.protocol = prepared.protocol._replace(answer=signalled)
    prepared.start()
    prepared.peer.sendall(_frame(b"abc"))
    assert prepared.receive(10) == b"cba"
    prepared.thread.join(60)
    assert isinstance(prepared.ended, Stopped)
