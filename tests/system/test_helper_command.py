# SPDX-License-Identifier: Apache-2.0
"""The command line of the helper: every option, every refusal, and how it ends."""

import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.peer import body_of, frame
from tests.system.conftest import NAME, Launcher, until

from virtfs_proxy import __version__
from virtfs_proxy.proxy.client import ProxyClient

root = pytest.mark.root

OPTIONS = "-h --help -p --path -f --fd -s --socket -u --uid -g --gid -n --nodaemon -v --version --log-level --poll-us"
NEEDED = {
    "chown": "give files to the guest's users",
    "dac_override": "reach files of every owner",
    "fowner": "change modes and times",
    "fsetid": "keep set-user-ID and set-group-ID bits",
    "setgid": "groups",
    "setuid": "create files as the guest's users",
    "setpcap": "reduce the bounding set",
    "sys_chroot": "make the export its root",
    "mknod": "make device nodes",
}


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A run-time failure: one line, on stderr, which names the thing."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{NAME}: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def status_frames(count: int) -> bytes:
    return frame("lstat", body_of("lstat", path=b".")) * count


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_stdout(launcher: Launcher, option: str) -> None:
    done = launcher.run(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(OPTIONS.split()) <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_version(launcher: Launcher, option: str) -> None:
    done = launcher.run(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{NAME} (virtfs-proxy) {__version__}\n"


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ("", "-p"),
        ("-f 3", "-p"),
        ("-p", "-p"),
        ("-p EXPORT", "-s"),
        ("-p EXPORT -u 1 -g 1", "-s"),
        ("-p EXPORT -s SOCKET", "-u"),
        ("-p EXPORT -s SOCKET -u 1", "-g"),
        ("-p EXPORT -s SOCKET -g 1", "-u"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 -f 3", "-f"),
        ("-p EXPORT -s SOCKET -f 3", "-f"),
        ("-p EXPORT -f 3 -u 1", "-u"),
        ("-p EXPORT -f 3 -g 1", "-g"),
        ("-p EXPORT -f 3 -u 0 -g 0", "-u"),
        ("-p EXPORT -f x", "x"),
        ("-p EXPORT -f 3x", "3x"),
        ("-p EXPORT -f=-1", "-1"),
        ("-p EXPORT -f=", "--fd"),
        ("-p EXPORT -f 2147483648", "2147483648"),
        ("-p EXPORT -s SOCKET -u no-such-user -g 1", "no-such-user"),
        ("-p EXPORT -s SOCKET -u 1 -g no-such-group", "no-such-group"),
        ("-p EXPORT -s SOCKET -u=-1 -g 1", "-1"),
        ("-p EXPORT -s SOCKET -u 4294967295 -g 1", "4294967295"),
        ("-p EXPORT -s SOCKET -u 1 -g 4294967295", "4294967295"),
        ("-p EXPORT -s SOCKET -u= -g 1", "--uid"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 --poll-us 1001", "1001"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 --poll-us=-1", "-1"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 --log-level loud", "loud"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 --frobnicate", "--frobnicate"),
        ("-p EXPORT -s SOCKET -u 1 -g 1 -x", "-x"),
    ],
)
def test_usage_errors(launcher: Launcher, options: str, about: str) -> None:
    places = {"EXPORT": str(launcher.export), "SOCKET": str(launcher.socket)}
    done = launcher.run(*(places.get(word, word) for word in options.split()))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert about in done.stderr.splitlines()[-1]
    assert not launcher.socket.exists()


@root
@pytest.mark.parametrize(
    "names",
    [["-p", "-s", "-u", "-g", "-n"], ["--path", "--socket", "--uid", "--gid", "--nodaemon"]],
    ids=["short", "long"],
)
def test_options_for_a_named_socket(launcher: Launcher, names: list[str]) -> None:
    path, sock, uid, gid, nodaemon = names
    rest = [path, str(launcher.export), sock, str(launcher.socket), uid, "1234", gid, "1235", nodaemon]
    launcher.command = [*launcher.command, *rest, "--log-level", "debug", "--poll-us", "0"]
    running = launcher.listening()
    there = launcher.socket.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (0, 0, 0o770)  # the last -u and -g count
    launcher.connect().close()
    assert running.ends() == 0


@root
@pytest.mark.parametrize("option", ["-f", "--fd"])
def test_options_for_an_inherited_socket(launcher: Launcher, option: str) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground(option, str(theirs.fileno()), pass_fds=(theirs.fileno(),))
    ProxyClient(ours).lstat(".")
    ours.close()
    theirs.close()
    assert running.ends() == 0


@root
def test_owners_by_name_and_by_number(launcher: Launcher) -> None:
    nobody = pwd.getpwnam("nobody")
    group = grp.getgrgid(nobody.pw_gid).gr_name
    for owner in [("nobody", group), (str(nobody.pw_uid), str(nobody.pw_gid))]:
        running = launcher.foreground("-s", str(launcher.socket), "-u", owner[0], "-g", owner[1])
        until(lambda running=running: " started for " in "".join(running.said()), "the start")  # type: ignore[misc]
        there = launcher.socket.stat()
        assert (there.st_uid, there.st_gid) == (nobody.pw_uid, nobody.pw_gid)
        running.signal(signal.SIGTERM)
        assert running.ends() == 0


FOREGROUND_OR_NOT = pytest.mark.parametrize("mode", [["-n"], []], ids=["foreground", "daemon"])


@root
@FOREGROUND_OR_NOT
def test_the_path_must_be_a_directory(launcher: Launcher, mode: list[str]) -> None:
    file = launcher.room / "file"
    file.touch()
    (launcher.room / "dangling").symlink_to("nowhere")
    for path, reason in [
        (launcher.room / "missing", "No such file or directory"),
        (launcher.room / "dangling", "No such file or directory"),
        (file, "not a directory"),
        (Path("/dev/null"), "not a directory"),
        (launcher.room / ("x" * 256), "File name too long"),
    ]:
        refused(launcher.run("-p", str(path), *launcher.on_socket(), *mode), str(path), reason, "name the directory")
        assert not launcher.socket.exists()


def _directory(path: Path) -> None:
    path.mkdir()


def _file(path: Path) -> None:
    path.write_text("precious", encoding="utf-8")


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


@root
@FOREGROUND_OR_NOT
@pytest.mark.parametrize("make", [_directory, _file, _link, _socket])
def test_what_stands_at_the_sockets_path_stays(
    launcher: Launcher, make: Callable[[Path], None], mode: list[str]
) -> None:
    make(launcher.socket)
    before = launcher.socket.lstat()
    refused(
        launcher.run("-p", str(launcher.export), *launcher.on_socket(1, 1), *mode),
        str(launcher.socket),
        "exists",
        "remove",
    )
    after = launcher.socket.lstat()
    assert after[:9] == before[:9]  # inode, owner and mode too; not the time of access
    if stat.S_ISREG(after.st_mode):
        assert launcher.socket.read_text(encoding="utf-8") == "precious"


@root
@FOREGROUND_OR_NOT
def test_the_socket_needs_a_directory(launcher: Launcher, mode: list[str]) -> None:
    (launcher.room / "file").touch()
    for where in ["missing", "file"]:
        launcher.socket = launcher.room / where / "socket"
        refused(
            launcher.run("-p", str(launcher.export), *launcher.on_socket(), *mode), str(launcher.socket), "irectory"
        )


@root
def test_the_longest_path_of_a_socket(launcher: Launcher) -> None:
    room = str(launcher.room)
    launcher.socket = Path(room, "s" * (107 - len(room) - 1))
    running = launcher.listening()
    launcher.connect().close()
    assert running.ends() == 0

    launcher.socket = Path(room, "s" * (108 - len(room) - 1))
    refused(launcher.run("-n", "-p", str(launcher.export), *launcher.on_socket()), str(launcher.socket), "108", "107")
    assert set(os.listdir(room)) == {"export", "log0"}


@root
def test_descriptors_that_are_no_connection(launcher: Launcher) -> None:
    number = 999
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    packet, another = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    alone, inet = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
    far = socket.create_connection(inet.getsockname())
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(launcher.socket))
    listening.listen()
    launcher.sockets += [datagram, other, packet, another, alone, inet, far, listening]
    with (launcher.room / "file").open("wb") as file:
        for fd, reason in [
            (number, "not open"),
            (file.fileno(), "not a socket"),
            (datagram.fileno(), "not an AF_UNIX stream socket"),
            (packet.fileno(), "not an AF_UNIX stream socket"),
            (far.fileno(), "not an AF_UNIX stream socket"),
            (alone.fileno(), "not connected"),
            (listening.fileno(), "not connected"),
        ]:
            passed = () if fd == number else (fd,)
            done = launcher.run("-n", "-p", str(launcher.export), "-f", str(fd), pass_fds=passed)
            refused(done, f"descriptor {fd} ", reason, "pass ")


