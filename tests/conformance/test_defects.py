# SPDX-License-Identifier: Apache-2.0
"""Where the original falls short: each test fails on what it does (see the mark), and holds for ours.

What it does with malformed bodies is in test_malformed.py, with its options in test_command.py.
"""

import fcntl
import os
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.peer import ROWS, Helper, Reply, Stalled, body_of, frame, is_original
from tests.conformance.tree import Tree, snapshot
from tests.conftest import ORIGINAL, OURS

pytestmark = pytest.mark.root

USER = {"uid": 1000, "gid": 1000}
FS_IOC_GETVERSION = 0x80087601  # _IOR('v', 1, long)
TMPFS_MAGIC = 0x01021994
HAVE_GENERATIONS = {0xEF53, 0x9123683E, 0x58465342, 0x52654973}  # ext2/3/4, btrfs, xfs, reiserfs


def drop(reply: Reply) -> None:
    if reply.fd is not None:
        os.close(reply.fd)


def in_time(helper: Helper, name: str, body: bytes) -> Reply:
    """The reply within two seconds; a helper that hangs is killed, so that its test ends."""
    helper.socket.settimeout(2)
    try:
        return helper.ask_raw(name, body)
    except Stalled:
        helper.kill()
        helper.ends_with = -signal.SIGKILL
        raise


OPENINGS = [
    ("open", body_of("open", path=b"%b", flags=os.O_RDONLY)),
    ("open", body_of("open", path=b"%b", flags=os.O_WRONLY)),
    ("open", body_of("open", path=b"%b", flags=os.O_RDWR | os.O_NONBLOCK)),
    ("create", body_of("create", path=b"%b", flags=os.O_CREAT | os.O_WRONLY, mode=0o600, **USER)),
    ("create", body_of("create", path=b"%b", flags=os.O_CREAT | os.O_RDWR | os.O_TRUNC, mode=0o600, uid=0, gid=0)),
]


def opening(kind: int, path: bytes) -> tuple[str, bytes]:
    name, body = OPENINGS[kind]
    return name, struct.pack("=H", len(path)) + path + body[4:]


WAITS = pytest.mark.fixed("it opens the FIFO first and looks at it then: it waits for the other end, for ever")


