# SPDX-License-Identifier: Apache-2.0
"""What `virtfs client` makes of words, and shows of numbers; tests/system runs it on a helper."""

import errno
import io
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import pytest

from virtfs_proxy import __version__
from virtfs_proxy.cli import virtfs
from virtfs_proxy.cli.client import listing, session
from virtfs_proxy.cli.client import main as client
from virtfs_proxy.proxy.client import ProxyClient, Stat, StatFS

STAT = Stat(65024, 7, 1, stat.S_IFREG | 0o4750, 0, 4_000_000, 0, 1234, 4096, 8, 0, 1_000_000_007, 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain", "plain"),
        (b"two words", "two words"),
        ("ünï".encode(), "ünï"),
        (b"a\nb\t", "a\\nb\\t"),
        (b"\x1b[1m", "\\x1b[1m"),
        (b"\xff", "\\xff"),
        ("a\u202eb".encode(), "a\\u202eb"),  # turns the direction of writing
        ("\x9b".encode(), "\\x9b"),
    ],
)
def test_a_terminal_is_shown_nothing_that_steers_it(name: bytes, text: str) -> None:
    assert listing.escape(name) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (10_000, "9.8K"),
        (10 * 1024, "10K"),
        (1024**2 - 1, "1.0M"),
        (5 * 1024**3, "5.0G"),
        (2**62, "4.0E"),
        (2**64 - 1, "16E"),
        (2**63 * 2**64, "134217728Q"),  # what a STATFS can say
        (-1536, "-1.5K"),
        (-1, "-1"),
    ],
)
def test_human_sizes(size: int, text: str) -> None:
    assert listing.human(size) == text


def test_owners_are_numbers_or_names() -> None:
    name = pwd.getpwuid(0).pw_name
    assert listing.owner("5") == (5, -1)
    assert listing.owner(":6") == (-1, 6)
    assert listing.owner(f"{name}:7") == (0, 7)
    assert listing.owner("4294967294:0") == (2**32 - 2, 0)
    for text in ("nobody-of-that-name", ":no-such-group", "4294967295", "-1", "0x10"):
        with pytest.raises(ValueError, match=r"no (user|group)"):
            listing.owner(text)


MODES = """
0 644 0644 00644 4755 7777 01777 +x a+x u+x go-rwx u=rwx,g=rx,o= a=r = =rw +w -w -x +- u+s g+s +s o+s +t u+t o-t =t a=s
a+X u=rwX go=u u=g o+u-w ug+rw-x u-x+X g=o,o= u+rw,u-w ugo= a-s u= g=
"""


@pytest.mark.parametrize("before", [0o644, 0o755, 0o7777, 0o2710, 0o1402, 0])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_modes_are_what_chmod_makes_of_them(tmp_path: Path, kind: str, before: int) -> None:
    path = tmp_path / "x"
    path.mkdir() if kind == "directory" else path.touch()
    got, wanted = {}, {}
    for text in MODES.split():
        path.chmod(before)
        mode = path.stat().st_mode
        chmod = ["sh", "-c", 'umask 027; chmod -- "$1" "$2"', "sh", text, str(path)]
        subprocess.run(chmod, check=True, timeout=10)
        wanted[text] = oct(stat.S_IMODE(path.stat().st_mode))
        got[text] = oct(listing.new_mode(text, mode, 0o027))
    assert got == wanted