@root
def test_stdin_may_be_the_connection(launcher: Launcher) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground("-f", "0", stdin=theirs)
    theirs.close()
    assert ProxyClient(ours).lstat(".").st_ino == launcher.export.stat().st_ino
    ours.close()
    assert running.ends() == 0
    refused(launcher.run("-n", "-p", str(launcher.export), "-f", "0"), "descriptor 0 is not a socket")


@root
def test_the_log_never_goes_into_the_connection(launcher: Launcher) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground("-f", "2", stderr=theirs)
    theirs.close()
    ours.sendall(status_frames(1))
    assert ours.recv(8) == struct.pack("=II", 0, 116)
    assert len(ours.recv(200)) == 116
    ours.close()
    assert running.ends() == 0


@root
def test_it_says_when_it_is_not_root(launcher: Launcher) -> None:
    nobody = ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # wherever the tests are installed
    # Before anything else: the path, which is missing, is not looked at.
    done = launcher.run("-p", "/missing", *launcher.on_socket(), under=[*nobody, *reading])
    refused(done, "must be started as root", "files of every owner")


@root
@pytest.mark.parametrize("name", NEEDED)
def test_it_says_which_capability_is_missing(launcher: Launcher, name: str) -> None:
    done = launcher.run("-p", "/missing", *launcher.on_socket(), under=["setpriv", f"--bounding-set=-{name}"])
    refused(done, f"CAP_{name.upper()} (", NEEDED[name])
    assert done.stderr.count("CAP_") == 1


