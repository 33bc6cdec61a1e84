# SPDX-License-Identifier: Apache-2.0
"""The helper as a daemon: when its parent returns, with what, and where the log goes."""

import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest
from tests.system.conftest import NAME, PATIENCE, Launcher, Running

pytestmark = pytest.mark.root

INFO, WARNING, ERROR = 3 << 3 | 6, 3 << 3 | 4, 3 << 3 | 3  # LOG_DAEMON and the levels, syslog.h


@pytest.fixture
def syslog(launcher: Launcher) -> Iterator[socket.socket]:
    """What syslogd would hear of helpers under `launcher.private_dev`."""
    launcher.private_dev()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(launcher.room / "dev" / "log"))
        sock.settimeout(PATIENCE)
        yield sock


def _messages(sock: socket.socket) -> list[tuple[int, str]]:
    """Everything that has come, as (priority, text)."""
    sock.setblocking(False)
    found: list[tuple[int, str]] = []
    while True:
        try:
            message = sock.recv(4096).decode()
        except BlockingIOError:
            return found
        match = re.fullmatch(rf"<(\d+)>{NAME}\[(\d+)\]: (.*)", message)
        assert match, message
        found.append((int(match[1]), match[3]))


def _confined(running: Running, launcher: Launcher) -> bool:
    there = os.stat(f"/proc/{running.pid}/root")
    status = running.status()
    ours = launcher.export.stat()
    return (
        (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        and status["NoNewPrivs"] == "1"
        and status["Umask"] == "0000"
    )


def test_its_parent_returns_when_it_listens_and_is_confined(launcher: Launcher) -> None:
    running = launcher.daemon(*launcher.on_socket())
    client = launcher.connect()  # at once
    assert _confined(running, launcher)
    client.mkdir("made")
    assert (launcher.export / "made").is_dir()
    client.close()
    assert running.ends() == 0
    assert not launcher.socket.exists()


def test_the_order_of_its_start(launcher: Launcher) -> None:
    """The parent's exit comes after the last step of the child, by the order in which strace saw them."""
    trace = launcher.room / "trace"
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=listen,chroot,prctl,umask,exit_group"]
    ours, theirs = launcher.pair()
    ours.shutdown(socket.SHUT_WR)  # the child ends once it serves: strace waits for both
    options = ["-p", str(launcher.export), "-f", str(theirs.fileno())]
    done = launcher.run(*options, under=[*launcher.private_dev(), *strace], pass_fds=(theirs.fileno(),))
    assert done.returncode == 0
    lines = [line.split(None, 1) for line in trace.read_text(encoding="utf-8").splitlines()]
    (confined,) = [n for n, (_, call) in enumerate(lines) if call.startswith("umask(0")]
    child = lines[confined][0]
    exits = {pid: n for n, (pid, call) in enumerate(lines) if call.startswith("exit_group(0)")}
    (parent,) = set(exits) - {child}
    assert exits[parent] > confined
    assert any("PR_SET_NO_NEW_PRIVS" in call for _, call in lines[:confined])


def test_it_leaves_its_session_and_its_parents_streams(launcher: Launcher, syslog: socket.socket) -> None:
    running = launcher.daemon(*launcher.on_socket())
    assert os.getsid(running.pid) == running.pid
    assert os.getsid(running.pid) != os.getsid(0)
    null = os.stat("/dev/null").st_rdev
    assert [os.stat(f"/proc/{running.pid}/fd/{n}").st_rdev for n in range(3)] == [null] * 3
    assert _messages(syslog)


@pytest.mark.parametrize("end", ["client", "SIGTERM"])
def test_its_log_goes_to_syslog(launcher: Launcher, syslog: socket.socket, end: str) -> None:
    running = launcher.daemon(*launcher.on_socket())
    client = launcher.connect()
    client.lstat(".")
    with pytest.raises(OSError, match="Invalid argument"):
        client.call("lstat", path=b"../secret")
    if end == "client":
        client.close()
    else:
        running.signal(signal.SIGTERM)
    assert running.ends() == 0
    messages = _messages(syslog)
    assert [priority for priority, _ in messages] == [INFO, INFO, WARNING, INFO]
    text = " ".join(text for _, text in messages)
    assert f"started for {launcher.export}" in text
    assert "'..' in path b'../secret'" in text
    assert ("client closed" if end == "client" else "stopped by SIGTERM") in messages[-1][1]
    assert messages[-1][1].endswith("served 2 requests (1 errors, 1 refused): LSTAT 2")
    assert running.said() == []


def test_without_a_syslog_it_logs_to_stderr(launcher: Launcher) -> None:
    running = launcher.daemon(*launcher.on_socket())
    launcher.connect().close()
    assert running.ends() == 0
    said = running.said()
    assert len(said) == 3
    assert all(line.startswith(f"{NAME}: ") for line in said)


def test_a_syslog_that_stops_does_not_stop_it(launcher: Launcher, syslog: socket.socket) -> None:
    """Nor is another looked for: what is at dev/log in the export is the guest's."""
    running = launcher.daemon(*launcher.on_socket())
    (launcher.export / "dev").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guests:
        guests.bind(str(launcher.export / "dev" / "log"))
        guests.setblocking(False)
        syslog.close()
        client = launcher.connect()
        with pytest.raises(OSError, match="Invalid argument"):
            client.call("lstat", path=b"..")
        client.close()
        assert running.ends() == 0
        with pytest.raises(BlockingIOError):
            guests.recv(4096)


def test_a_syslog_that_is_full_does_not_stall_it(launcher: Launcher, syslog: socket.socket) -> None:
    running = launcher.daemon(*launcher.on_socket(), "--log-level", "debug")
    client = launcher.connect()
    for _ in range(2000):  # far more than a datagram socket holds (net.unix.max_dgram_qlen, 10 to 512)
        with pytest.raises(FileNotFoundError):
            client.lstat("missing")
    client.close()
    assert running.ends() == 0
    assert len(_messages(syslog)) < 2000


def test_its_errors_come_from_the_parent(launcher: Launcher, syslog: socket.socket) -> None:
    """Once in the background it has no other way to say why it ended. (More of them: test_helper_command.py.)"""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=chroot:error=EIO"]
    done = launcher.run("-p", str(launcher.export), *launcher.on_socket(), under=[*launcher.private_dev(), *strace])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{NAME}: cannot confine itself: stage root: Input/output error\n"
    assert not launcher.socket.exists()
    assert _messages(syslog) == []


def test_a_child_that_is_killed_while_starting_is_an_error(launcher: Launcher, syslog: socket.socket) -> None:
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=chroot:signal=SIGKILL"]
    done = launcher.run("-p", str(launcher.export), *launcher.on_socket(), under=[*launcher.private_dev(), *strace])
    assert (done.returncode, done.stdout) == (1, "")
    assert "-9" in done.stderr
    assert done.stderr.count("\n") == 1
    assert _messages(syslog) == []


@pytest.mark.parametrize("call", ["pipe2", "fork,vfork,clone,clone3"])
def test_no_way_into_the_background(launcher: Launcher, call: str) -> None:
    """Too many processes or files: one line that says so, and no socket that nobody listens to."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:error=EAGAIN"]
    done = launcher.run("-p", str(launcher.export), *launcher.on_socket(), under=strace)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{NAME}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Resource temporarily unavailable" in done.stderr
    assert not launcher.socket.exists()
