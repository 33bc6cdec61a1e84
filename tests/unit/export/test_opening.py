# SPDX-License-Identifier: Apache-2.0
"""What may be opened, with which flags, and that nothing is in between."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path as Folder

import pytest

from virtfs_proxy.export import opening
from virtfs_proxy.export.opening import open_file
from virtfs_proxy.names import Path

O_LARGEFILE = 0o100000  # on a 64-bit x86; the kernel shows it in F_GETFL
SPECIAL = ["fifo", "socket"]


@pytest.fixture
def folder(tmp_path: Folder) -> Iterator[int]:
    """A directory with one of each kind in it that takes no root, as a descriptor; the working directory is another."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o644)
    fd = os.open(tmp_path, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    yield fd
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was leaked"
    os.close(fd)


def _open(folder: int, name: bytes, flags: int, mode: int = 0) -> tuple[int, int, bool]:
    """Open and close. :returns: the file's kind, F_GETFL without O_LARGEFILE, whether it is closed at exec."""
    fd = open_file(folder, Path(name), flags, mode)
    try:
        return (
            stat.S_IFMT(os.fstat(fd).st_mode),
            fcntl.fcntl(fd, fcntl.F_GETFL) & ~O_LARGEFILE,
            bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
        )
    finally:
        os.close(fd)


NOFOLLOW = os.O_NOFOLLOW


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (os.O_RDONLY, os.O_RDONLY),
        (os.O_WRONLY, os.O_WRONLY),
        (os.O_RDWR, os.O_RDWR),
        (os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND),
        (os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_SYNC),
        (os.O_RDWR | os.O_DSYNC, os.O_RDWR | os.O_DSYNC),
        (os.O_RDONLY | os.O_NOATIME, os.O_RDONLY | os.O_NOATIME),
        (os.O_RDONLY | os.O_NONBLOCK, os.O_RDONLY | os.O_NONBLOCK),
        (os.O_RDWR | os.O_TRUNC, os.O_RDWR),
        (os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY),
        (os.O_RDONLY | os.O_CLOEXEC, os.O_RDONLY),
        # Dropped: signals to whoever, a controlling terminal, bits that no kernel has named yet.
        (os.O_RDONLY | os.O_ASYNC, os.O_RDONLY),
        (os.O_RDONLY | os.O_NOCTTY, os.O_RDONLY),
        (os.O_RDWR | 1 << 29 | 1 << 27, os.O_RDWR),
        (os.O_RDWR | O_LARGEFILE, os.O_RDWR),
    ],
)
def test_flags(folder: int, asked: int, got: int) -> None:
    """The descriptor ends up in QEMU: no O_NONBLOCK that nobody asked for, and closed at exec on the way."""
    assert _open(folder, b"file", asked) == (stat.S_IFREG, got | NOFOLLOW, True)


def test_directories(folder: int) -> None:
    for flags in (os.O_RDONLY, os.O_DIRECTORY, os.O_DIRECTORY | os.O_NONBLOCK):
        kind, got, _ = _open(folder, b"dir", flags)
        assert kind == stat.S_IFDIR
        assert got & ~NOFOLLOW & ~os.O_DIRECTORY == flags & os.O_NONBLOCK


def test_truncation(folder: int, tmp_path: Folder) -> None:
    _open(folder, b"file", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "file").read_bytes() == b""


CREATE = os.O_CREAT | os.O_WRONLY


@pytest.mark.parametrize("flags", [CREATE, CREATE | os.O_EXCL, CREATE | os.O_TRUNC])
def test_creating(folder: int, tmp_path: Folder, flags: int) -> None:
    before = os.umask(0)
    try:
        _open(folder, b"new", flags, 0o170000 | 0o6751)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o777 == 0o751
    assert stat.S_ISREG((tmp_path / "new").stat().st_mode)


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_NONBLOCK, CREATE, os.O_RDWR | os.O_TRUNC, os.O_ASYNC]
)
def test_special_files_are_refused(folder: int, name: str, flags: int) -> None:
    with pytest.raises(OSError, match="No such device or address") as refusal:
        open_file(folder, Path(name.encode()), flags)
    assert refusal.value.errno == errno.ENXIO