@pytest.mark.parametrize("kind", [pytest.param(n, marks=WAITS) if n in {0, 1, 3} else n for n in range(len(OPENINGS))])
def test_a_fifo_is_not_opened(helper: Helper, populated: Tree, kind: int) -> None:
    reply = in_time(helper, *opening(kind, b"fifo"))
    drop(reply)
    assert reply.name == "ENXIO"
    assert helper.alive()
    assert snapshot(helper.export) == populated


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("it opens the FIFO, then looks at it: a process at the other end goes on, or reads its end")
def test_a_fifo_is_not_opened_and_closed_again(helper: Helper) -> None:
    """poll(2) tells a reader of a writer that was there: POLLHUP."""
    reader = os.open(helper.export / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        watch = select.poll()
        watch.register(reader, select.POLLIN)
        assert helper.ask("open", path=b"fifo", flags=os.O_WRONLY).name == "ENXIO"
        assert watch.poll(0) == []
    finally:
        os.close(reader)


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("GETVERSION opens it too, where the file system has generations", strict=False)
def test_a_fifo_is_not_opened_for_its_generation(helper: Helper) -> None:
    if helper.ask("statfs", path=b".").fields["type"] in HAVE_GENERATIONS:
        assert in_time(helper, "getversion", body_of("getversion", path=b"fifo")).name == "ENXIO"
    assert helper.alive()


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("kind", range(len(OPENINGS)))
def test_a_device_is_not_opened(helper: Helper, kind: int) -> None:
    reply = in_time(helper, *opening(kind, b"device"))
    drop(reply)
    assert reply.name == "ENXIO"
    assert helper.alive()


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("kind", range(len(OPENINGS)))
def test_a_socket_is_not_opened(helper: Helper, kind: int) -> None:
    assert in_time(helper, *opening(kind, b"socket")).name == "ENXIO"
    assert helper.alive()


def test_a_fifo_stalls_the_original_and_not_ours(tmp_path: Path) -> None:
    """Both, side by side: what anybody in a guest could do to everybody who uses the share."""
    os.mkfifo(tmp_path / "fifo")
    with Helper([str(ORIGINAL)], tmp_path) as original, Helper([str(OURS)], tmp_path) as ours:
        for helper in (original, ours):
            assert helper.alive()
            helper.send(frame("open", body_of("open", path=b"fifo", flags=os.O_RDONLY)))
        assert ours.reply(ROWS["open"]).name == "ENXIO"
        assert ours.alive()
        original.socket.settimeout(1)
        with pytest.raises(Stalled):
            original.reply(ROWS["open"])
        original.kill()


@pytest.mark.fixed("it follows the link")
@pytest.mark.parametrize("path", [b"link", b"dirlink", b"dangling"])
@pytest.mark.parametrize("kind", range(len(OPENINGS)))
def test_a_link_is_not_followed_to_be_opened(helper: Helper, populated: Tree, path: bytes, kind: int) -> None:
    """The guest's kernel has followed its links: one that is still there was put there since."""
    if kind < 3 and path == b"dangling":
        (helper.export / "nowhere").touch()
        populated = snapshot(helper.export)
    reply = in_time(helper, *opening(kind, path))
    drop(reply)
    assert reply.name == "ELOOP"
    assert snapshot(helper.export) == populated


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("it follows the link")
def test_a_link_is_no_directory(helper: Helper) -> None:
    reply = helper.ask("open", path=b"dirlink", flags=os.O_DIRECTORY)
    drop(reply)
    assert reply.name == "ENOTDIR"


@pytest.mark.usefixtures("populated")
def test_links_within_a_path_lead_nowhere_out_of_the_export(helper: Helper, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("out of reach")
    for number, target in enumerate([str(tmp_path), "..", "/", "../../../../../../../..", "/proc/self/root"]):
        os.symlink(target, helper.export / f"out{number}")
        way = b"out%d/" % number
        for path in (way + b"secret", way + b"etc/passwd", way + os.fsencode(tmp_path) + b"/secret"):
            assert helper.ask("open", path=path, flags=os.O_RDONLY).name == "ENOENT"
            assert helper.ask("lstat", path=path).name == "ENOENT"
            assert helper.ask("chmod", path=path, mode=0).name == "ENOENT"
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) != 0


@pytest.mark.fixed("it creates, as its own user, with whatever mode lies in a register")
@pytest.mark.parametrize("extra", [0, os.O_EXCL, os.O_EXCL | os.O_TRUNC])
def test_open_does_not_create(helper: Helper, populated: Tree, extra: int) -> None:
    reply = helper.ask("open", path=b"new", flags=os.O_RDWR | os.O_CREAT | extra)
    drop(reply)
    assert reply.name == "ENOENT"
    assert snapshot(helper.export) == populated


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("it gives such descriptors")
@pytest.mark.parametrize(
    ("path", "flags"),
    [
        (b"file", os.O_PATH), (b"dir", os.O_PATH | os.O_DIRECTORY), (b"device", os.O_PATH), (b"fifo", os.O_PATH),
        (b"link", os.O_PATH | os.O_NOFOLLOW), (b"dir", os.O_TMPFILE | os.O_RDWR),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["open", "create"])
def test_no_path_and_no_tmpfile(helper: Helper, name: str, path: bytes, flags: int) -> None:
    values = {"path": path, "flags": flags} | ({"mode": 0o600, **USER} if name == "create" else {})
    reply = helper.ask(name, **values)
    drop(reply)
    assert reply.name == "EINVAL"


@pytest.mark.fixed("its user does not change from another to 0, so its capabilities do not come back, ever")
@pytest.mark.parametrize("name", ["create", "mkdir", "mknod", "symlink"])
def test_a_caller_who_is_root_with_another_group_leaves_the_helper_as_it_was(helper: Helper, name: str) -> None:
    fields: dict[str, dict[str, Any]] = {
        "create": {"flags": os.O_CREAT, "mode": 0o600},
        "mkdir": {"mode": 0o700},
        "mknod": {"mode": 0o600, "rdev": 0},
        "symlink": {"target": b"x"},
    }
    drop(helper.ask(name, path=b"first", uid=0, gid=5, **fields[name]))
    made = (helper.export / "first").lstat()
    assert (made.st_uid, made.st_gid) == (0, 5)
    assert helper.ask("chown", path=b"first", uid=1, gid=1).name == "OK"
    assert helper.ask("mkdir", path=b"second", mode=0o700, **USER).name == "OK"
    assert (helper.export / "second").stat().st_uid == 1000


@pytest.mark.fixed("groups of whoever started it count for every caller")
def test_groups_of_the_start_do_not_count(helper_command: list[str], export: Path) -> None:
    os.chown(export, 0, 4242)
    export.chmod(0o2777)
    with Helper(helper_command, export, extra_groups=[4242]) as helper:
        drop(helper.ask("create", path=b"new", flags=os.O_CREAT, mode=0o2755, **USER))
        # In a setgid directory the bit stays for members of the group alone.
        assert (export / "new").stat().st_mode & 0o7777 == 0o755
        assert status_of(helper)["Groups"] == ""


def status_of(helper: Helper) -> dict[str, str]:
    """/proc/PID/status, of a helper that serves."""
    assert helper.alive()
    lines = Path(f"/proc/{helper.process.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


@pytest.mark.fixed("neither is set")
def test_no_way_back_to_privileges(helper: Helper) -> None:
    status = status_of(helper)
    assert (status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("1", 0x80000DB)


def generation(path: Path) -> int:
    """What the kernel says, 32 bits of it."""
    answer = bytearray(8)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_GETVERSION, answer)
    finally:
        os.close(fd)
    return int(struct.unpack("=I", answer[:4])[0])


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("half of the number is what lay on the stack, an address of it after OPEN", strict=False)
@pytest.mark.usefixtures("populated")
def test_generation_is_the_kernels(helper: Helper) -> None:
    known = helper.ask("statfs", path=b".").fields["type"] in HAVE_GENERATIONS
    drop(helper.ask("open", path=b"file", flags=os.O_RDONLY))
    for name in ("file", "dir", "."):
        answer = helper.ask("getversion", path=os.fsencode(name)).fields["generation"]
        assert answer == (generation(helper.export / name) if known else 0)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """An export on tmpfs: no generations, and extended attributes as long as Linux has them."""
    path = Path(tempfile.mkdtemp(prefix="virtfs-conformance-", dir="/dev/shm"))
    try:
        (path / "file").touch()
        yield path
    finally:
        shutil.rmtree(path)


def test_generation_is_0_elsewhere_without_a_look(helper_command: list[str], in_memory: Path) -> None:
    with Helper(helper_command, in_memory) as helper:
        assert helper.ask("statfs", path=b".").fields["type"] == TMPFS_MAGIC
        for path in (b"file", b"missing"):
            assert helper.ask("getversion", path=path).raw == b"\0\0\0\0\x08\0\0\0" + bytes(8)


@pytest.mark.fixed("it does not look at the body there")
def test_generation_elsewhere_still_takes_a_body(helper_command: list[str], in_memory: Path) -> None:
    with Helper(helper_command, in_memory) as helper:
        assert helper.ask_raw("getversion", b"\5\0x").name == "ENOBUFS"


@pytest.mark.parametrize(
    ("length", "answer"),
    [
        (65_533, "OK"),
        (65_534, "OK"),
        (65_535, "ENOBUFS"),
        pytest.param(65_536, "ENOBUFS", marks=pytest.mark.fixed("its length counts to 65,535: a success, and empty")),
    ],
)
def test_an_attribute_that_hardly_fits_a_reply(
    helper_command: list[str], in_memory: Path, length: int, answer: str
) -> None:
    value = os.urandom(length)
    os.setxattr(in_memory / "file", "security.long", value)  # which anybody may read
    with Helper(helper_command, in_memory) as helper:
        assert helper.ask("lgetxattr", size=0, path=b"file", name=b"security.long").fields == {"length": length}
        reply = helper.ask("lgetxattr", size=65_536, path=b"file", name=b"security.long")
        assert reply.name == answer
        assert reply.fields in ({}, {"value": value})
        assert helper.alive()


def descriptors(helper: Helper) -> int:
    assert helper.alive()
    return len(os.listdir(f"/proc/{helper.process.pid}/fd"))


@pytest.mark.usefixtures("populated")
def test_descriptors_are_not_kept(helper: Helper) -> None:
    before = descriptors(helper)
    for _ in range(100):
        drop(helper.ask("open", path=b"file", flags=os.O_RDWR))
        drop(helper.ask("create", path=b"file", flags=os.O_CREAT, mode=0, **USER))
        drop(helper.ask("open", path=b"link", flags=os.O_DIRECTORY))
        helper.ask("getversion", path=b"file")
    assert descriptors(helper) == before


@pytest.mark.usefixtures("populated")
def test_without_a_descriptor_left_it_says_so(helper: Helper) -> None:
    before = descriptors(helper)
    pid = helper.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # stdio has these
    reply = helper.ask("open", path=b"file", flags=os.O_RDONLY)
    drop(reply)
    assert reply.name == "EMFILE"
    assert helper.ask("lstat", path=b"file").error == 0
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    drop(helper.ask("open", path=b"file", flags=os.O_RDONLY))
    assert descriptors(helper) == before


def pile_up(helper: Helper, size: int) -> bool:
    """Whether so many bytes of replies come to lie in the socket, unread, in ten seconds."""
    unread = bytearray(4)
    for _ in range(1000):
        fcntl.ioctl(helper.socket, termios.FIONREAD, unread)
        if int.from_bytes(unread, sys.byteorder) == size:
            return True
        if helper.process.poll() is not None:
            return False
        time.sleep(0.01)
    return False


@pytest.mark.fixed("a descriptor that cannot be sent is the end")
@pytest.mark.usefixtures("populated")
def test_a_descriptor_that_cannot_be_sent_is_an_error_and_not_kept(helper: Helper) -> None:
    """More descriptors under way than the limit allows: sendmsg(2) says ETOOMANYREFS."""
    before = descriptors(helper)
    resource.prlimit(helper.process.pid, resource.RLIMIT_NOFILE, (30, 30))
    helper.send(frame("open", body_of("open", path=b"file", flags=os.O_RDONLY)) * 100)
    assert pile_up(helper, 400)
    replies = [helper.reply(ROWS["open"]) for _ in range(100)]
    for reply in replies:
        drop(reply)
    assert {reply.name for reply in replies} == {"OK", "ETOOMANYREFS"}
    assert descriptors(helper) == before


@pytest.mark.usefixtures("populated")
@pytest.mark.fixed("it dies of SIGPIPE")
def test_a_client_that_asks_and_leaves_ends_it_cleanly(helper: Helper) -> None:
    assert helper.alive()
    helper.process.send_signal(signal.SIGSTOP)
    helper.send(frame("open", body_of("open", path=b"file", flags=0)) * 50)
    helper.socket.close()
    helper.process.send_signal(signal.SIGCONT)
    assert helper.process.wait(10) == 0


@pytest.mark.fixed("it says nothing")
def test_the_log_tells_of_client_refusals_and_end(helper: Helper) -> None:
    helper.ask("lstat", path=b"../etc/passwd")
    helper.ask_raw("mkdir", b"")
    helper.ask("lstat", path=b".")
    helper.close()
    lines = helper.logged().splitlines()
    assert any("connected" in line for line in lines)
    assert any("lstat" in line.lower() and "../etc/passwd" in line for line in lines)
    assert any("mkdir" in line.lower() and "short" in line for line in lines)
    assert any("LSTAT 2" in line and "MKDIR 1" in line for line in lines)


@pytest.mark.fixed("a signal kills it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_between_two_requests(helper: Helper, number: signal.Signals) -> None:
    assert helper.alive()
    helper.process.send_signal(number)
    assert helper.hung_up()
    assert helper.process.wait(10) == 0
    assert number.name in helper.logged()


def test_the_original_is_told_from_ours() -> None:
    """What the marks of this suite hang on."""
    assert is_original([str(ORIGINAL)])
    assert not is_original([str(OURS)])
