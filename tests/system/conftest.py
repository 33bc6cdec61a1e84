# SPDX-License-Identifier: Apache-2.0
"""Helpers as processes: started as users start them, looked at through /proc, ended whatever happens."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtfs_proxy import linux
from virtfs_proxy.proxy.client import ProxyClient

PATIENCE = 60.0
"""Seconds that nothing here takes; what takes longer hangs."""

NAME = "virtfs-proxy-helper"

# A /dev of its own for one process: whether a syslog socket is there is for the test to say, whatever the host has.
_PRIVATE_DEV = 'mount --bind /dev/null "$0/null" && mount --rbind "$0" /dev && exec "$@"'


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for the condition and return its value once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)
    return value


def status_of(pid: int, task: int | None = None) -> dict[str, str]:
    """/proc/PID/status by field."""
    path = Path(f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status")
    lines = (line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: value.strip() for name, value in lines}


def as_user(uid: int, gid: int, groups: list[int], action: Callable[[], object]) -> int:
    """Run something in a child that is somebody else. :returns: 0, the errno of its OSError, or 255."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 255
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        action()
        code = 0
    except OSError as error:
        code = error.errno or 255
    finally:
        os._exit(code)


class Running:
    """A helper that runs: its own process, not a shell's or strace's around it."""

    def __init__(self, pid: int, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.log = log
        self.process = process
        self.code: int | None = None

    def said(self) -> list[str]:
        """The lines on its stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()

    def status(self) -> dict[str, str]:
        return status_of(self.pid)

    def descriptors(self) -> dict[int, str]:
        folder = Path(f"/proc/{self.pid}/fd")
        found = {}
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found[int(name)] = os.readlink(folder / name)
        return found

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _poll(self) -> bool:
        if self.code is None:
            if self.process:
                self.code = self.process.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def ends(self) -> int:
        """Wait for its exit status."""
        until(self._poll, "the helper's end")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it and what it runs under: each has a process group of its own."""
        if not self._poll():
            os.killpg(self.pid, signal.SIGKILL)
            self.ends()


class Launcher:
    """Starts helpers; `close` ends all of them."""

    def __init__(self, command: list[str], room: Path, export: Path) -> None:
        self.command = command
        self.room = room
        self.export = export
        self.socket = room / "socket"
        self.running: list[Running] = []
        self.sockets: list[socket.socket] = []

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        for running in self.running:
            running.kill()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A socketpair, closed at the end; waiting for it is bounded."""
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        self.sockets += [ours, theirs]
        return ours, theirs

    def run(self, *options: str, under: list[str] | None = None, **popen: Any) -> subprocess.CompletedProcess[str]:
        """The helper, or its parent, to its end."""
        command = [*(under or []), *self.command, *options]
        captured = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen
        return subprocess.run(command, text=True, timeout=PATIENCE, check=False, **captured)

    def foreground(self, *options: str, under: list[str] | None = None, **popen: Any) -> Running:
        """`helper -n`, which says in its log that it started, or ends."""
        log = self.room / f"log{len(self.running)}"
        with log.open("wb") as stderr:
            streams: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.DEVNULL,
                "stderr": stderr,
                "start_new_session": True,
            } | popen
            process = subprocess.Popen(
                [*(under or []), *self.command, "-n", "-p", str(self.export), *options], **streams
            )
        self.running.append(Running(process.pid, log, process))
        return self.running[-1]

    def listening(self, *options: str, uid: int = 0, gid: int = 0, **kwargs: Any) -> Running:
        """`helper -n -s`, once it can be connected to."""
        running = self.foreground(*self.on_socket(uid, gid), *options, **kwargs)
        until(lambda: running._poll() or any(" started for " in line for line in running.said()), "the helper's start")
        return running

    def on_socket(self, uid: int = 0, gid: int = 0) -> list[str]:
        return ["-s", str(self.socket), "-u", str(uid), "-g", str(gid)]

    def connected(self, *options: str, pass_fds: tuple[int, ...] = (), **kwargs: Any) -> tuple[Running, ProxyClient]:
        """`helper -n -f`, and the client on the other half."""
        ours, theirs = self.pair()
        number = theirs.fileno()
        running = self.foreground("-f", str(number), *options, pass_fds=(number, *pass_fds), **kwargs)
        theirs.close()
        return running, ProxyClient(ours)

    def connect(self) -> ProxyClient:
        """A client on the named socket."""
        client = ProxyClient.connect(self.socket, PATIENCE)
        self.sockets.append(client._sock)
        return client

    def private_dev(self) -> list[str]:
        """What to run a helper under, for a /dev that has null and what the test has put into room/dev."""
        dev = self.room / "dev"
        dev.mkdir(exist_ok=True)
        (dev / "null").touch()
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PRIVATE_DEV, str(dev)]

    def daemon(self, *options: str, under: list[str] | None = None, **popen: Any) -> Running:
        """The daemon, whose parent has exited with 0."""
        log = self.room / f"log{len(self.running)}"
        before = set(_children())
        with log.open("wb") as stderr:
            done = self.run(
                "-p", str(self.export), *options, under=[*self.private_dev(), *(under or [])], stderr=stderr, **popen
            )
        (child,) = set(_children()) - before or {0}
        if child:
            self.running.append(Running(child, log))
        assert (done.returncode, done.stdout) == (0, ""), log.read_text(encoding="utf-8")
        assert child, "there is no daemon"
        return self.running[-1]


def _children() -> list[int]:
    me = str(os.getpid())
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if status_of(int(name))["PPid"] == me:
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended meanwhile
    return found


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="virtfs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def export(room: Path) -> Path:
    """The directory served, as the host sees it."""
    path = room / "export"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def launcher(helper_command: list[str], room: Path, export: Path) -> Iterator[Launcher]:
    """Starts helpers of `export`; those that are left at the end are killed, daemons too."""
    missing = [tool for tool in ("setpriv", "strace", "unshare", "setfacl") if shutil.which(tool) is None]
    assert not missing, f"needed here: {missing} (Debian packages util-linux, strace and acl)"
    libc = ctypes.CDLL(None)
    libc.prctl(
        linux.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
    )  # a daemon whose parent has gone becomes a child of this process
    launcher = Launcher(helper_command, room, export)
    try:
        yield launcher
    finally:
        launcher.close()
        libc.prctl(linux.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
