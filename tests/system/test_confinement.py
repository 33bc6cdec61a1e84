# SPDX-License-Identifier: Apache-2.0
"""What the running helper may still do, read from /proc, and whose identity its requests have, by their effects."""

import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.conftest import Launcher, Running, status_of, until

from virtfs_proxy.proxy.client import ProxyClient

pytestmark = pytest.mark.root

KEPT = sum(1 << n for n in (0, 1, 3, 4, 6, 7, 27))  # CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID MKNOD
DAC_OVERRIDE = 1 << 1
WHO = (1234, 1235)
GROUPS = [4, 27, 4321]
MODES = ["-n -f", "-n -s", "-f", "-s"]
# What a careless parent leaves on: capabilities in every set, groups.
LOADED = [
    "setpriv",
    "--inh-caps=+chown,+net_raw",
    "--ambient-caps=+chown,+net_raw",
    f"--groups={','.join(map(str, GROUPS))}",
]

Served = tuple[Running, ProxyClient, str]


def _start(launcher: Launcher, mode: str, under: list[str], pass_fds: tuple[int, ...]) -> Served:
    if mode == "-n -f":
        return *launcher.connected(under=under, pass_fds=pass_fds, umask=0o077), mode
    if mode == "-f":
        ours, theirs = launcher.pair()
        number = theirs.fileno()
        running = launcher.daemon("-f", str(number), under=under, pass_fds=(number, *pass_fds), umask=0o077)
        theirs.close()
        return running, ProxyClient(ours), mode
    start = launcher.listening if mode == "-n -s" else lambda **more: launcher.daemon(*launcher.on_socket(), **more)
    running = start(under=under, pass_fds=pass_fds, umask=0o077)
    return running, launcher.connect(), mode


