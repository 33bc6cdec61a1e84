# SPDX-License-Identifier: Apache-2.0
"""The command as scripts use it: options, exit statuses, the socket, the daemon; one request, to see that it serves."""

import contextlib
import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.peer import WAIT_S, frame, is_original

pytestmark = pytest.mark.root

LSTAT_ROOT = frame("lstat", b"\1\0.")
NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwnam("daemon")


def run(command: list[str], *arguments: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    """To the end, which comes soon. A daemon may keep the files that it writes to."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        line = [*command, *arguments]
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=WAIT_S, check=False, **popen
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(line, done.returncode, out.read(), err.read())


def wait_for(condition: Callable[[], object]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def serves(path: Path) -> bool:
    """Connect, ask once, hang up."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(os.fspath(path))
        client.sendall(LSTAT_ROOT)
        return len(client.recv(200)) == 124


def told_of(path: Path) -> list[int]:
    """Processes that have this path on their command lines."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and os.fsencode(path) in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[Path]:
    """Where a test has its socket; at the end no process is left that was told of it."""
    path = tmp_path / "sock"
    yield path
    for pid in told_of(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def foreground(command: list[str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*command, "-n", *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.fixed("to stderr, with status 1")
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(helper_command: list[str], option: str) -> None:
    told = run(helper_command, option)
    assert (told.returncode, told.stderr) == (0, "")
    for word in ("--path", "--fd", "--socket", "--uid", "--gid", "--nodaemon"):
        assert word in told.stdout


USAGE = {
    "nothing": [],
    "no path": ["-f", "0"],
    "no socket": ["-p", "."],
    "both sockets": ["-p", ".", "-f", "0", "-s", "%s", "-u", "0", "-g", "0"],
    "no owner": ["-p", ".", "-s", "%s"],
    "no group": ["-p", ".", "-s", "%s", "-u", "0"],
    "owner of a descriptor": ["-p", ".", "-f", "0", "-u", "0", "-g", "0"],
    "no such option": ["-p", ".", "-f", "0", "--frobnicate"],
    "no number": ["-p", ".", "-f", "x"],
    "no descriptor": ["-p", ".", "-f", "-1"],
    "no user": ["-p", ".", "-s", "%s", "-u", "nosuchuser", "-g", "0"],
    "id out of range": ["-p", ".", "-s", "%s", "-u", "4294967296", "-g", "0"],
}


@pytest.mark.fixed("status 1 or 255, or taken: atoi makes 0 of a word")
@pytest.mark.parametrize("case", USAGE)
def test_usage_error(helper_command: list[str], sock: Path, case: str) -> None:
    told = run(helper_command, *(os.fspath(sock) if part == "%s" else part for part in USAGE[case]))
    assert told.returncode == 2
    assert "usage" in told.stderr
    assert not sock.exists()


@pytest.mark.parametrize("path", ["missing", "file"])
def test_what_is_no_directory_is_refused(helper_command: list[str], tmp_path: Path, sock: Path, path: str) -> None:
    (tmp_path / "file").touch()
    told = run(helper_command, "-n", "-p", os.fspath(tmp_path / path), "-s", os.fspath(sock), "-u", "0", "-g", "0")
    assert told.returncode == 1
    assert path in told.stderr
    assert not sock.exists()


@pytest.mark.fixed("status 0")
def test_a_closed_descriptor_is_refused(helper_command: list[str]) -> None:
    told = run(helper_command, "-n", "-p", ".", "-f", "77")
    assert told.returncode == 1
    assert "77" in told.stderr


@pytest.mark.fixed("read from it all the same, status 0")
def test_a_descriptor_that_is_no_socket_is_refused(helper_command: list[str]) -> None:
    told = run(helper_command, "-n", "-p", ".", "-f", "0")
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1


@pytest.mark.fixed("refused with status 0", strict=True)
def test_a_path_that_exists_is_refused_and_left(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    sock.write_text("precious")
    told = run(helper_command, "-n", "-p", os.fspath(tmp_path), "-s", os.fspath(sock), "-u", "0", "-g", "0")
    assert sock.read_text() == "precious"
    assert told.returncode == 1
    assert os.fspath(sock) in told.stderr


@pytest.mark.fixed("refused with status 0")
def test_a_long_path_is_refused(helper_command: list[str], tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    told = run(helper_command, "-n", "-p", ".", "-s", os.fspath(directory / "s"), "-u", "0", "-g", "0")
    assert os.listdir(directory) == []
    assert told.returncode == 1
    assert "107" in told.stderr


@pytest.mark.parametrize("long", [False, True])
def test_the_socket_is_its_owners_and_serves_one_client(
    helper_command: list[str], tmp_path: Path, sock: Path, long: bool
) -> None:
    options = ["--path", "--socket", "--uid", "--gid"] if long else ["-p", "-s", "-u", "-g"]
    values = [os.fspath(tmp_path), os.fspath(sock), str(NOBODY.pw_uid), str(NOBODY.pw_gid)]
    with foreground(helper_command, *(word for pair in zip(options, values, strict=True) for word in pair)) as process:
        assert wait_for(lambda: sock.exists() and sock.stat().st_uid == NOBODY.pw_uid)
        made = sock.stat()
        assert (made.st_uid, made.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
        assert stat.S_ISSOCK(made.st_mode)
        assert made.st_mode & 0o007 == 0
        assert serves(sock)
        assert process.wait(WAIT_S) == 0


@pytest.mark.fixed("atoi makes uid 0 of any name")
def test_owner_by_name(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    owner = ["-u", "daemon", "-g", "daemon"]
    with foreground(helper_command, "-p", os.fspath(tmp_path), "-s", os.fspath(sock), *owner):
        assert wait_for(sock.exists)
        time.sleep(0.2)
        assert (sock.stat().st_uid, sock.stat().st_gid) == (DAEMON.pw_uid, DAEMON.pw_gid)


@pytest.mark.fixed("it stays behind")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_socket_goes_with_it(helper_command: list[str], tmp_path: Path, sock: Path, number: signal.Signals) -> None:
    owner = ["-u", "0", "-g", "0"]
    with foreground(helper_command, "-p", os.fspath(tmp_path), "-s", os.fspath(sock), *owner) as process:
        assert wait_for(sock.exists)
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
        assert not sock.exists()


def test_a_socket_that_is_somebody_elses_by_now_stays(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    owner = ["-u", "0", "-g", "0"]
    with foreground(helper_command, "-p", os.fspath(tmp_path), "-s", os.fspath(sock), *owner) as process:
        assert wait_for(sock.exists)
        sock.unlink()
        sock.write_text("precious")
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        assert sock.read_text() == "precious"


@pytest.mark.fixed("its parent exits before the socket is there", strict=False)
def test_the_daemon_listens_when_its_parent_exits(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    for _ in range(5):
        told = run(helper_command, "-p", os.fspath(tmp_path), "-s", os.fspath(sock), "-u", "0", "-g", "0")
        assert (told.returncode, told.stdout) == (0, "")
        assert serves(sock)
        sock.unlink(missing_ok=True)


@pytest.mark.fixed("its parent has exited with status 0 by then")
def test_a_failure_of_the_daemon_is_its_parents(helper_command: list[str], tmp_path: Path) -> None:
    nowhere = os.fspath(tmp_path / "missing" / "sock")
    told = run(helper_command, "-p", os.fspath(tmp_path), "-s", nowhere, "-u", "0", "-g", "0")
    assert told.returncode == 1
    assert nowhere in told.stderr


@pytest.mark.fixed("the daemon fails to chroot, its parent has exited with status 0 by then")
def test_not_root_is_told_at_once(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o011)
    arguments = ["-p", os.fspath(tmp_path), "-s", os.fspath(sock), "-u", "1", "-g", "1"]
    told = run(helper_command, *arguments, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[])
    assert told.returncode == 1
    assert "root" in told.stderr
    assert not sock.exists()


def test_the_daemon_serves_and_ends_with_its_client(helper_command: list[str], tmp_path: Path, sock: Path) -> None:
    run(helper_command, "-p", os.fspath(tmp_path), "-s", os.fspath(sock), "-u", "0", "-g", "0")
    assert wait_for(sock.exists)
    time.sleep(0 if not is_original(helper_command) else 0.2)  # it binds before it listens
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(os.fspath(sock))
        client.sendall(LSTAT_ROOT)
        assert len(client.recv(200)) == 124
        (pid,) = told_of(sock)
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/root") == os.fspath(tmp_path)
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists())
