# SPDX-License-Identifier: Apache-2.0
"""Every operation on the directory served, as the kernel does it.

A place is (dir_fd, path) as in the *at() calls: dir_fd is a directory's descriptor or AT_FDCWD, path is relative to
it. Nothing here looks at the path: it is confined by the process's root (confine/root.py) and by what it took to
become a :class:`~virtfs_proxy.names.Path`. All functions raise OSError as the kernel says.
"""

import os
from types import TracebackType

from virtfs_proxy import linux
from virtfs_proxy.export.caller import Caller, as_caller
from virtfs_proxy.export.opening import STRIPPED, open_file
from virtfs_proxy.linux import AT_FDCWD
from virtfs_proxy.names import Path, Text

_SECOND = 1_000_000_000
_NO_ID = 0xFFFFFFFF
_HAS_GETVERSION = frozenset(
    (linux.EXT2_SUPER_MAGIC, linux.BTRFS_SUPER_MAGIC, linux.XFS_SUPER_MAGIC, linux.REISERFS_SUPER_MAGIC)
)


class Export:
    """The directory served: the working directory of the process when this is made.

    :raises OSError: as statfs(2).
    """

    __slots__ = ("has_getversion",)
    ROOT = AT_FDCWD

    def __init__(self) -> None:
        self.has_getversion = linux.statfs(b".")[0] in _HAS_GETVERSION

    def open(self, dir_fd: int, path: Path, flags: int) -> int:
        """open(2) of what exists; see :func:`~virtfs_proxy.export.opening.open_file`."""
        return open_file(dir_fd, path, flags & ~STRIPPED)

    def create(self, dir_fd: int, path: Path, flags: int, mode: int, who: Caller) -> int:
        """open(2) as who, which makes the file when flags has O_CREAT."""
        with as_caller(who):
            return open_file(dir_fd, path, flags, mode)

    def mknod(self, dir_fd: int, path: Path, mode: int, rdev: int, who: Caller) -> None:
        """mknodat(2) as who. Of mode the kernel's umode_t holds 16 bits."""
        with as_caller(who):
            os.mknod(path, mode & 0xFFFF, rdev, dir_fd=dir_fd)

    def mkdir(self, dir_fd: int, path: Path, mode: int, who: Caller) -> None:
        """mkdirat(2) as who."""
        with as_caller(who):
            os.mkdir(path, mode & 0o7777, dir_fd=dir_fd)

    def symlink(self, target: Text, dir_fd: int, path: Path, who: Caller) -> None:
        """symlinkat(2) as who."""
        with as_caller(who):
            os.symlink(target, path, dir_fd=dir_fd)

    def link(self, old_dir_fd: int, old: Path, dir_fd: int, path: Path) -> None:
        """linkat(2); a symbolic link is linked itself."""
        os.link(old, path, src_dir_fd=old_dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)

    def lstat(self, dir_fd: int, path: Path) -> os.stat_result:
        """fstatat(2), AT_SYMLINK_NOFOLLOW."""
        return os.lstat(path, dir_fd=dir_fd)

    def readlink(self, dir_fd: int, path: Path) -> bytes:
        """readlinkat(2), the whole target."""
        return os.readlink(path, dir_fd=dir_fd)

    def statfs(self, dir_fd: int, path: Path) -> tuple[int, ...]:
        """statfs(2); see :func:`virtfs_proxy.linux.statfs`."""
        if dir_fd == AT_FDCWD:
            return linux.statfs(path)
        with standing_in(dir_fd):
            return linux.statfs(path)

    def chmod(self, dir_fd: int, path: Path, mode: int) -> None:
        """fchmodat(2): follows a link, below the root of the process."""
        os.chmod(path, mode & 0o7777, dir_fd=dir_fd)

    def chown(self, dir_fd: int, path: Path, uid: int, gid: int) -> None:
        """fchownat(2), AT_SYMLINK_NOFOLLOW; an id of 2**32 - 1 is left alone."""
        owner, group = (-1 if i == _NO_ID else i for i in (uid, gid))
        os.chown(path, owner, group, dir_fd=dir_fd, follow_symlinks=False)

    def truncate(self, dir_fd: int, path: Path, size: int) -> None:
        """truncate(2): opens nothing, so that a FIFO or a device is refused by the kernel."""
        if dir_fd == AT_FDCWD:
            os.truncate(path, size)
            return
        with standing_in(dir_fd):
            os.truncate(path, size)

    def utime(self, dir_fd: int, path: Path, times: tuple[int, int, int, int]) -> None:
        """utimensat(2), AT_SYMLINK_NOFOLLOW.

        :param times: atime's seconds and nanoseconds, then mtime's; UTIME_NOW and UTIME_OMIT as nanoseconds.
        """
        a_s, a_ns, m_s, m_ns = times
        if 0 <= a_ns < _SECOND and 0 <= m_ns < _SECOND:  # os.utime takes this faster than ctypes would
            ns = (a_s * _SECOND + a_ns, m_s * _SECOND + m_ns)
            os.utime(path, ns=ns, dir_fd=dir_fd, follow_symlinks=False)
        else:
            linux.utimensat(dir_fd, path, times, linux.AT_SYMLINK_NOFOLLOW)

    def rename(self, old_dir_fd: int, old: Path, dir_fd: int, path: Path) -> None:
        """renameat(2)."""
        os.rename(old, path, src_dir_fd=old_dir_fd, dst_dir_fd=dir_fd)

    def remove(self, dir_fd: int, path: Path) -> None:
        """remove(3): unlinkat(2) of a file, of an empty directory with AT_REMOVEDIR."""
        try:
            os.unlink(path, dir_fd=dir_fd)
        except IsADirectoryError:
            os.rmdir(path, dir_fd=dir_fd)

    def lgetxattr(self, dir_fd: int, path: Path, name: Text) -> bytes:
        """lgetxattr(2), the whole value."""
        if dir_fd == AT_FDCWD:
            return os.getxattr(path, name, follow_symlinks=False)
        with standing_in(dir_fd):
            return os.getxattr(path, name, follow_symlinks=False)

    def llistxattr(self, dir_fd: int, path: Path) -> bytes:
        """llistxattr(2): the names, a NUL behind each."""
        with standing_in(dir_fd):
            names = os.listxattr(path, follow_symlinks=False)
        return b"".join(os.fsencode(name) + b"\0" for name in names)

    def lsetxattr(self, dir_fd: int, path: Path, name: Text, value: bytes, flags: int) -> None:
        """lsetxattr(2)."""
        with standing_in(dir_fd):
            os.setxattr(path, name, value, flags, follow_symlinks=False)

    def lremovexattr(self, dir_fd: int, path: Path, name: Text) -> None:
        """lremovexattr(2)."""
        with standing_in(dir_fd):
            os.removexattr(path, name, follow_symlinks=False)

    def getversion(self, dir_fd: int, path: Path) -> int:
        """FS_IOC_GETVERSION of a regular file or directory; 0 with no ioctl where the export's root has none.

        :raises OSError: as :func:`~virtfs_proxy.export.opening.open_file`, or ENOTTY.
        """
        if not self.has_getversion:
            return 0
        fd = open_file(dir_fd, path, os.O_RDONLY)
        try:
            return linux.getversion(fd)
        finally:
            os.close(fd)


class standing_in:  # noqa: N801 - reads as the statement it is
    """The working directory of a block, for calls that have no *at() form. AT_FDCWD costs nothing.

    :raises OSError: as fchdir(2). A process that cannot get back aborts: the next request would go elsewhere.
    """

    __slots__ = ("back", "dir_fd")

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd

    def __enter__(self) -> None:
        if self.dir_fd == AT_FDCWD:
            return
        self.back = os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchdir(self.dir_fd)
        except OSError:
            os.close(self.back)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.dir_fd == AT_FDCWD:
            return
        try:
            os.fchdir(self.back)
        except OSError:
            os.abort()
        os.close(self.back)