@pytest.fixture(params=MODES)
def served(request: pytest.FixtureRequest, launcher: Launcher) -> Iterator[Served]:
    """A helper that has served a request, started by a careless parent: descriptors, groups, capabilities, umask."""
    folder = os.open(launcher.room, os.O_RDONLY)
    reading, writing = os.pipe()
    high = [os.dup2(folder, n) for n in (777, 1023)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        launcher.private_dev()
        syslog.bind(str(launcher.room / "dev" / "log"))
        try:
            running, client, mode = _start(launcher, request.param, LOADED, (folder, reading, writing, *high))
            client.lstat(".")
            yield running, client, mode
        finally:
            for fd in (folder, reading, writing, *high):
                os.close(fd)


def _is_export(path: str, export: Path) -> bool:
    there, ours = os.stat(path), export.stat()
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def test_the_process(served: Served, launcher: Launcher) -> None:
    running, _, _ = served
    tasks = [int(name) for name in os.listdir(f"/proc/{running.pid}/task")]
    for task in tasks:
        status = status_of(running.pid, task)
        assert status["Groups"] == ""
        assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {
            "CapPrm": KEPT, "CapEff": KEPT, "CapBnd": KEPT, "CapInh": 0, "CapAmb": 0,
        }  # fmt: skip
        assert status["NoNewPrivs"] == "1"
        assert status["Umask"] == "0000"
        assert status["Uid"].split() == status["Gid"].split() == ["0"] * 4
        assert _is_export(f"/proc/{running.pid}/task/{task}/root", launcher.export)
        assert _is_export(f"/proc/{running.pid}/task/{task}/cwd", launcher.export)


def test_its_descriptors(served: Served, launcher: Launcher) -> None:
    """Stdio, the connection and, in a daemon, the log: neither those of the parent nor its own of the start."""
    running, _, mode = served
    found = running.descriptors()
    assert {0, 1, 2} <= set(found)
    rest = [target for fd, target in found.items() if fd > 2]
    assert [target.split(":")[0] for target in rest] == ["socket"] * (1 if "-n" in mode else 2), found
    silent = [0, 1] if "-n" in mode else [0, 1, 2]
    assert {os.stat(f"/proc/{running.pid}/fd/{n}").st_rdev for n in silent} == {os.stat("/dev/null").st_rdev}
    if "-n" in mode:
        assert found[2] == str(running.log)
    assert str(launcher.room) not in found.values()


def test_it_cannot_be_read_by_processes_without_privilege(served: Served) -> None:
    """Not dumpable: not even root, with all that the helper has and more, but without CAP_SYS_PTRACE."""
    running, _, _ = served
    without = ["setpriv", "--bounding-set=-sys_ptrace"]
    with subprocess.Popen([*without, "sleep", "60"]) as other:
        try:
            until(lambda: Path(f"/proc/{other.pid}/cmdline").read_bytes() == b"sleep\x0060\0", "exec")
            plain = subprocess.run([*without, "readlink", f"/proc/{other.pid}/exe"], capture_output=True, check=False)
        finally:
            other.kill()
    assert plain.returncode == 0, "root without CAP_SYS_PTRACE reads nothing here: this shows nothing"
    done = subprocess.run([*without, "readlink", f"/proc/{running.pid}/exe"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_stdio_that_was_closed_is_not_taken_for_it(launcher: Launcher) -> None:
    """A file opened on number 2 would get the log's lines."""
    running, client = launcher.connected(under=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    client.mkdir("made")
    found = running.descriptors()
    null = os.stat("/dev/null").st_rdev
    assert [os.stat(f"/proc/{running.pid}/fd/{n}").st_rdev for n in range(3)] == [null] * 3
    assert [target.split(":")[0] for fd, target in found.items() if fd > 2] == ["socket"]
    client.close()
    assert running.ends() == 0


def test_a_waiting_helper_is_confined_already(launcher: Launcher) -> None:
    running = launcher.listening(uid=1234, gid=1234, under=LOADED)
    status = running.status()
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == int(status["CapBnd"], 16) == KEPT
    assert (status["Groups"], status["NoNewPrivs"], status["Umask"]) == ("", "1", "0000")
    assert _is_export(f"/proc/{running.pid}/root", launcher.export)
    launcher.connect().close()
    assert running.ends() == 0


@pytest.fixture
def client(launcher: Launcher) -> ProxyClient:
    """Of a helper with supplementary groups."""
    return launcher.connected(under=LOADED, umask=0o077)[1]


def _owner(path: Path) -> tuple[int, int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)


def test_what_is_made_is_the_callers(client: ProxyClient, export: Path) -> None:
    """In a directory that is root's alone: DAC_OVERRIDE lets the guest's kernel decide who may."""
    export.chmod(0o700)
    client.create("file", mode=0o666, uid=WHO[0], gid=WHO[1]).close()
    client.mkdir("folder", 0o777, *WHO)
    client.mknod("fifo", stat.S_IFIFO | 0o666, 0, *WHO)
    client.mknod("socket", stat.S_IFSOCK | 0o666, 0, *WHO)
    client.symlink("target", "link", *WHO)
    for name, mode in [("file", 0o666), ("folder", 0o777), ("fifo", 0o666), ("socket", 0o666), ("link", 0o777)]:
        assert _owner(export / name) == (*WHO, mode), name


def test_a_caller_has_dac_override_alone(client: ProxyClient, export: Path) -> None:
    """No MKNOD, so no devices; no FSETID, and no group but its own, so no set-group-ID for another group's file."""
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for who in [WHO, (WHO[0], 0), (0, WHO[1])]:
            with pytest.raises(PermissionError):
                client.mknod("device", kind | 0o600, os.makedev(1, 3), *who)
    assert os.listdir(export) == []
    for group in [GROUPS[-1], 0]:
        folder = export / f"folder{group}"
        folder.mkdir()
        os.chown(folder, 0, group)
        folder.chmod(0o2777)
        client.create(f"{folder.name}/theirs", mode=0o2775, uid=WHO[0], gid=WHO[1]).close()
        assert _owner(folder / "theirs") == (WHO[0], group, 0o775)
        client.create(f"{folder.name}/own", mode=0o2775, uid=0, gid=0).close()
        assert _owner(folder / "own") == (0, group, 0o2775)
    client.create("own", mode=0o2775, uid=WHO[0], gid=WHO[1]).close()
    assert _owner(export / "own") == (*WHO, 0o2775)


def test_the_callers_set_of_capabilities(launcher: Launcher) -> None:
    """As the kernel is told: effective DAC_OVERRIDE before the call, everything after it."""
    trace = launcher.room / "trace"
    calls = "capset,setfsuid,setfsgid,mkdir,mkdirat"
    running, client = launcher.connected(under=["strace", "-qq", "-o", str(trace), "-e", f"trace={calls}"])
    client.mkdir("made", 0o755, *WHO)
    client.close()
    assert running.ends() == 0
    lines = trace.read_text(encoding="utf-8").splitlines()
    (made,) = [n for n, line in enumerate(lines) if "made" in line]
    sets = [(n, match[1]) for n, line in enumerate(lines) if (match := re.search(r"effective=(\S+?),", line))]
    assert [text for n, text in sets if n < made][-1] == "1<<CAP_DAC_OVERRIDE"
    assert len([text for n, text in sets if n > made][-1].split("|")) == 7
    before = "\n".join(lines[:made])
    assert f"setfsuid({WHO[0]})" in before
    assert f"setfsgid({WHO[1]})" in before
    after = "\n".join(lines[made:])
    assert "setfsuid(0)" in after
    assert "setfsgid(0)" in after


def _fails_where(client: ProxyClient, uid: int, gid: int) -> None:
    """A request of each kind that switches identity, and fails."""
    attempts: list[Callable[[], object]] = [
        lambda: client.create("missing/file", uid=uid, gid=gid),
        lambda: client.create("taken", os.O_CREAT | os.O_EXCL, uid=uid, gid=gid),
        lambda: client.mkdir("taken", 0o755, uid, gid),
        lambda: client.mknod("device", stat.S_IFCHR, os.makedev(1, 3), uid, gid),
        lambda: client.symlink("x" * 5000, "link", uid, gid),
        lambda: client.symlink("x", "missing/link", uid, gid),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"File exists|No such file|too long|not permitted"):
            attempt()


def _identity(running: Running) -> tuple[str, ...]:
    status = running.status()
    return tuple(status[name] for name in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"))


def test_failures_leave_no_identity_behind(launcher: Launcher, export: Path) -> None:
    running, client = launcher.connected(under=LOADED)
    client.mkdir("taken")
    before = _identity(running)
    for who in [WHO, (0, WHO[1]), (WHO[0], 0), (0xFFFFFFFE, 0xFFFFFFFE)]:
        _fails_where(client, *who)
        assert _identity(running) == before
        client.mkdir("own")
        assert _owner(export / "own")[:2] == (0, 0)
        client.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        client.remove("own")
        client.remove("device")


def test_a_thousand_requests_leave_no_identity_behind(launcher: Launcher, export: Path) -> None:
    running, client = launcher.connected(under=LOADED)
    client.lstat(".")
    before = _identity(running)
    for n in range(250):
        who = (1 + n * 7 % 300, 1 + n * 11 % 300)
        client.mkdir(f"d{n}", 0o755, *who)
        client.create(f"d{n}/f", uid=0, gid=who[1]).close()
        client.lstat(f"d{n}/f")
        client.symlink("x", f"d{n}/l", *who[::-1])
        assert _owner(export / f"d{n}")[:2] == who
        assert _owner(export / f"d{n}" / "f")[:2] == (0, who[1])
        assert _owner(export / f"d{n}" / "l")[:2] == who[::-1]
    assert _identity(running) == before


def test_root_in_the_guest_has_roots_group_whatever_started_the_helper(launcher: Launcher, export: Path) -> None:
    """As under systemd's Group=, or sg(1): the group that the helper was started in is nobody's in the guest."""
    running, client = launcher.connected(under=["setpriv", "--regid=4321", "--clear-groups"])
    client.mkdir("first")
    client.mkdir("another", 0o755, *WHO)
    client.mkdir("last")
    assert {_owner(export / name)[:2] for name in ("first", "last")} == {(0, 0)}
    assert running.status()["Gid"].split() == ["0"] * 4


FAILING: dict[str, dict[str, int | bytes]] = {
    "lstat": {"path": b"\0\0"},
    "create": {"path": b"d/f", "flags": 0, "mode": 0, "uid": 2**32 - 1, "gid": 0},
    "lgetxattr": {"size": -1, "path": b"d/f", "name": b"user.a"},
    "truncate": {"path": b"d/f", "size": -1},
    "utime": {"path": b"d/f", "atime_s": 0, "atime_ns": 10**9, "mtime_s": 0, "mtime_ns": 0},
    "mknod": {"uid": 0, "gid": 0, "path": b"d/n", "mode": 0o170000, "rdev": 2**63},
}


def test_once_confined_it_opens_what_it_is_asked_to_and_nothing_else(launcher: Launcher) -> None:
    """No module, locale or source file is looked up by name any more: inside the export that name is the guest's."""
    trace = launcher.room / "trace"
    strace = ["strace", "-qq", "-s", "300", "-o", str(trace), "-e", "trace=%file"]
    running, client = launcher.connected("--log-level", "debug", under=strace)
    client.mkdir("d", 0o755, *WHO)
    client.create("d/f", uid=WHO[0]).close()
    client.lsetxattr("d/f", "user.a", b"b")
    client.getversion("d/f")
    client.statfs("d")
    client.scandir("d")
    for name, fields in FAILING.items():
        with pytest.raises(OSError, match=r".+"):
            client.call(name, **fields)
    client._sock.sendall(b"\xff" * 8)
    assert running.ends() == 1
    lines = trace.read_text(encoding="utf-8").splitlines()
    (confined,) = [n for n, line in enumerate(lines) if line.startswith("chroot(")]
    named = {match[1].removeprefix("./") for line in lines[confined + 1 :] if (match := re.search(r'"([^"]*)"', line))}
    assert {"d", "d/f"} <= named
    assert named - {"d", "d/f", "d/n"} <= {"/", ".", ""}  # the empty one is a descriptor's own (AT_EMPTY_PATH)
