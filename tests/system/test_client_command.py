# SPDX-License-Identifier: Apache-2.0
"""The command `virtfs client` on a running helper, as a person and as a script use it."""

import contextlib
import os
import pty
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

VIRTFS = Path(sys.executable).with_name("virtfs")
WAIT_S = 20


class Share:
    """A directory, and a helper for each command on it: a helper ends with its connection."""

    def __init__(self, helper: list[str], path: Path) -> None:
        self.helper = helper
        self.export = path / "export"
        self.local = path / "local"
        self.socket = path / "socket"
        self.export.mkdir()
        self.local.mkdir()

    @contextlib.contextmanager
    def served(self) -> Iterator[list[str]]:
        """The command `virtfs client SOCKET`, with a helper behind the socket."""
        self.socket.unlink(missing_ok=True)
        command = [*self.helper, "-n", "-p", str(self.export), "-s", str(self.socket), "-u", "0", "-g", "0"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as helper:
            try:
                deadline = time.monotonic() + WAIT_S
                while not self.socket.exists():
                    assert helper.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                yield [str(VIRTFS), "client", str(self.socket)]
                assert helper.wait(WAIT_S) == 0
            finally:
                helper.kill()

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run one command, in the local directory."""
        settings: dict[str, Any] = {
            "input": b"",
            "capture_output": True,
            "cwd": self.local,
            "timeout": WAIT_S,
        }
        with self.served() as command:
            run: subprocess.CompletedProcess[bytes]
            run = subprocess.run([*command, *words], **(settings | options), check=False)
            return run

    def ok(self, *words: str, **options: Any) -> bytes:
        """Run one command, which must succeed and complain of nothing; its output."""
        run = self.run(*words, **options)
        assert (run.returncode, run.stderr) == (0, b"")
        return run.stdout

    def fails(self, *words: str, **options: Any) -> str:
        """Run one command, which must fail; what it complains of."""
        run = self.run(*words, **options)
        assert run.returncode == 1
        complaint = run.stderr.decode()
        assert complaint.startswith("virtfs client: ")
        assert "Traceback" not in complaint
        return complaint.removeprefix("virtfs client: ").rstrip("\n")


@pytest.fixture
def share(helper_command: list[str], tmp_path: Path) -> Share:
    return Share(helper_command, tmp_path)


@contextlib.contextmanager
def terminal(keys: bytes = b"") -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A terminal at which keys were pressed, and a function that gives what was written to it so far."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    os.write(ours, keys)

    def written() -> bytes:
        text = b""
        while select.select([ours], [], [], 0.2)[0]:
            text += os.read(ours, 65_536)
        return text

    try:
        yield theirs, written
    finally:
        os.close(theirs)
        os.close(ours)


# Looking


def test_ls(share: Share) -> None:
    for name in ("b", "a", ".hidden"):
        (share.export / name).write_bytes(b"12345")
    (share.export / "link").symlink_to("a")
    os.chown(share.export / "b", 1234, 4321)
    assert share.ok("ls") == b"a\nb\nlink\n"
    assert share.ok("ls", "-a", "/") == b".hidden\na\nb\nlink\n"
    lines = share.ok("ls", "-n").decode().splitlines()
    assert lines[1].split()[:5] == ["-rw-r--r--", "1", "1234", "4321", "5"]
    assert lines[2].endswith(" link -> a")
    assert share.ok("ls", "-l", "a").endswith(b" a\n")


def test_ls_goes_on_after_what_is_missing(share: Share) -> None:
    (share.export / "d").mkdir()
    (share.export / "d/f").touch()
    run = share.run("ls", "./x", "d")
    assert (run.returncode, run.stdout) == (1, b"\nd:\nf\n")
    assert run.stderr == b"virtfs client: ./x: No such file or directory\n"
    assert share.ok("ls", "-d", "d") == b"d\n"


def test_names_are_raw_in_a_pipe_and_harmless_on_a_terminal(share: Share) -> None:
    name = b"bad\x1b[1m\xff"
    (share.export / os.fsdecode(name)).touch()
    assert share.ok("ls") == name + b"\n"
    for words in (["ls"], ["ls", "-l"], ["tree"]):
        with terminal() as (tty, written):
            share.run(*words, capture_output=False, stdout=tty)
            assert b"bad\\x1b[1m\\xff" in written()


def test_tree(share: Share) -> None:
    (share.export / "a/b").mkdir(parents=True)
    (share.export / "a/b/f").touch()
    (share.export / "a/z").symlink_to("b")
    (share.export / "c").touch()
    drawn = ".\n├── a\n│   ├── b\n│   │   └── f\n│   └── z\n└── c\n"
    assert share.ok("tree", env=os.environ | {"PYTHONIOENCODING": "utf-8"}).decode() == drawn
    plain = drawn.translate({ord("├"): "|", ord("│"): "|", ord("└"): "`", ord("─"): "-"})
    assert share.ok("tree", env=os.environ | {"PYTHONIOENCODING": "ascii"}).decode() == plain


def test_tree_goes_as_deep_as_paths_go(share: Share) -> None:
    fd = os.open(share.export, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        fd, below = os.open("d", os.O_RDONLY, dir_fd=fd), fd
        os.close(below)
    os.close(fd)
    assert share.ok("tree").count(b"\n") == 1501
    share.ok("rm", "-r", "d")
    assert not os.listdir(share.export)


def test_stat_shows_nanoseconds(share: Share) -> None:
    (share.export / "f").write_bytes(b"x")
    os.utime(share.export / "f", ns=(0, 1_700_000_000_123_456_789))
    shown = share.ok("stat", "f", env=os.environ | {"TZ": "UTC"}).decode()
    assert "Modify: 2023-11-14 22:13:20.123456789 +0000\n" in shown
    assert "(0644/-rw-r--r--)" in shown


def test_df(share: Share) -> None:
    head, line = share.ok("df").decode().splitlines()
    fs = os.statvfs(share.export)
    assert head.split() == ["1K-blocks", "Used", "Avail", "Use%", "Path"]
    assert line.split()[0] == str(fs.f_blocks * fs.f_frsize // 1024)
    assert share.ok("df", "-h").decode().splitlines()[1].split()[0][-1] in "KMGTPE"


def test_cat(share: Share) -> None:
    (share.export / "f").write_bytes(b"\0\xff")
    (share.export / "g").write_bytes(b"g")
    assert share.ok("cat", "f", "/g") == b"\0\xffg"
    run = share.run("cat", "none", "g")
    assert (run.returncode, run.stdout) == (1, b"g")


def test_a_fifo_is_not_waited_for(share: Share) -> None:
    os.mkfifo(share.export / "fifo")
    os.mknod(share.export / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert share.fails("cat", "fifo") == "fifo: not a regular file"
    assert share.fails("get", "fifo", "x") == "fifo: not a regular file"
    assert share.fails("cat", "null") == "null: not a regular file"
    assert not os.listdir(share.local)


def test_a_symlink_is_not_followed_and_says_so(share: Share) -> None:
    (share.export / "f").write_bytes(b"x")
    (share.export / "link").symlink_to("f")
    (share.export / "loop").symlink_to("loop")
    advice = ": a symbolic link, which is not followed here; name its target (ls -l)"
    assert share.fails("cat", "link") == "link: Too many levels of symbolic links" + advice
    assert share.fails("get", "link", "x") == "link: Too many levels of symbolic links" + advice
    assert share.fails("cat", "loop/f") == "loop/f: Too many levels of symbolic links"


# Copying


def test_put_and_get(share: Share) -> None:
    data = os.urandom(3_000_000)
    (share.local / "f").write_bytes(data)
    (share.local / "f").chmod(0o4750)
    (share.export / "d").mkdir()
    share.ok("put", "f", "d")
    stored = share.export / "d/f"
    assert stored.read_bytes() == data
    assert (stored.stat().st_mode, stored.stat().st_uid) == (stat.S_IFREG | 0o750, os.geteuid())
    share.ok("get", "d/f", "back")
    assert (share.local / "back").read_bytes() == data
    assert stat.S_IMODE((share.local / "back").stat().st_mode) == 0o750
    share.ok("get", "/d/f", ".")
    share.ok("put", "--owner", "5:6", "f", "new")
    assert ((share.export / "new").stat().st_uid, (share.export / "new").stat().st_gid) == (5, 6)


def test_put_and_get_pass_data_through(share: Share) -> None:
    share.ok("put", "-", "f", input=b"from stdin")
    assert (share.export / "f").read_bytes() == b"from stdin"
    assert share.ok("get", "f", "-") == b"from stdin"


def test_put_replaces_at_once(share: Share) -> None:
    (share.export / "f").write_bytes(b"old")
    (share.local / "f").write_bytes(b"new")
    with (share.export / "f").open("rb") as reader:
        share.ok("put", "f", "f")
        assert reader.read() == b"old"
    assert (share.export / "f").read_bytes() == b"new"
    assert os.listdir(share.export) == ["f"]


def test_an_error_names_the_path_that_was_given(share: Share) -> None:
    (share.local / "f").touch()
    (share.export / "f").touch()
    (share.export / "d").mkdir()
    (share.export / "d/f").mkdir()
    (share.local / "d/f").mkdir(parents=True)
    assert share.fails("put", "f", "nosuch/x") == "nosuch/x: No such file or directory"
    assert share.fails("put", "f", "d") == "d/f: Is a directory"
    assert share.fails("get", "f", "nosuch/q") == "nosuch/q: No such file or directory"
    assert share.fails("get", "f", "d") == "d/f: Is a directory"
    assert share.fails("get", "nosuch", "x") == "nosuch: No such file or directory"


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_what_fails_half_way_leaves_nothing(share: Share) -> None:
    (share.local / "f").write_bytes(bytes(3 << 20))
    (share.export / "f").write_bytes(b"old")
    assert share.fails("put", "f", "f", preexec_fn=limit_files) == "File too large"
    assert (share.export / "f").read_bytes() == b"old"
    assert os.listdir(share.export) == ["f"]
    (share.export / "big").write_bytes(bytes(3 << 20))
    assert share.fails("get", "big", "f", preexec_fn=limit_files) == "File too large"
    assert os.listdir(share.local) == ["f"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_interrupted_leaves_nothing(share: Share, signum: signal.Signals) -> None:
    with share.served() as command:
        put = subprocess.Popen([*command, "put", "-", "f"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        with put:
            assert put.stdin is not None
            put.stdin.write(b"half")
            put.stdin.flush()
            deadline = time.monotonic() + WAIT_S
            while not os.listdir(share.export):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            put.send_signal(signum)
            assert put.wait(WAIT_S) == 128 + signum
            assert put.stderr is not None
            assert put.stderr.read() == b""
    assert not os.listdir(share.export)


def test_directories_go_there_and_back(share: Share) -> None:
    top = share.local / "top"
    (top / "empty").mkdir(parents=True)
    (top / "sub").mkdir(mode=0o700)
    (top / "sub/f").write_bytes(b"x")
    (top / "sub/link").symlink_to("/nowhere")
    os.mkfifo(top / "fifo")
    complaint = share.fails("put", "-r", "--owner", "5:6", "top", ".")
    assert complaint == "top/fifo: neither file nor directory nor symlink"
    assert (share.export / "top/sub/f").read_bytes() == b"x"
    assert stat.S_IMODE((share.export / "top/sub").stat().st_mode) == 0o700
    assert {path.lstat().st_uid for path in (share.export / "top").rglob("*")} == {5}
    (share.local / "back").mkdir()
    for _ in range(2):  # the second time over what is there
        share.ok("get", "-r", "top", "back")
    back = {path.relative_to(share.local / "back/top") for path in (share.local / "back/top").rglob("*")}
    assert back == {Path(name) for name in ("empty", "sub", "sub/f", "sub/link")}
    assert os.readlink(share.local / "back/top/sub/link") == "/nowhere"


def test_directories_are_copied_only_when_that_is_asked_for(share: Share) -> None:
    (share.export / "d").mkdir()
    (share.local / "d").mkdir()
    assert share.fails("get", "d", "x") == "d: a directory (use -r)"
    assert share.fails("put", "d", "x") == "d: a directory (use -r)"
    assert share.fails("rm", "d") == "d: a directory (use -r)"


def test_get_does_not_write_through_a_symlink_that_came_before(share: Share) -> None:
    (share.export / "d/sub").mkdir(parents=True)
    (share.export / "d/sub/f").write_bytes(b"evil")
    outside = share.local / "outside"
    outside.mkdir()
    (share.local / "d").mkdir()
    (share.local / "d/sub").symlink_to(outside)
    assert "File exists" in share.fails("get", "-r", "d", ".")
    assert not os.listdir(outside)


def test_a_long_transfer_shows_a_bar_on_a_terminal_alone(share: Share) -> None:
    with (share.export / "f").open("wb") as file:
        file.truncate(64 << 20)
    with terminal() as (tty, written):
        share.run("get", "f", "f", capture_output=False, stderr=tty)
        assert b"f:   0%|" in written()
    (share.export / "small").touch()
    with terminal() as (tty, written):
        share.run("get", "small", "small", capture_output=False, stderr=tty)
        assert written() == b""
    share.ok("get", "f", "f")


# Changing


def test_mkdir(share: Share) -> None:
    share.ok("mkdir", "a")
    share.ok("mkdir", "-p", "a/b/c", "/a/b/c")
    assert (share.export / "a/b/c").is_dir()
    share.ok("mkdir", "-m", "1770", "--owner", "5:6", "d")
    st = (share.export / "d").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o1770, 5, 6)
    assert share.fails("mkdir", "a") == "a: File exists"


def test_rm(share: Share) -> None:
    (share.export / "d/sub").mkdir(parents=True)
    (share.export / "d/sub/f").touch()
    (share.export / "d/out").symlink_to("/")
    (share.export / "keep").touch()
    assert share.fails("rm", "none") == "none: No such file or directory"
    share.ok("rm", "-f", "none")
    share.ok("rm", "-r", "d")
    assert os.listdir(share.export) == ["keep"]


@pytest.mark.parametrize("path", ["/", ".", "./", "//"])
def test_rm_spares_the_export(share: Share, path: str) -> None:
    (share.export / "keep").touch()
    assert "the export itself" in share.fails("rm", "-rf", path)
    assert os.listdir(share.export) == ["keep"]


def test_mv_and_ln(share: Share) -> None:
    (share.export / "f").touch()
    (share.export / "g").touch()
    (share.export / "d").mkdir()
    share.ok("mv", "f", "new")
    share.ok("mv", "new", "g", "d")
    assert sorted(os.listdir(share.export / "d")) == ["g", "new"]
    assert share.fails("mv", "d/g", "d/new", "none") == "none: not a directory"
    share.ok("ln", "d/g", "hard")
    share.ok("ln", "-s", "/any/thing", "soft")
    assert (share.export / "hard").stat().st_nlink == 2
    assert os.readlink(share.export / "soft") == "/any/thing"
    assert share.fails("ln", "d/g", "hard") == "d/g -> hard: File exists"
    assert share.fails("ln", "../x", "hard") == "../x: '..' is not allowed: paths are inside the export"
    share.ok("ln", "-s", "../x", "up")
    assert os.readlink(share.export / "up") == "../x"


def test_chmod_and_chown(share: Share) -> None:
    (share.export / "d").mkdir()
    (share.export / "d/f").touch(0o644)
    (share.export / "d/link").symlink_to("f")
    share.ok("chmod", "u+x,go=", "d/f")
    assert stat.S_IMODE((share.export / "d/f").stat().st_mode) == 0o700
    share.ok("chmod", "-R", "a+rX", "d")
    assert stat.S_IMODE((share.export / "d/f").stat().st_mode) == 0o755
    share.ok("chmod", "0600", "d/f")
    share.ok("chown", "-R", "7:8", "d")
    assert {path.lstat().st_uid for path in share.export.rglob("*")} == {7}
    share.ok("chown", ":root", "d/f")
    assert ((share.export / "d/f").stat().st_uid, (share.export / "d/f").stat().st_gid) == (7, 0)


def test_xattr(share: Share) -> None:
    (share.export / "f").touch()
    share.ok("xattr", "set", "f", "user.b", "two words")
    share.ok("xattr", "set", "f", "user.a", "")
    assert share.ok("xattr", "list", "f") == b"user.a\nuser.b\n"
    assert share.ok("xattr", "get", "f", "user.b") == b"two words"
    share.ok("xattr", "rm", "f", "user.b")
    assert os.listxattr(share.export / "f") == ["user.a"]
    for verb in ("get", "rm"):
        assert share.fails("xattr", verb, "f", "user.b") == "f: no attribute user.b"
    unknown = "f: Operation not supported; names need a namespace, as in user.foo"
    assert share.fails("xattr", "set", "f", "foo", "bar") == unknown


# Ends


def test_a_closed_pipe_is_no_error_to_talk_about(share: Share) -> None:
    (share.export / "f").write_bytes(bytes(8 << 20))
    with share.served() as command:
        cat = subprocess.Popen([*command, "cat", "f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with cat:
            assert cat.stdout is not None
            assert cat.stderr is not None
            cat.stdout.read(1)
            cat.stdout.close()
            assert cat.stderr.read() == b""
            assert cat.wait(WAIT_S) == 128 + signal.SIGPIPE


def test_a_full_disk_is(share: Share) -> None:
    (share.export / "f").write_bytes(bytes(1 << 20))
    with Path("/dev/full").open("wb") as full:
        run = share.run("cat", "f", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (run.returncode, run.stderr) == (1, b"virtfs client: No space left on device\n")


def test_a_helper_that_hangs_up(share: Share) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(share.socket))
        listener.listen()
        command = [str(VIRTFS), "client", str(share.socket), "ls"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ls:
            listener.settimeout(WAIT_S)
            listener.accept()[0].close()
            out, err = ls.communicate(timeout=WAIT_S)
    assert (ls.returncode, out) == (1, b"")
    assert err.startswith(b"virtfs client: no connection to the helper: it hung up")
    assert err.count(b"\n") == 1


def test_many_commands_in_one_connection(share: Share) -> None:
    script = b"mkdir 'two words'  # a comment\n\nln -s t \"two words\"/link\nls\ntree\nexit\nmkdir never\n"
    out = share.ok(input=script, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert out == b"two words\n.\n`-- two words\n    `-- link\n"
    assert os.listdir(share.export) == ["two words"]


@pytest.mark.parametrize(
    ("line", "status"), [(b"rm none\n", 1), (b"frob\n", 2), (b"ls 'open\n", 2), (b"ls x y\n", 1)], ids=repr
)
def test_a_script_ends_at_its_first_failure(share: Share, line: bytes, status: int) -> None:
    run = share.run(input=b"mkdir one\n" + line + b"mkdir two\n")
    assert run.returncode == status
    assert b"Traceback" not in run.stderr
    assert os.listdir(share.export) == ["one"]


def test_a_person_gets_a_prompt_and_another_try(share: Share) -> None:
    with terminal(b"frob\nrm none\nls 'open\nmkdir made\nls\nexit\n") as (tty, written):
        run = share.run(input=None, stdin=tty, stdout=tty, stderr=tty, capture_output=False)
        shown = written()
    assert run.returncode == 0
    assert shown.count(b"virtfs> ") >= 6
    for part in (b"invalid choice: 'frob'", b"none: No such file or directory", b"No closing quotation", b"\nmade\r\n"):
        assert part in shown
    assert os.listdir(share.export) == ["made"]