@pytest.mark.parametrize("text", ["", "8", "77777", "u", "u+q", "u+r,", "x+r", "u+rg", "u+ug", "0x1", "-1"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(ValueError, match="invalid mode"):
        listing.new_mode(text, 0, 0)


def test_rows_of_ls() -> None:
    assert listing.row(STAT, numeric=True)[:5] == ["-rwsr-x---", "1", "0", "4000000", "1234"]
    assert listing.row(STAT)[2:4] == [pwd.getpwuid(0).pw_name, "4000000"]
    device = STAT._replace(st_mode=stat.S_IFCHR | 0o600, st_rdev=os.makedev(4, 64))
    assert listing.row(device)[4] == "4, 64"
    assert listing.align([["a", "1"], ["long", "22"]], left="0") == ["a     1", "long 22"]


def test_times_have_their_nanoseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert listing.moment(1_000_000_007, full=True) == "1970-01-01 00:00:01.000000007 +0000"
    assert listing.moment(-1, full=True) == "1969-12-31 23:59:59.999999999 +0000"
    assert listing.moment(2**62 * 1_000_000_000) == f"{2**62}.000000000"
    assert "Modify: 1970-01-01 00:00:01.000000007 +0000" in listing.sheet("x", STAT)


def test_df_counts_as_df_does() -> None:
    fs = StatFS(0, 4096, 1000, 300, 200, 0, 0, 0, 0, 255, 4096)
    assert listing.space(fs, str) == ["4096000", "2867200", "819200", "78%"]
    assert listing.space(StatFS(*[0] * 11), str) == ["0", "0", "0", "-"]


HUGE, LOW = 2**64 - 1, -(2**63)


@pytest.mark.parametrize(
    ("fs", "columns"),
    [
        (StatFS(0, HUGE >> 1, HUGE, 0, HUGE, 0, 0, 0, 0, 0, HUGE >> 1), [*["134217728Q"] * 3, "50%"]),
        (StatFS(0, 1024, 0, HUGE, HUGE, 0, 0, 0, 0, 0, 0), ["0", "-16Z", "16Z", "-"]),
        (StatFS(0, 1024, 1, 2, 0, 0, 0, 0, 0, 0, 0), ["1.0K", "-1.0K", "0", "-"]),
        (StatFS(LOW, LOW, 10, 5, 5, HUGE, HUGE, LOW, LOW, LOW, LOW), ["0", "0", "0", "50%"]),
        (StatFS(0, 1024, 10, 5, 5, 0, 0, 0, 0, 0, -1), ["10K", "5.0K", "5.0K", "50%"]),
    ],
    ids=["all huge", "all free", "more free than there is", "negative sizes", "one negative size"],
)
def test_df_shows_whatever_a_helper_says(fs: StatFS, columns: list[str]) -> None:
    assert listing.space(fs, listing.human) == columns


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFREG, 0xFFFF_0000])
@pytest.mark.parametrize("number", [0, HUGE])
def test_ls_and_stat_show_whatever_a_helper_says(kind: int, number: int) -> None:
    uid = number & 0xFFFFFFFF
    for ns in (LOW * 1_000_000_000, HUGE * 1_000_000_001):
        st = Stat._make([number] * 3 + [kind | 0o7777, uid, uid] + [number] * 4 + [ns] * 3)
        assert f"Inode: {number} " in listing.sheet("x", st)
        assert listing.row(st, numeric=True)[1:4] == [str(number), str(uid), str(uid)]
        assert listing.row(st)[1] == str(number)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "./x"), "./x: No such file or directory"),
        (OSError(39, "Directory not empty", b"a\n", None, b"b"), "a\\n -> b: Directory not empty"),
        (ConnectionError("no connection"), "no connection"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_an_error_is_one_line(error: OSError, text: str) -> None:
    assert session.told(error) == text


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-x"],
        ["none", "frob"],
        ["none", "cat"],
        ["none", "ls", "--frob"],
        ["none", "chmod", "u+q", "x"],
        ["none", "chown", "nobody-of-that-name", "x"],
        ["none", "mkdir", "-m", "9", "x"],
        ["none", "xattr", "get", "x"],
        ["none", "rm", "-r", ""],
        ["none", "put", "x", ""],
        ["none", "ls", ".."],
        ["none", "put", "x", "d/../y"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_2_and_connects_nowhere(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        client.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: virtfs client SOCKET")


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["ls", "-l"], "SOCKET, the path of a helper's socket, comes first"),
        (["none", "cat", "a/.."], "argument PATH: '..' is not allowed: paths are inside the export"),
    ],
)
def test_a_usage_error_says_what_is_wrong(argv: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        client.main(argv)
    assert capsys.readouterr().err.endswith(f": error: {wrong}\n")


def test_usage_and_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, usage in (
        (["--help"], "usage: virtfs client SOCKET [COMMAND ...]\n"),
        (["none", "xattr", "rm", "--help"], "usage: virtfs client SOCKET xattr rm [-h] PATH NAME\n"),
    ):
        with pytest.raises(SystemExit):
            client.main(argv)
        assert capsys.readouterr().out.startswith(usage)


NOBODY_WAITS = "no helper waits there; start one with virtfs-proxy-helper -s (it ends with its first connection)"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", f"No such file or directory: {NOBODY_WAITS}"),
        ("file", "Connection refused: no helper listens there"),
        ("datagrams", "Protocol wrong type for socket: no helper listens there"),
        ("ls", f"No such file or directory: {NOBODY_WAITS}"),  # with a slash before it, it is no forgotten socket
        ("s" * 250, "socket path is {} bytes long, the kernel takes 107: use a shorter or relative one"),
    ],
    ids=lambda value: value[:12],
)
def test_no_helper_is_one_line_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "datagrams"))
        assert client.main([str(tmp_path / name), "ls"]) == 1
    path = str(tmp_path / name)
    assert capsys.readouterr().err == f"virtfs client: {path}: {text.format(len(path))}\n"