@root
def test_it_says_all_that_are_missing(launcher: Launcher) -> None:
    done = launcher.run("-p", "/missing", *launcher.on_socket(), under=["setpriv", "--bounding-set=-all,+net_raw"])
    refused(done, *(f"CAP_{name.upper()} (" for name in NEEDED))


@root
@FOREGROUND_OR_NOT
@pytest.mark.parametrize(("call", "stage"), [("chroot", "root"), ("setgroups", "groups"), ("prctl", "capabilities")])
def test_confinement_that_fails(launcher: Launcher, mode: list[str], call: str, stage: str) -> None:
    """Nothing is served then, and no socket stays. What the kernel would refuse is refused by strace."""
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:error=EPERM"]
    done = launcher.run("-p", str(launcher.export), *launcher.on_socket(), *mode, under=trace)
    refused(done, "cannot confine itself", f"stage {stage}", "Operation not permitted")
    assert not launcher.socket.exists()


@root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", ["fchmod", "listen", "chroot"])
def test_a_signal_during_the_start_leaves_no_socket(launcher: Launcher, call: str, number: signal.Signals) -> None:
    """Whoever starts it and thinks better of it at once must not find the path taken at the next start."""
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal={number.value}"]
    done = launcher.run("-n", "-p", str(launcher.export), *launcher.on_socket(), under=trace)
    assert not launcher.socket.exists()
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, -number.value}  # the latter as long as there is nothing to clean up


@root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_before_a_client_came(launcher: Launcher, number: signal.Signals) -> None:
    running = launcher.listening(uid=1000, gid=1000)
    running.signal(number)
    assert running.ends() == 0
    assert not launcher.socket.exists()
    assert running.said()[-1] == f"{NAME}: stopped by {number.name}; served 0 requests (0 errors)"


@root
@FOREGROUND_OR_NOT
@pytest.mark.parametrize("name", [b"not utf-8 \xff", b"line\nfeed", b"esc \x1b[2J"])
def test_an_export_with_an_odd_name(launcher: Launcher, name: bytes, mode: list[str]) -> None:
    """What the log says of it needs no module that is not loaded: none could be, after the change of root."""
    launcher.export = Path(os.fsdecode(os.fsencode(launcher.room) + b"/" + name))
    launcher.export.mkdir()
    (launcher.export / "file").touch()
    running = launcher.listening() if mode else launcher.daemon(*launcher.on_socket())
    client = launcher.connect()
    assert client.lstat("file")
    client.close()
    if mode:
        assert running.ends() == 0
    until(lambda: not launcher.socket.exists(), "an end")
    assert "Traceback" not in "".join(running.said())


