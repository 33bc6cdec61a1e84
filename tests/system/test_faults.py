# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around the helper: clients that vanish, descriptors that run out, files that must not be opened."""

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.peer import body_of, frame
from tests.system.conftest import Launcher, Running, until

from virtfs_proxy.proxy.client import ProxyClient

pytestmark = pytest.mark.root

CREATE = frame("create", body_of("create", path=b"made", flags=os.O_CREAT | os.O_WRONLY, mode=0o644, uid=0, gid=0))
OPEN = frame("open", body_of("open", path=b"file", flags=os.O_RDONLY))
LSTAT = frame("lstat", body_of("lstat", path=b"."))
LSTAT_REPLY = 8 + 116


@pytest.fixture
def served(launcher: Launcher, export: Path) -> tuple[Running, ProxyClient]:
    """A helper with a file to serve; it has served a request."""
    (export / "file").write_bytes(b"content")
    running, client = launcher.connected()
    client.lstat("file")
    return running, client


def _limit(running: Running, soft: int) -> None:
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (soft, resource.RLIM_INFINITY if soft > 4096 else 4096))


def _settled(running: Running, before: dict[int, str]) -> None:
    """The descriptors of before, no more and no other: the helper closes what it passed after the reply has gone."""
    until(lambda: running.descriptors() == before, f"descriptors {before}, not {running.descriptors()}")


@pytest.mark.parametrize("sent", range(len(CREATE)))
def test_a_client_killed_within_a_request_changes_nothing(launcher: Launcher, export: Path, sent: int) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground("-f", str(theirs.fileno()), pass_fds=(theirs.fileno(),))
    theirs.close()
    child = os.fork()
    if child == 0:
        os.write(ours.fileno(), CREATE[:sent])
        os.kill(os.getpid(), signal.SIGKILL)
    ours.close()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert running.ends() == (1 if sent else 0)
    assert os.listdir(export) == []
    said = running.said()
    assert len(said) == (4 if sent else 3), said
    assert not sent or f"peer left within a request, after {sent} bytes of it" in said[2]


def test_a_client_gone_before_a_descriptor_came(served: tuple[Running, ProxyClient]) -> None:
    running, client = served
    client._sock.sendall(OPEN * 2000)
    client.close()
    assert running.ends() == 0
    said = running.said()
    assert "client is gone" in said[-1] or "client closed" in said[-1], said
    assert "Traceback" not in "".join(said)


def test_no_descriptors_left(served: tuple[Running, ProxyClient]) -> None:
    """The guest's program is told; the connection goes on, and so does what needs no descriptor."""
    running, client = served
    before = running.descriptors()
    free = min(set(range(len(before) + 1)) - set(before))
    _limit(running, free)
    attempts: list[Callable[[], object]] = [lambda: client.open("file"), lambda: client.create("new")]
    for attempt in attempts:
        with pytest.raises(OSError, match="Too many open files") as refusal:
            attempt()
        assert refusal.value.errno == errno.EMFILE
    assert client.lstat("file").st_size == 7
    client.mkdir("made")
    _settled(running, before)
    _limit(running, 1024)
    for _ in range(10):
        with client.open("file") as file:
            assert file.read() == b"content"
    _settled(running, before)


def _replies(sock: socket.socket, count: int) -> list[tuple[int, int]]:
    """Replies to OPEN as (status, how many descriptors came); these are closed."""
    found = []
    for _ in range(count):
        data, fds, _, _ = socket.recv_fds(sock, 4, 8)
        for fd in fds:
            os.close(fd)
        found.append((struct.unpack("=i", data)[0], len(fds)))
    return found


def test_a_descriptor_that_cannot_be_passed(served: tuple[Running, ProxyClient]) -> None:
    """A peer that takes none off its socket: past RLIMIT_NOFILE of the helper in flight, the kernel refuses more."""
    running, client = served
    before = running.descriptors()
    _limit(running, 128)
    sock = client._sock
    sock.sendall(OPEN * 200 + LSTAT)
    until(lambda: _queued(sock) >= 200 * 4 + LSTAT_REPLY, "all replies")
    _settled(running, before)
    found = _replies(sock, 200)
    passed, refused = (0x7FFFFFFF, 1), (-errno.ETOOMANYREFS, 0)
    assert set(found) == {passed, refused}
    assert found.count(passed) <= 129  # those in flight are counted by user, and others may have some
    assert len(sock.recv(LSTAT_REPLY)) == LSTAT_REPLY
    _limit(running, 1024)
    sock.sendall(OPEN)
    assert _replies(sock, 1) == [passed]
    _settled(running, before)