@pytest.mark.parametrize(
    ("words", "closed", "complaint"),
    [
        ("ls", ">&-", "virtfs client: standard output is closed\n"),
        ("", "<&-", "virtfs client: standard input is closed\n"),
        ("put - f", "<&-", "virtfs client: standard input is closed\n"),
        ("ls", "2>&-", ""),
    ],
)
def test_a_closed_stream_is_one_line(tmp_path: Path, words: str, closed: str, complaint: str) -> None:
    script = f'exec "$0" -m virtfs_proxy.cli.virtfs client none {words} {closed}'
    shell = ["sh", "-c", script, sys.executable]
    run = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", complaint)


def test_help_of_a_command_needs_no_helper(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        client.main(["none", "df", "--help"])
    assert ended.value.code == 0
    assert "-h, --human" in capsys.readouterr().out


def signalled(times: int, done: list[str]) -> None:
    with session.Signals.hold():
        for _ in range(times):
            session.Signals.arrived(signal.SIGTERM, None)
        done.append("done")


def test_a_signal_waits_while_it_is_held() -> None:
    done: list[str] = []
    with pytest.raises(session.Interrupted) as raised:
        signalled(1, done)
    assert (raised.value.signum, done) == (signal.SIGTERM, ["done"])
    signalled(0, done)  # it is not raised twice


def test_the_second_signal_does_not_wait() -> None:
    done: list[str] = []
    with pytest.raises(session.Interrupted):
        signalled(2, done)
    assert not done
    signalled(0, done)


@pytest.mark.parametrize(
    ("function", "times", "left"),
    [
        ((tempfile, "mkstemp"), 1, {"f": b"old"}),
        ((os, "fchmod"), 1, {"f": b"old"}),
        ((os, "replace"), 1, {"f": b"new"}),
        ((os, "replace"), 2, {"f": b"new"}),  # the second isn't held
        ((os, "unlink"), 1, {"f": b"old"}),
    ],
    ids=["made", "copied", "renamed", "renamed, twice", "removed"],
)
def test_get_interrupted_anywhere_leaves_one_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: tuple[Any, str], times: int, left: dict[str, bytes]
) -> None:
    """The signal comes just after what the function does."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_bytes(b"new")

    class Export:
        def open(self, path: bytes, flags: int) -> io.FileIO:
            return io.FileIO(tmp_path / "source" / os.fsdecode(path), opener=lambda name, _: os.open(name, flags))

    module, name = function
    original = getattr(module, name)

    def then_signals(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        for _ in range(times):
            session.Signals.arrived(signal.SIGTERM, None)
        return result

    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "unlink":  # it has a reason to tidy up
        monkeypatch.setattr(os, "fchmod", disk_full)
    monkeypatch.setattr(module, name, then_signals)
    with pytest.raises(session.Interrupted) as raised:
        client.get_file(cast("ProxyClient", Export()), b"f", os.fsencode(tmp_path / "f"))
    assert raised.value.signum == signal.SIGTERM
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == left


@pytest.mark.parametrize(
    ("argv", "status"), [(["--help"], 0), (["help"], 0), (["--version"], 0), ([], 2), (["frob"], 2)]
)
def test_virtfs(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert virtfs.main(argv) == status
    out, err = capsys.readouterr()
    assert (err if status else out).startswith("usage: virtfs" if argv != ["--version"] else f"virtfs {__version__}")
    assert not (out if status else err)


LOADED = """
import sys
from virtfs_proxy.cli import virtfs
try:
    virtfs.main(sys.argv[1:])
except SystemExit:
    pass
watched = ("tqdm", "virtfs_proxy.proxy.client", "virtfs_proxy.cli.run")
print(*(module for module in watched if module in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("argv", "loaded"),
    [
        (["--help"], ""),
        (["run", "--help"], "virtfs_proxy.cli.run"),
        (["client", "none", "ls", "--help"], "virtfs_proxy.proxy.client"),
    ],
    ids=["help", "run", "client"],
)
def test_a_subcommand_loads_what_it_needs(argv: list[str], loaded: str) -> None:
    run = subprocess.run([sys.executable, "-c", LOADED, *argv], capture_output=True, text=True, timeout=30, check=True)
    assert run.stderr.splitlines()[-1] == loaded
