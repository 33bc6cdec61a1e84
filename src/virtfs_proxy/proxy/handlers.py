# SPDX-License-Identifier: Apache-2.0
"""One function a row of messages.py, named and parametrised as the row: what the request does, and what it returns.

Errors travel as exceptions to server.answer, which alone makes errnos of them.
"""

import errno
import os

from virtfs_proxy.names import Path, Text
from virtfs_proxy.proxy.session import Session

_SECOND = 1_000_000_000


def open(s: Session, path: Path, flags: int) -> int:  # noqa: A001 - the row says it, here and below
    return s.export.open(s.root, path, flags)


def create(s: Session, path: Path, flags: int, mode: int, uid: int, gid: int) -> int:
    return s.export.create(s.root, path, flags, mode, (uid, gid))


def mknod(s: Session, uid: int, gid: int, path: Path, mode: int, rdev: int) -> None:
    s.export.mknod(s.root, path, mode, rdev, (uid, gid))


def mkdir(s: Session, uid: int, gid: int, path: Path, mode: int) -> None:
    s.export.mkdir(s.root, path, mode, (uid, gid))


def symlink(s: Session, uid: int, gid: int, target: Text, path: Path) -> None:
    s.export.symlink(target, s.root, path, (uid, gid))


def link(s: Session, oldpath: Path, path: Path) -> None:
    s.export.link(s.root, oldpath, s.root, path)


def lstat(s: Session, path: Path) -> tuple[int, ...]:
    st = s.export.lstat(s.root, path)
    # As a sequence stat_result has the times in whole seconds (ints, though typeshed says float). Unpacking it costs
    # half of what its attributes do.
    mode, ino, dev, nlink, uid, gid, size, atime, mtime, ctime = st
    return (  # type: ignore[return-value]
        dev, ino, nlink, mode, uid, gid, st.st_rdev, size, st.st_blksize, st.st_blocks,
        atime, st.st_atime_ns % _SECOND, mtime, st.st_mtime_ns % _SECOND, ctime, st.st_ctime_ns % _SECOND,
    )  # fmt: skip


def readlink(s: Session, path: Path, size: int) -> tuple[bytes]:
    if size <= 1:  # readlink(2): bufsiz, which leaves room for the NUL here, must be positive
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return (s.export.readlink(s.root, path)[: size - 1],)


def statfs(s: Session, path: Path) -> tuple[int, ...]:
    return s.export.statfs(s.root, path)


def chmod(s: Session, path: Path, mode: int) -> None:
    s.export.chmod(s.root, path, mode)


def chown(s: Session, path: Path, uid: int, gid: int) -> None:
    s.export.chown(s.root, path, uid, gid)


def truncate(s: Session, path: Path, size: int) -> None:
    s.export.truncate(s.root, path, size)


def utime(s: Session, path: Path, atime_s: int, atime_ns: int, mtime_s: int, mtime_ns: int) -> None:
    s.export.utime(s.root, path, (atime_s, atime_ns, mtime_s, mtime_ns))


def rename(s: Session, oldpath: Path, path: Path) -> None:
    s.export.rename(s.root, oldpath, s.root, path)


def remove(s: Session, path: Path) -> None:
    s.export.remove(s.root, path)


def lgetxattr(s: Session, size: int, path: Path, name: Text) -> int | bytes:
    return _sized(s.export.lgetxattr(s.root, path, name), size)


def llistxattr(s: Session, size: int, path: Path) -> int | bytes:
    return _sized(s.export.llistxattr(s.root, path), size)


def lsetxattr(s: Session, path: Path, name: Text, value: bytes, size: int, flags: int) -> None:
    if not 0 <= size <= len(value):
        raise OSError(errno.EINVAL, "size is not within the value", path)
    s.export.lsetxattr(s.root, path, name, value[:size], flags)


def lremovexattr(s: Session, path: Path, name: Text) -> None:
    s.export.lremovexattr(s.root, path, name)


def getversion(s: Session, path: Path) -> tuple[int]:
    return (s.export.getversion(s.root, path),)


def _sized(value: bytes, size: int) -> int | bytes:
    """What getxattr(2) makes of a buffer's size: 0 asks for the length alone."""
    if size == 0:
        return len(value)
    if size < 0:
        raise OSError(errno.EINVAL, "negative size")
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
