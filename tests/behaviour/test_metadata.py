# SPDX-License-Identifier: Apache-2.0
"""What is known of a file beside its content: mode, owner, times, attributes; and of the file system."""

import errno
import os
import stat
import struct
import time
from pathlib import Path
from typing import Final

import pytest
from tests.behaviour.expect import kind_and_mode, on_host, owner_of, refused, write
from tests.behaviour.faces import USER, Face

pytestmark = pytest.mark.root

NOW: Final = "now"
OMIT: Final = "omit"
DAY_NS = 86_400_000_000_000


def make(host: Path, kind: str) -> None:
    """Put a file of a kind on the host."""
    path = host / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("target")
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(4, 300))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(bytes(5000))


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "device", "fifo"])
def test_lstat_tells_what_the_host_tells(face: Face, host: Path, kind: str) -> None:
    make(host, kind)
    os.chown(host / "x", *USER, follow_symlinks=False)
    os.utime(host / "x", ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    ours, theirs = face.lstat(b"x"), on_host(host, b"x")
    names = (
        "mode",
        "nlink",
        "uid",
        "gid",
        "rdev",
        "size",
        "blocks",
        "ino",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
    )
    assert {n: getattr(ours, f"st_{n}") for n in names} == {n: getattr(theirs, f"st_{n}") for n in names}


def test_lstat_of_the_root(face: Face, host: Path) -> None:
    st = face.lstat(b".")
    assert (stat.S_ISDIR(st.st_mode), st.st_ino) == (True, host.stat().st_ino)


@pytest.mark.parametrize("path", [b"none", b"none/x"])
def test_lstat_of_what_is_not_there(face: Face, path: bytes) -> None:
    with refused(errno.ENOENT):
        face.lstat(path)


# Modes


@pytest.mark.parametrize("mode", [0, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o7777], ids=oct)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_chmod_sets_every_bit(face: Face, host: Path, kind: str, mode: int) -> None:
    make(host, kind)
    os.chown(host / "x", *USER)
    before = stat.S_IFMT(kind_and_mode(host, b"x"))
    face.chmod(b"x", mode)
    assert kind_and_mode(host, b"x") == face.lstat(b"x").st_mode == before | mode


def test_chmod_moves_ctime_alone(face: Face, host: Path) -> None:
    make(host, "file")
    before = on_host(host, b"x")
    time.sleep(0.02)  # more than a tick of the kernel's clock
    face.chmod(b"x", 0o600)
    after = face.lstat(b"x")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_chmod_of_what_is_not_there(face: Face) -> None:
    with refused(errno.ENOENT):
        face.chmod(b"none", 0o600)


# Owners


@pytest.mark.parametrize(("uid", "gid"), [(1000, 2000), (-1, 2000), (1000, -1), (0, 0), (2**31, 2**32 - 2)])
def test_chown_leaves_minus_one_alone(face: Face, host: Path, uid: int, gid: int) -> None:
    make(host, "file")
    os.chown(host / "x", 5, 6)
    face.chown(b"x", uid, gid)
    assert owner_of(host, b"x") == (5 if uid == -1 else uid, 6 if gid == -1 else gid)


def test_chown_changes_a_symlink_itself(face: Face, host: Path) -> None:
    (host / "target").touch()
    make(host, "symlink")
    face.chown(b"x", *USER)
    assert owner_of(host, b"x") == USER
    assert owner_of(host, b"target") == (0, 0)


def test_chown_of_a_program_takes_its_privileges(face: Face, host: Path) -> None:
    make(host, "file")
    (host / "x").chmod(0o6755)
    face.chown(b"x", *USER)
    assert kind_and_mode(host, b"x") == stat.S_IFREG | 0o755


def test_chown_of_a_directory_keeps_setgid(face: Face, host: Path) -> None:
    make(host, "directory")
    (host / "x").chmod(0o2755)
    face.chown(b"x", *USER)
    assert kind_and_mode(host, b"x") == stat.S_IFDIR | 0o2755


def test_chown_of_what_is_not_there(face: Face) -> None:
    with refused(errno.ENOENT):
        face.chown(b"none", 1, 1)


# Times


@pytest.mark.parametrize(
    ("atime", "mtime"),
    [(0, 0), (1, 999_999_999), (1_700_000_000_123_456_789, 1_600_000_000_987_654_321), (-1, -2 * DAY_NS + 3)],
)
def test_utime_keeps_every_nanosecond(face: Face, host: Path, atime: int, mtime: int) -> None:
    make(host, "file")
    face.utime(b"x", atime, mtime)
    st = on_host(host, b"x")
    assert (st.st_atime_ns, st.st_mtime_ns) == (atime, mtime)
    assert (face.lstat(b"x").st_atime_ns, face.lstat(b"x").st_mtime_ns) == (atime, mtime)


def test_utime_beyond_2038(face: Face, host: Path) -> None:
    make(host, "file")
    face.utime(b"x", 4_000_000_000_000_000_001, 4_000_000_000_000_000_002)
    assert on_host(host, b"x").st_mtime_ns == 4_000_000_000_000_000_002


def test_utime_omits(face: Face, host: Path) -> None:
    make(host, "file")
    os.utime(host / "x", ns=(111, 222))
    face.utime(b"x", OMIT, 333)
    assert (on_host(host, b"x").st_atime_ns, on_host(host, b"x").st_mtime_ns) == (111, 333)
    face.utime(b"x", 444, OMIT)
    assert (on_host(host, b"x").st_atime_ns, on_host(host, b"x").st_mtime_ns) == (444, 333)
    face.utime(b"x", OMIT, OMIT)
    assert (on_host(host, b"x").st_atime_ns, on_host(host, b"x").st_mtime_ns) == (444, 333)


def test_utime_now_is_the_hosts(face: Face, host: Path) -> None:
    make(host, "file")
    os.utime(host / "x", ns=(111, 222))
    face.utime(b"x", 333, NOW)
    st = on_host(host, b"x")
    assert st.st_atime_ns == 333
    assert st.st_mtime_ns > time.time_ns() - DAY_NS
    face.utime(b"x", NOW, OMIT)
    assert on_host(host, b"x").st_atime_ns > time.time_ns() - DAY_NS


def test_utime_of_a_symlink_itself(face: Face, host: Path) -> None:
    (host / "target").touch()
    os.utime(host / "target", ns=(1, 1))
    make(host, "symlink")
    face.utime(b"x", 5, 6)
    assert on_host(host, b"x").st_mtime_ns == 6
    assert on_host(host, b"target").st_mtime_ns == 1


def test_utime_of_what_is_not_there(face: Face) -> None:
    with refused(errno.ENOENT):
        face.utime(b"none", 0, 0)


def test_a_directory_knows_when_it_changed(face: Face, host: Path) -> None:
    make(host, "directory")
    os.utime(host / "x", ns=(0, 0))
    write(face, b"x/f")
    assert face.lstat(b"x").st_mtime_ns == on_host(host, b"x").st_mtime_ns > 0


# Extended attributes


@pytest.mark.parametrize("value", [b"", b"v", b"\0\xff\n", b"v" * 3000], ids=["empty", "short", "binary", "long"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_attribute_keeps_its_value(face: Face, host: Path, kind: str, value: bytes) -> None:
    make(host, kind)
    face.setxattr(b"x", b"user.name", value)
    assert face.getxattr(b"x", b"user.name") == os.getxattr(host / "x", "user.name") == value
    assert face.listxattr(b"x") == [b"user.name"]
    face.removexattr(b"x", b"user.name")
    assert os.listxattr(host / "x") == []


def test_attributes_are_listed(face: Face, host: Path) -> None:
    make(host, "file")
    assert face.listxattr(b"x") == []
    for n in range(20):
        os.setxattr(host / "x", f"user.{n:02}", b"v")
    assert sorted(face.listxattr(b"x")) == [b"user.%02d" % n for n in range(20)]


def test_an_attribute_is_replaced(face: Face, host: Path) -> None:
    make(host, "file")
    for value in (b"one", b"two", b""):
        face.setxattr(b"x", b"user.name", value)
        assert os.getxattr(host / "x", "user.name") == value


def test_create_and_replace_flags(face: Face, host: Path) -> None:
    make(host, "file")
    with refused(errno.ENODATA):
        face.setxattr(b"x", b"user.name", b"v", os.XATTR_REPLACE)
    assert os.listxattr(host / "x") == []
    face.setxattr(b"x", b"user.name", b"v", os.XATTR_CREATE)
    with refused(errno.EEXIST):
        face.setxattr(b"x", b"user.name", b"w", os.XATTR_CREATE)
    assert os.getxattr(host / "x", "user.name") == b"v"
    face.setxattr(b"x", b"user.name", b"w", os.XATTR_REPLACE)
    assert os.getxattr(host / "x", "user.name") == b"w"


def test_attributes_that_are_not_there(face: Face, host: Path) -> None:
    make(host, "file")
    with refused(errno.ENODATA):
        face.getxattr(b"x", b"user.none")
    with refused(errno.ENODATA):
        face.removexattr(b"x", b"user.none")
    for act in (face.listxattr, lambda path: face.getxattr(path, b"user.x")):
        with refused(errno.ENOENT):
            act(b"none")


def test_an_attribute_in_no_namespace(face: Face, host: Path) -> None:
    make(host, "file")
    with refused(errno.EOPNOTSUPP):
        face.setxattr(b"x", b"name", b"v")
    with refused(errno.ERANGE):
        face.setxattr(b"x", b"user." + b"n" * 251, b"v")


def test_a_symlink_has_no_user_attributes(face: Face, host: Path) -> None:
    (host / "target").touch()
    make(host, "symlink")
    with refused(errno.EPERM):
        face.setxattr(b"x", b"user.name", b"v")
    assert os.listxattr(host / "target") == []


def test_trusted_attributes_are_the_hosts(face: Face, host: Path) -> None:
    make(host, "file")
    os.setxattr(host / "x", "trusted.name", b"host")
    with refused(errno.EPERM):
        face.setxattr(b"x", b"trusted.name", b"guest")
    assert os.getxattr(host / "x", "trusted.name") == b"host"


def test_an_acl_is_kept_and_shows_in_the_mode(face: Face, host: Path) -> None:
    make(host, "file")
    (host / "x").chmod(0o640)
    # linux/posix_acl_xattr.h: a version; a tag, permissions and an id for the owner (rw), user 1000 (rwx),
    # the group (r), the mask (rwx) and others (none)
    entries = [(1, 6, -1), (2, 7, 1000), (4, 4, -1), (16, 7, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    face.setxattr(b"x", b"system.posix_acl_access", acl)
    assert face.getxattr(b"x", b"system.posix_acl_access") == os.getxattr(host / "x", "system.posix_acl_access") == acl
    assert kind_and_mode(host, b"x") == stat.S_IFREG | 0o670


# The file system


def test_statfs_tells_what_the_host_tells(face: Face, host: Path) -> None:
    make(host, "directory")
    for path in (b".", b"x"):
        ours, theirs = face.statfs(path), os.statvfs(host)
        assert ours.f_bsize == theirs.f_bsize
        assert (ours.f_bsize, ours.f_frsize, ours.f_blocks) == (
            theirs.f_bsize,
            theirs.f_frsize,
            theirs.f_blocks,
        )
        assert (ours.f_files, ours.f_namelen) == (theirs.f_files, theirs.f_namemax)
        assert 0 < ours.f_bavail <= ours.f_bfree < ours.f_blocks


def test_statfs_of_what_is_not_there(face: Face) -> None:
    with refused(errno.ENOENT):
        face.statfs(b"none")
