# SPDX-License-Identifier: Apache-2.0
"""The named socket: who can connect, from its first instant to its last, and what becomes of its name."""

import errno
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.conftest import Launcher, Running, as_user, until

pytestmark = pytest.mark.root

UID, GID, OTHER = 1234, 1235, 1236
MODE = 0o770


def _plain(directory: Path) -> None:
    directory.mkdir(mode=0o755)


def _set_group_id(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, 0, OTHER)
    directory.chmod(0o2775)


def _default_acl(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    acl = f"default:user:{OTHER}:rwx,default:group:{OTHER}:rwx,default:mask::rwx,default:other::rwx"
    subprocess.run(["setfacl", "-m", acl, str(directory)], check=True)


def _somebodys(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, OTHER, OTHER)
    directory.chmod(0o755)


DIRECTORIES = pytest.mark.parametrize("directory", [_plain, _set_group_id, _default_acl, _somebodys])


class Instant(tuple[int, int, int, bool]):
    """A socket's mode, owner, group and whether it has an access control list."""

    __slots__ = ()

    def admits_a_stranger(self) -> bool:
        mode, uid, gid, acl = self
        return bool(mode & 0o007 or (mode & 0o070 and (gid != GID or acl)) or uid not in {0, UID})


def _look(path: Path) -> Instant | None:
    try:
        st = path.lstat()
        acl = "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Instant((stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, acl))


@DIRECTORIES
def test_at_no_instant_it_is_open_to_strangers(launcher: Launcher, directory: Callable[[Path], None]) -> None:
    """strace holds the helper up before each call that may change who is let in, and we look meanwhile."""
    launcher.socket = launcher.room / "run" / "socket"
    directory(launcher.socket.parent)
    hold = "inject=fchmod,chmod,fchmodat,chown,fchown,fchownat,lchown,removexattr,listen:delay_enter=150000"
    running = launcher.foreground(*launcher.on_socket(UID, GID), under=["strace", "-qq", "-o", "/dev/null", "-e", hold])
    instants: list[Instant] = []

    def listening() -> bool:
        now = _look(launcher.socket)
        if now and now not in instants:
            instants.append(now)
        return running._poll() or any(" started for " in line for line in running.said())

    until(listening, "the start")
    assert instants[-1] == (MODE, UID, GID, False), (instants, running.said())
    assert instants[0][0] & 0o077 == 0, "no state before the last was seen"
    assert not [oct(instant[0]) for instant in instants if instant.admits_a_stranger()]
    launcher.connect().close()
    assert running.ends() == 0


@DIRECTORIES
def test_who_may_connect(launcher: Launcher, directory: Callable[[Path], None]) -> None:
    launcher.socket = launcher.room / "run" / "socket"
    directory(launcher.socket.parent)
    running = launcher.listening(uid=UID, gid=GID)
    there = launcher.socket.lstat()
    assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid) == (MODE, UID, GID)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(launcher.socket))

    assert as_user(OTHER, OTHER, [], connect) == errno.EACCES
    assert as_user(OTHER, 0, [0], connect) == errno.EACCES
    assert as_user(65534, 65534, [UID], connect) == errno.EACCES
    assert not running._poll()
    assert as_user(UID, OTHER, [], connect) == 0
    assert running.ends() == 0

    for uid, gid, groups in [(OTHER, GID, []), (OTHER, OTHER, [GID]), (0, 0, [])]:
        running = launcher.listening(uid=UID, gid=GID)
        assert as_user(uid, gid, groups, connect) == 0
        assert running.ends() == 0


def test_one_client_is_served_and_no_second(launcher: Launcher) -> None:
    running = launcher.listening()
    client = launcher.connect()
    client.lstat(".")
    assert not launcher.socket.exists()
    late = socket.socket(socket.AF_UNIX)
    launcher.sockets.append(late)
    with pytest.raises(FileNotFoundError):
        late.connect(str(launcher.socket))
    client.close()
    assert running.ends() == 0


def _another_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


def _a_file(path: Path) -> None:
    path.unlink()
    path.write_text("precious", encoding="utf-8")


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_link_to_it(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _ended(launcher: Launcher, running: Running, by: str) -> None:
    if by == "SIGTERM":
        running.signal(signal.SIGTERM)
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(by)
    assert running.ends() == 0
    assert "Traceback" not in "".join(running.said())
    assert launcher.running


@pytest.mark.parametrize("replace", [_another_socket, _a_file, _a_directory, _a_link_to_it])
def test_what_took_its_place_is_left_alone(launcher: Launcher, replace: Callable[[Path], None]) -> None:
    running = launcher.listening()
    replace(launcher.socket)
    before = launcher.socket.lstat()
    _ended(launcher, running, "SIGTERM")
    assert launcher.socket.lstat()[:9] == before[:9]


def test_a_name_that_is_gone_already_is_no_error(launcher: Launcher) -> None:
    """QEMU's driver unlinks it once connected."""
    running = launcher.listening()
    kept = launcher.room / "kept"
    os.link(launcher.socket, kept)
    launcher.socket.unlink()
    _ended(launcher, running, str(kept))
    assert kept.exists()


def test_it_is_removed_from_a_directory_that_was_renamed(launcher: Launcher) -> None:
    launcher.socket = launcher.room / "run" / "socket"
    launcher.socket.parent.mkdir()
    running = launcher.listening()
    launcher.socket.parent.rename(launcher.room / "renamed")
    _ended(launcher, running, "SIGTERM")
    assert os.listdir(launcher.room / "renamed") == []


def test_a_relative_path(launcher: Launcher) -> None:
    launcher.socket = Path("socket")
    running = launcher.listening(cwd=launcher.room)
    assert (launcher.room / "socket").is_socket()
    _ended(launcher, running, "SIGTERM")
    assert not (launcher.room / "socket").exists()


def test_a_directory_that_is_swapped_while_it_starts(launcher: Launcher) -> None:
    """Whoever owns a directory on the way can put a link in its place: the socket is made where the look began."""
    mine, roots = launcher.room / "mine", launcher.room / "roots"
    mine.mkdir()
    roots.mkdir(mode=0o700)
    launcher.socket = mine / "socket"
    trace = launcher.room / "trace"
    # The first fchmod(2) of the start comes between the look at the directory and bind(2): hold it there for a while.
    held = [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(trace),
        "-e",
        "trace=fchmod,bind",
        "-e",
        "inject=fchmod:delay_enter=1500000",
    ]
    running = launcher.foreground(*launcher.on_socket(), under=held)
    until(lambda: trace.exists() and "fchmod" in trace.read_text(encoding="utf-8"), "a call of fchmod")
    mine.rename(launcher.room / "moved")
    mine.symlink_to("roots")
    until((launcher.room / "moved" / "socket").is_socket, "a socket")
    assert os.listdir(roots) == []
    until(lambda: any(" started for " in line for line in running.said()), "the helper's start")
    _ended(launcher, running, str(launcher.room / "moved" / "socket"))
    assert os.listdir(launcher.room / "moved") == []