def _queued(sock: socket.socket) -> int:
    """Bytes that wait to be read (SIOCINQ)."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, 0x541B, bytes(4)))[0])


def test_descriptors_from_the_peer_are_not_kept(served: tuple[Running, ProxyClient]) -> None:
    """With a request, with a part of one, and before one."""
    running, client = served
    before = running.descriptors()
    reading, writing = os.pipe()
    for part in (LSTAT, LSTAT[:3], LSTAT[3:], LSTAT * 2, OPEN):
        socket.send_fds(client._sock, [part], [writing] * 20)
    os.close(writing)
    for _ in range(4):
        assert len(client._sock.recv(LSTAT_REPLY)) == LSTAT_REPLY  # each was sent by one call
    assert _replies(client._sock, 1) == [(0x7FFFFFFF, 1)]
    _settled(running, before)
    assert select.select([reading], [], [], 30)[0], "somebody still holds the pipe's other end"
    assert os.read(reading, 1) == b""
    os.close(reading)


SPECIAL = {
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "null": (stat.S_IFCHR, os.makedev(1, 3)),
    "tty": (stat.S_IFCHR, os.makedev(5, 0)),
    "ttyS0": (stat.S_IFCHR, os.makedev(4, 64)),
    "loop": (stat.S_IFBLK, os.makedev(7, 0)),
}
FLAGS = [
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDONLY | os.O_NONBLOCK,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND | os.O_SYNC,
    os.O_RDONLY | os.O_NOCTTY,
    os.O_DIRECTORY,
    os.O_PATH,
]


def test_no_device_fifo_or_socket_is_opened(launcher: Launcher, export: Path) -> None:
    """By strace: no successful open of any, whatever the request and the flags; and none that blocks."""
    for name, (kind, device) in SPECIAL.items():
        os.mknod(export / name, kind | 0o666, device)
    (export / "link").symlink_to("fifo")
    trace = launcher.room / "trace"
    running, client = launcher.connected(
        under=["strace", "-qq", "-o", str(trace), "-e", "trace=open,openat,openat2,creat"]
    )
    refusals = "No such device|Invalid argument|Not a directory|symbolic links|File exists|Inappropriate|Permission"
    for name in [*SPECIAL, "link"]:
        for flags in FLAGS:
            with pytest.raises(OSError, match=refusals):
                client.open(name, flags)
            with pytest.raises(OSError, match=refusals):
                client.create(name, flags | os.O_CREAT, uid=1234, gid=1234)
            with pytest.raises(OSError, match=refusals):
                client.create(name, flags | os.O_CREAT | os.O_EXCL)
        if name != "link":
            with pytest.raises(OSError, match=refusals):
                client.truncate(name, 0)
            with pytest.raises(OSError, match=refusals):
                client.getversion(name)
        assert client.lstat(name)
    client.close()
    assert running.ends() == 0
    opened = [line for line in trace.read_text(encoding="utf-8").splitlines() if " = -1 " not in line]
    assert not [line for line in opened if any(f'"./{name}"' in line for name in [*SPECIAL, "link"])]


def test_a_fifo_has_no_writer_from_the_helper(served: tuple[Running, ProxyClient], export: Path) -> None:
    """By its effect: whoever reads from it would see the other end hang up."""
    _, client = served
    os.mkfifo(export / "fifo")
    reading = os.open(export / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_NONBLOCK):
            with pytest.raises(OSError, match="No such device"):
                client.open("fifo", flags)
        assert poll.poll(0) == []
        os.close(os.open(export / "fifo", os.O_WRONLY))
        assert poll.poll(0) == [(reading, select.POLLHUP)]
    finally:
        os.close(reading)


def test_a_lease_on_a_file_does_not_stall_it(served: tuple[Running, ProxyClient], export: Path) -> None:
    """open(2) waits for the lease's holder for 45 s (fs.lease-break-time), unless it must not block."""
    _, client = served
    attempts: list[Callable[[], object]] = [lambda: client.open("file"), lambda: client.create("file", os.O_WRONLY)]
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with (export / "file").open("r+b") as held:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            for attempt in attempts:
                with pytest.raises(BlockingIOError):
                    attempt()
            client.lstat("file")
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        with client.open("file") as file:
            assert file.read() == b"content"
            assert os.get_blocking(file.fileno())
    finally:
        signal.signal(signal.SIGIO, before)