@root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_between_two_requests(launcher: Launcher, number: signal.Signals) -> None:
    running = launcher.listening()
    client = launcher.connect()
    client.lstat(".")
    client.lstat(".")
    with pytest.raises(FileNotFoundError):
        client.remove("missing")
    running.signal(number)
    assert running.ends() == 0
    assert client._sock.recv(1) == b""
    (line,) = [line for line in running.said() if "stopped by" in line]
    assert line == f"{NAME}: stopped by {number.name}; served 3 requests (1 errors): LSTAT 2, REMOVE 1"


@root
@pytest.mark.parametrize("request_", ["lstat", "open"], ids=["bytes", "descriptors"])
def test_sigterm_ends_it_while_its_replies_are_not_read(launcher: Launcher, request_: str) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground("-f", str(theirs.fileno()), pass_fds=(theirs.fileno(),))
    theirs.close()
    row = {"path": b"."} | ({"flags": os.O_DIRECTORY} if request_ == "open" else {})
    ours.settimeout(2)  # for as long as there is room, and then not for ever
    with pytest.raises(TimeoutError):
        ours.sendall(frame(request_, body_of(request_, **row)) * 100_000)
    running.signal(signal.SIGTERM)
    assert running.ends() == 0
    assert "stopped by SIGTERM" in running.said()[-1]


@root
def test_the_end_of_the_client_is_its_end(launcher: Launcher) -> None:
    running = launcher.listening()
    client = launcher.connect()
    client.mkdir("made")
    client.close()
    assert running.ends() == 0
    assert running.said()[-1] == f"{NAME}: client closed the connection; served 1 requests (0 errors): MKDIR 1"
    assert not launcher.socket.exists()


@root
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(99), "unknown request type 99"),
        (frame(0), "unknown request type 0"),
        (struct.pack("=II", 8, 65537), "65545 bytes long"),
        (struct.pack("=II", 8, 0xFFFFFFFF), "bytes long"),
        (status_frames(1)[:-1], "within a request, after 10 bytes"),
        (b"\x08", "within a request, after 1 bytes"),
    ],
)
def test_streams_without_an_answer(launcher: Launcher, sent: bytes, reason: str) -> None:
    ours, theirs = launcher.pair()
    running = launcher.foreground("-f", str(theirs.fileno()), pass_fds=(theirs.fileno(),))
    theirs.close()
    ours.sendall(status_frames(1) + sent)
    assert len(ours.recv(124, socket.MSG_WAITALL)) == 124
    ours.shutdown(socket.SHUT_WR)
    assert running.ends() == 1
    with contextlib.suppress(ConnectionResetError):
        assert ours.recv(1) == b""
    text = "\n".join(running.said())
    assert reason in text
    assert ": LSTAT 1" in text
    assert "Traceback" not in text


@root
@pytest.mark.parametrize(
    ("level", "lines"),
    [("error", 0), ("warning", 1), ("info", 4), ("debug", 5)],
)
def test_levels_of_the_log(launcher: Launcher, level: str, lines: int) -> None:
    running, client = launcher.connected("--log-level", level)
    with pytest.raises(OSError, match="Invalid argument"):
        client.call("lstat", path=b"a\0b")
    with pytest.raises(FileNotFoundError):
        client.lstat("missing")
    client.close()
    assert running.ends() == 0
    said = running.said()
    assert len([line for line in said if ": confined: " not in line]) == lines, said
    assert all(line.startswith(f"{NAME}: ") for line in said)
    assert ["lstat" in line for line in said].count(True) == {"error": 0, "debug": 2}.get(level, 1)


@root
def test_names_from_the_guest_forge_no_line_of_the_log(launcher: Launcher) -> None:
    running, client = launcher.connected("--log-level", "debug")
    name = b"\n<11>root: forged\r\x1b[2J\x85\xe2\x80\xa8"
    for path in (name, name + b"\0x"):
        with pytest.raises(OSError, match=r"Invalid argument|No such file"):
            client.call("lstat", path=path)
    client.close()
    assert running.ends() == 0
    raw = running.log.read_bytes()
    assert b"forged" in raw
    assert all(line.startswith(NAME.encode() + b": ") for line in raw.splitlines())
    assert set(raw) <= {10, *range(32, 127)}
