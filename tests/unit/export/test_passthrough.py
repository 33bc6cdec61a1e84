# SPDX-License-Identifier: Apache-2.0
"""Every operation on a place below a directory's descriptor; the working directory has the same names, as decoys."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path as Folder
from typing import Any

import pytest

from virtfs_proxy import linux
from virtfs_proxy.export.passthrough import Export, standing_in
from virtfs_proxy.linux import AT_FDCWD, UTIME_OMIT
from virtfs_proxy.names import Path, Text

ME = (0, 0)  # of as_caller: no switch of identity, which takes root
NS = (1_600_000_000, 123_456_789, 1_700_000_000, 987_654_321)
SECOND = 10**9


def _fill(folder: Folder) -> None:
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    (folder / "file").chmod(0o640)
    (folder / "dir").mkdir()
    (folder / "link").symlink_to("file")
    os.setxattr(folder / "file", "user.old", b"value")
    for name in ("file", "link"):
        os.utime(folder / name, (1, 1), follow_symlinks=False)


def _snapshot(folder: Folder) -> list[Any]:
    found: list[Any] = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        st = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
        names = [(name, os.getxattr(path, name)) for name in os.listxattr(path, follow_symlinks=False)]
        found.append((path, st.st_ino, st.st_mode, st.st_nlink, st.st_size, st.st_mtime_ns, content, names))
    return found


class Place:
    """The directory that is meant, and an export."""

    def __init__(self, folder: Folder, fd: int) -> None:
        self.folder = folder
        self.fd = fd
        self.export = Export()


@pytest.fixture(params=["descriptor", "working directory"])
def place(request: pytest.FixtureRequest, tmp_path: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """With a descriptor, all that is in the working directory must stay as it was, and so must that directory."""
    meant, decoy = tmp_path / "meant", tmp_path / "decoy"
    _fill(meant)
    _fill(decoy)
    if request.param == "working directory":
        monkeypatch.chdir(meant)
        yield Place(meant, AT_FDCWD)
        assert os.getcwd() == str(meant)
        return
    monkeypatch.chdir(decoy)
    fd = os.open(meant, os.O_PATH | os.O_DIRECTORY)
    before = _snapshot(decoy), len(os.listdir("/proc/self/fd"))
    try:
        yield Place(meant, fd)
        assert os.getcwd() == str(decoy)
        assert (_snapshot(decoy), len(os.listdir("/proc/self/fd"))) == before
    finally:
        os.close(fd)


FILE, DIR, LINK, NEW = Path(b"file"), Path(b"dir"), Path(b"link"), Path(b"new")


def test_open(place: Place) -> None:
    with os.fdopen(place.export.open(place.fd, FILE, os.O_RDWR), "r+b", 0) as file:
        assert file.read() == b"content"
        file.write(b" more")
    assert (place.folder / "file").read_bytes() == b"content more"


@pytest.mark.parametrize("flags", [os.O_CREAT, os.O_CREAT | os.O_EXCL])
def test_open_makes_nothing(place: Place, flags: int) -> None:
    with pytest.raises(FileNotFoundError):
        place.export.open(place.fd, NEW, flags | os.O_RDWR)
    os.close(place.export.open(place.fd, FILE, flags | os.O_RDWR))  # nor does O_EXCL hold without O_CREAT
    assert not (place.folder / "new").exists()


def test_create(place: Place) -> None:
    with os.fdopen(place.export.create(place.fd, NEW, os.O_CREAT | os.O_WRONLY, 0o600, ME), "wb", 0) as file:
        file.write(b"made")
    assert (place.folder / "new").read_bytes() == b"made"
    assert stat.S_IMODE((place.folder / "new").stat().st_mode) == 0o600


def test_mknod(place: Place) -> None:
    place.export.mknod(place.fd, NEW, 0xF0000 | stat.S_IFIFO | 0o600, 0, ME)
    assert (place.folder / "new").is_fifo()


def test_mkdir(place: Place) -> None:
    place.export.mkdir(place.fd, NEW, 0o40700, ME)
    assert stat.S_IMODE((place.folder / "new").stat().st_mode) == 0o700


def test_symlink(place: Place) -> None:
    place.export.symlink(Text(b"/anything \xff"), place.fd, NEW, ME)
    assert os.readlink(os.fsencode(place.folder / "new")) == b"/anything \xff"


def test_link(place: Place) -> None:
    place.export.link(place.fd, FILE, place.fd, NEW)
    assert (place.folder / "new").samefile(place.folder / "file")
    place.export.link(place.fd, LINK, place.fd, Path(b"linked"))
    assert (place.folder / "linked").is_symlink()


def test_lstat(place: Place) -> None:
    for name in ("file", "dir", "link"):
        assert place.export.lstat(place.fd, Path(name.encode())) == (place.folder / name).lstat()


def test_readlink(place: Place) -> None:
    (place.folder / "long").symlink_to("x" * 4000)
    assert place.export.readlink(place.fd, LINK) == b"file"
    assert place.export.readlink(place.fd, Path(b"long")) == b"x" * 4000


def test_statfs(place: Place) -> None:
    there = os.statvfs(place.folder)
    got = place.export.statfs(place.fd, FILE)
    assert (got[1], got[2], got[5], got[9]) == (there.f_bsize, there.f_blocks, there.f_files, there.f_namemax)
    with pytest.raises(FileNotFoundError):
        place.export.statfs(place.fd, NEW)


def test_chmod(place: Place) -> None:
    place.export.chmod(place.fd, FILE, 0o100444)
    assert stat.S_IMODE((place.folder / "file").stat().st_mode) == 0o444


def test_chown(place: Place) -> None:
    for owner in [(os.geteuid(), os.getegid()), (2**32 - 1, os.getegid()), (2**32 - 1, 2**32 - 1)]:
        place.export.chown(place.fd, LINK, *owner)
    for name in ("missing", "file/x"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            place.export.chown(place.fd, Path(name.encode()), 2**32 - 1, 2**32 - 1)


@pytest.mark.root
def test_chown_to_others(place: Place) -> None:
    place.export.chown(place.fd, LINK, 1234, 2**32 - 1)
    place.export.chown(place.fd, LINK, 2**32 - 1, 1235)
    there, target = (place.folder / "link").lstat(), (place.folder / "file").stat()
    assert (there.st_uid, there.st_gid, target.st_uid, target.st_gid) == (1234, 1235, 0, 0)


def test_truncate(place: Place) -> None:
    place.export.truncate(place.fd, FILE, 3)
    assert (place.folder / "file").read_bytes() == b"con"
    place.export.truncate(place.fd, LINK, 5)
    assert (place.folder / "file").read_bytes() == b"con\0\0"


def test_utime(place: Place) -> None:
    place.export.utime(place.fd, FILE, NS)
    there = (place.folder / "file").stat()
    assert (there.st_atime_ns, there.st_mtime_ns) == (NS[0] * SECOND + NS[1], NS[2] * SECOND + NS[3])
    place.export.utime(place.fd, LINK, (5, 6, 7, UTIME_OMIT))
    link = (place.folder / "link").lstat()
    assert (link.st_atime_ns, link.st_mtime_ns) == (5 * SECOND + 6, SECOND)
    assert (place.folder / "file").stat().st_mtime_ns == NS[2] * SECOND + NS[3]


def test_rename(place: Place) -> None:
    place.export.rename(place.fd, FILE, place.fd, NEW)
    assert (place.folder / "new").read_bytes() == b"content"
    assert not (place.folder / "file").exists()


@pytest.mark.parametrize("name", ["file", "dir", "link"])
def test_remove(place: Place, name: str) -> None:
    place.export.remove(place.fd, Path(name.encode()))
    assert not os.path.lexists(place.folder / name)


def test_remove_refuses_a_directory_that_is_not_empty(place: Place) -> None:
    (place.folder / "dir" / "in").touch()
    with pytest.raises(OSError, match="not empty") as refusal:
        place.export.remove(place.fd, DIR)
    assert refusal.value.errno == errno.ENOTEMPTY


def test_attributes(place: Place) -> None:
    export, fd = place.export, place.fd
    assert export.lgetxattr(fd, FILE, Text(b"user.old")) == b"value"
    export.lsetxattr(fd, FILE, Text(b"user.new"), b"\0\xff", 0)
    assert set(export.llistxattr(fd, FILE).split(b"\0")) == {b"user.old", b"user.new", b""}
    assert export.llistxattr(fd, DIR) == b""
    with pytest.raises(FileExistsError):
        export.lsetxattr(fd, FILE, Text(b"user.new"), b"", os.XATTR_CREATE)
    export.lremovexattr(fd, FILE, Text(b"user.old"))
    assert os.listxattr(place.folder / "file") == ["user.new"]
    assert os.getxattr(place.folder / "file", "user.new") == b"\0\xff"


def test_attributes_of_a_link_are_its_own(place: Place) -> None:
    assert place.export.llistxattr(place.fd, LINK) == b""
    for attempt in (
        lambda: place.export.lgetxattr(place.fd, LINK, Text(b"user.old")),
        lambda: place.export.lsetxattr(place.fd, LINK, Text(b"user.new"), b"", 0),
        lambda: place.export.lremovexattr(place.fd, LINK, Text(b"user.old")),
    ):
        with pytest.raises(OSError, match=r"No data|not permitted"):
            attempt()


FAILING: dict[str, Callable[[Export, int], object]] = {
    "statfs": lambda export, fd: export.statfs(fd, NEW),
    "truncate": lambda export, fd: export.truncate(fd, NEW, 0),
    "truncate to less than nothing": lambda export, fd: export.truncate(fd, FILE, -1),
    "lgetxattr": lambda export, fd: export.lgetxattr(fd, FILE, Text(b"user.missing")),
    "llistxattr": lambda export, fd: export.llistxattr(fd, NEW),
    "lsetxattr": lambda export, fd: export.lsetxattr(fd, NEW, Text(b"user.x"), b"", 0),
    "lremovexattr": lambda export, fd: export.lremovexattr(fd, FILE, Text(b"user.missing")),
    "lgetxattr with NUL": lambda export, fd: export.lgetxattr(fd, FILE, Text(b"a\0b")),
}


@pytest.mark.parametrize("attempt", FAILING.values(), ids=FAILING)
def test_failures_leave_the_working_directory_alone(place: Place, attempt: Callable[[Export, int], object]) -> None:
    """What place checks at its end."""
    with pytest.raises((OSError, ValueError)):
        attempt(place.export, place.fd)


def test_standing_in_what_is_no_directory(place: Place) -> None:
    with open(place.folder / "file", "rb") as file, pytest.raises(NotADirectoryError), standing_in(file.fileno()):
        pytest.fail("not reached")


def test_getversion(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file systems have one is told by the root of the export; elsewhere there is no ioctl, nor an open."""
    opened: list[int] = []

    def generation(fd: int) -> int:
        opened.append(fd)
        return os.fstat(fd).st_ino

    monkeypatch.setattr(linux, "getversion", generation)
    place.export.has_getversion = False
    assert place.export.getversion(place.fd, FILE) == 0
    assert not opened
    place.export.has_getversion = True
    assert place.export.getversion(place.fd, FILE) == (place.folder / "file").stat().st_ino
    with pytest.raises(OSError, match="symbolic links"):
        place.export.getversion(place.fd, LINK)


@pytest.mark.parametrize(
    ("magic", "has"),
    [
        (linux.EXT2_SUPER_MAGIC, True),
        (linux.BTRFS_SUPER_MAGIC, True),
        (linux.XFS_SUPER_MAGIC, True),
        (0x01021994, False),
    ],
)
def test_file_systems_with_generations(monkeypatch: pytest.MonkeyPatch, magic: int, has: bool) -> None:
    monkeypatch.setattr(linux, "statfs", lambda _: (magic,))
    assert Export().has_getversion is has
