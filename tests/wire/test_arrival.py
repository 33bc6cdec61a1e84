# SPDX-License-Identifier: Apache-2.0
"""However a client's bytes arrive, each request gets its own reply: the server's loop over a socketpair."""

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtfs_proxy.codec import Fields
from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.proxy.messages import REQUESTS
from virtfs_proxy.proxy.server import serve
from virtfs_proxy.proxy.session import Session
from virtfs_proxy.service.log import ERROR, Log
from virtfs_proxy.service.poll import Poll
from virtfs_proxy.service.signals import Stop
from virtfs_proxy.service.stream import Hangup

ROWS = {row.name: row for row in REQUESTS}


def request(name: str, **values: object) -> bytes:
    body = Fields("=", ROWS[name].fields).pack(values)
    return struct.pack("=II", ROWS[name].opcode, len(body)) + body


class Server(threading.Thread):
    """The loop, in a thread; what ended it is in ``end``."""

    def __init__(self, directory: int, poll_us: int) -> None:
        super().__init__()
        self.session = Session(Export(), Log("test", ERROR), directory)
        self.client, self.connection = socket.socketpair()
        self.client.settimeout(10)
        self.poll = Poll(self.connection, poll_us)
        self.end: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.connection:
                serve(self.session, self.connection, self.poll, Stop())
        except (Hangup, OSError) as end:
            self.end = end

    def read(self, count: int) -> bytes:
        """So many bytes, or what came before the end; a reset, which unread requests make of a close, is one too."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while len(data) < count and (part := self.client.recv(count - len(data))):
                data += part
        return data

    def finish(self) -> Exception | None:
        self.client.close()
        self.join(10)
        assert not self.is_alive()
        return self.end


@pytest.fixture(params=[0, 50], ids=["asleep", "looking"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("target", tmp_path / "link")
    os.symlink("other", tmp_path / "second")
    server = Server(directory, request.param)
    try:
        yield server
    finally:
        server.finish()
        os.close(directory)


FIRST, SECOND = request("readlink", path=b"link", size=100), request("readlink", path=b"second", size=100)
FIRST_REPLY = bytes.fromhex("00000000 08000000 0600") + b"target"
SECOND_REPLY = bytes.fromhex("00000000 07000000 0500") + b"other"


def test_bytes_one_by_one(server: Server) -> None:
    for _ in range(3):
        for byte in FIRST + SECOND:
            server.client.send(bytes([byte]))
        assert server.read(len(FIRST_REPLY + SECOND_REPLY)) == FIRST_REPLY + SECOND_REPLY
    assert server.finish() is None


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_many_requests_in_one_send(server: Server, count: int) -> None:
    server.client.sendall((FIRST + SECOND) * count)
    assert server.read(len(FIRST_REPLY + SECOND_REPLY) * count) == (FIRST_REPLY + SECOND_REPLY) * count
    assert server.session.counts[ROWS["readlink"].opcode] == 2 * count
    assert server.finish() is None


def test_a_break_at_every_point(server: Server) -> None:
    both = FIRST + SECOND
    for point in range(1, len(both)):
        server.client.send(both[:point])
        if point >= len(FIRST):
            assert server.read(len(FIRST_REPLY)) == FIRST_REPLY
            server.client.send(both[point:])
            assert server.read(len(SECOND_REPLY)) == SECOND_REPLY
        else:
            server.client.send(both[point:])
            assert server.read(len(FIRST_REPLY + SECOND_REPLY)) == FIRST_REPLY + SECOND_REPLY
    assert server.finish() is None


@pytest.mark.parametrize("start", range(1, 12))
def test_the_start_of_the_next_request_behind_one(server: Server, start: int) -> None:
    server.client.send(FIRST + SECOND[:start])
    assert server.read(len(FIRST_REPLY)) == FIRST_REPLY
    server.client.send(SECOND[start:] + FIRST)
    assert server.read(len(SECOND_REPLY + FIRST_REPLY)) == SECOND_REPLY + FIRST_REPLY
    assert server.finish() is None


def test_the_largest_request_comes_in_pieces(server: Server) -> None:
    body = struct.pack("=H", 65_530) + b"x" * 65_530 + struct.pack("=I", 0)
    assert len(body) == 65_536
    server.client.sendall(struct.pack("=II", ROWS["chmod"].opcode, len(body)) + body + FIRST)
    assert server.read(12) == bytes.fromhex("01000000 04000000 dcffffff")  # ENAMETOOLONG
    assert server.read(len(FIRST_REPLY)) == FIRST_REPLY
    assert server.finish() is None


def test_one_byte_more_is_too_much(server: Server) -> None:
    server.client.sendall(struct.pack("=II", ROWS["chmod"].opcode, 65_537))
    assert server.read(1) == b""
    assert isinstance(server.finish(), Hangup)


def test_what_came_before_an_unknown_type_is_answered(server: Server) -> None:
    server.client.sendall(FIRST + struct.pack("=II", 99, 0) + SECOND)
    assert server.read(1000) == FIRST_REPLY
    assert isinstance(server.finish(), Hangup)


@pytest.mark.parametrize("length", [1, 7, 8, 9, len(FIRST) - 1])
def test_half_a_request_is_none(server: Server, length: int) -> None:
    server.client.send(SECOND + FIRST[:length])
    assert server.read(len(SECOND_REPLY)) == SECOND_REPLY
    server.client.shutdown(socket.SHUT_WR)
    assert server.read(1) == b""
    assert isinstance(server.finish(), Hangup)


def test_a_descriptor_comes_with_four_bytes_and_stays_open_on_one_side_only(server: Server) -> None:
    server.client.send(request("open", path=b".", flags=os.O_DIRECTORY) + FIRST)
    data, fds, _, _ = socket.recv_fds(server.client, 4, 4)
    assert data == b"\xff\xff\xff\x7f"
    (fd,) = fds
    assert stat.S_ISDIR(os.fstat(fd).st_mode)
    inode = os.fstat(fd).st_ino
    os.close(fd)
    assert server.read(len(FIRST_REPLY)) == FIRST_REPLY
    server.client.send(request("open", path=b"missing", flags=os.O_RDONLY))
    data, fds, _, _ = socket.recv_fds(server.client, 4, 4)
    assert (data, fds) == (b"\xfe\xff\xff\xff", [])
    assert [name for name in os.listdir("/proc/self/fd") if inode_of(name) == inode] == [str(server.session.root)]


def inode_of(descriptor: str) -> int:
    try:
        return os.stat(f"/proc/self/fd/{descriptor}").st_ino
    except FileNotFoundError:
        return 0