@pytest.mark.root
@pytest.mark.parametrize(("kind", "device"), [(stat.S_IFCHR, (1, 3)), (stat.S_IFCHR, (5, 0)), (stat.S_IFBLK, (7, 0))])
def test_devices_are_refused(folder: int, kind: int, device: tuple[int, int], tmp_path: Folder) -> None:
    os.mknod(tmp_path / "device", kind | 0o600, os.makedev(*device))
    for flags in (os.O_RDONLY, os.O_RDWR, CREATE):
        with pytest.raises(OSError, match="No such device or address"):
            open_file(folder, Path(b"device"), flags)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_files_that_come_between_are_refused_too(
    folder: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before the open found something harmless; what is opened then does not block, and is closed."""
    monkeypatch.setattr(opening, "_refuse_special", lambda *_: None)
    if name == "fifo":  # an open for writing with no reader fails by itself
        with pytest.raises(OSError, match="No such device or address"):
            open_file(folder, Path(b"fifo"), os.O_WRONLY)
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(OSError, match="No such device or address"):
            open_file(folder, Path(name.encode()), flags)


@pytest.mark.parametrize("name", ["link", "dangling"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, CREATE, CREATE | os.O_TRUNC])
def test_links_are_not_followed(folder: int, tmp_path: Folder, name: str, flags: int) -> None:
    with pytest.raises(OSError, match="symbolic links") as refusal:
        open_file(folder, Path(name.encode()), flags, 0o644)
    assert refusal.value.errno == errno.ELOOP
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("name", "flags", "code"),
    [
        ("file", os.O_PATH, errno.EINVAL),
        ("dir", os.O_PATH | os.O_DIRECTORY, errno.EINVAL),
        ("dir", os.O_TMPFILE | os.O_RDWR, errno.EINVAL),
        ("dir", os.O_TMPFILE & ~os.O_DIRECTORY | os.O_RDWR, errno.EINVAL),
        ("file", os.O_DIRECTORY, errno.ENOTDIR),
        ("fifo", os.O_DIRECTORY, errno.ENOTDIR),
        ("missing", os.O_RDONLY, errno.ENOENT),
        ("missing/new", CREATE, errno.ENOENT),
        ("file/new", CREATE, errno.ENOTDIR),
        ("file", CREATE | os.O_EXCL, errno.EEXIST),
        ("fifo", CREATE | os.O_EXCL, errno.EEXIST),
        ("link", CREATE | os.O_EXCL, errno.EEXIST),
        ("dir", os.O_WRONLY, errno.EISDIR),
        ("x" * 256, os.O_RDONLY, errno.ENAMETOOLONG),
    ],
)
def test_refusals(folder: int, tmp_path: Folder, name: str, flags: int, code: int) -> None:
    before = set(os.listdir(tmp_path))
    with pytest.raises(OSError, match=r".+") as refusal:
        open_file(folder, Path(name.encode()), flags, 0o644)
    assert refusal.value.errno == code
    assert set(os.listdir(tmp_path)) == before


def test_no_descriptor_is_left_when_fstat_fails(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> os.stat_result:
        raise OSError(errno.EIO, "disk")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        with pytest.raises(OSError, match="disk"):
            open_file(folder, Path(b"file"), os.O_RDONLY)


def test_a_socket_that_is_listened_on(folder: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Folder) -> None:
    """Nobody is waiting in it afterwards."""
    monkeypatch.chdir(tmp_path)  # relative, since pytest's paths are too long for it
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("listening")
        listening.listen()
        with pytest.raises(OSError, match="No such device or address"):
            open_file(folder, Path(b"listening"), os.O_RDWR)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
