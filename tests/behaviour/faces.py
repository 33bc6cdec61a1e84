# SPDX-License-Identifier: Apache-2.0
"""What a face's client must offer to be run through the table, and an adapter for each client there is.

A new face adds its adapter to FACES; the cases know none of them. Paths are bytes, relative to the export.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from virtfs_proxy.proxy.client import ProxyClient, StatFS, Time
from virtfs_proxy.proxy.client import Stat as Stat  # noqa: PLC0414 - the cases take it from here

Owner = tuple[int, int]
ROOT: Owner = (0, 0)
USER: Owner = (1000, 2000)
"""Somebody else; no such account is needed."""


class Handle(Protocol):
    """An open file."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def read(self, size: int, offset: int) -> bytes: ...

    def write(self, data: bytes, offset: int) -> int: ...

    def append(self, data: bytes) -> int:
        """Write to a handle that was opened with O_APPEND."""
        ...

    def truncate(self, size: int) -> None: ...

    def fsync(self) -> None: ...


class Face(Protocol):
    """A directory as a guest has it. What creates takes its owner, and a mode that no umask changes."""

    def open(self, path: bytes, flags: int) -> Handle: ...

    def create(self, path: bytes, flags: int = ..., mode: int = ..., owner: Owner = ...) -> Handle:
        """O_CREAT is always among the flags."""
        ...

    def mkdir(self, path: bytes, mode: int = ..., owner: Owner = ...) -> None: ...

    def mknod(self, path: bytes, mode: int, rdev: int = ..., owner: Owner = ...) -> None: ...

    def symlink(self, target: bytes, path: bytes, owner: Owner = ...) -> None: ...

    def link(self, old: bytes, new: bytes) -> None: ...

    def lstat(self, path: bytes) -> Stat: ...

    def readlink(self, path: bytes) -> bytes: ...

    def statfs(self, path: bytes) -> StatFS: ...

    def chmod(self, path: bytes, mode: int) -> None: ...

    def chown(self, path: bytes, uid: int, gid: int) -> None: ...

    def truncate(self, path: bytes, size: int) -> None: ...

    def utime(self, path: bytes, atime_ns: Time, mtime_ns: Time) -> None: ...

    def rename(self, old: bytes, new: bytes) -> None: ...

    def remove(self, path: bytes) -> None:
        """Remove a file or an empty directory."""
        ...

    def listdir(self, path: bytes) -> list[bytes]:
        """Names, without '.' and '..'."""
        ...

    def getxattr(self, path: bytes, name: bytes) -> bytes: ...

    def listxattr(self, path: bytes) -> list[bytes]: ...

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = ...) -> None: ...

    def removexattr(self, path: bytes, name: bytes) -> None: ...


class Descriptor:
    """A handle that is a descriptor of our own: the proxy protocol passes one, and no data."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def write(self, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd, data, offset)

    def append(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def fsync(self) -> None:
        os.fsync(self.fd)


class ProxyFace:
    """The face of `virtfs-proxy-helper`, by ProxyClient."""

    def __init__(self, client: ProxyClient) -> None:
        self.client = client
        self.link = client.link
        self.lstat = client.lstat
        self.readlink = client.readlink
        self.statfs = client.statfs
        self.chmod = client.chmod
        self.chown = client.chown
        self.truncate = client.truncate
        self.utime = client.utime
        self.rename = client.rename
        self.remove = client.remove
        self.listdir = client.listdir
        self.getxattr = client.lgetxattr
        self.listxattr = client.llistxattr
        self.setxattr = client.lsetxattr
        self.removexattr = client.lremovexattr

    def open(self, path: bytes, flags: int) -> Descriptor:
        return Descriptor(self.client.open_fd(path, flags))

    def create(
        self, path: bytes, flags: int = os.O_RDWR | os.O_EXCL, mode: int = 0o644, owner: Owner = ROOT
    ) -> Descriptor:
        return Descriptor(self.client.create_fd(path, flags | os.O_CREAT, mode, *owner))

    def mkdir(self, path: bytes, mode: int = 0o755, owner: Owner = ROOT) -> None:
        self.client.mkdir(path, mode, *owner)

    def mknod(self, path: bytes, mode: int, rdev: int = 0, owner: Owner = ROOT) -> None:
        self.client.mknod(path, mode, rdev, *owner)

    def symlink(self, target: bytes, path: bytes, owner: Owner = ROOT) -> None:
        self.client.symlink(target, path, *owner)


@contextlib.contextmanager
def proxy(command: Sequence[str], export: Path, log: Path) -> Iterator[Face]:
    """A helper on one half of a socketpair, its client on the other; both end as they should."""
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "-n", "-p", str(export), "-f", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    ours.settimeout(20)
    try:
        with ProxyClient(ours) as client:
            yield ProxyFace(client)
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(10)
    assert "Traceback" not in log.read_text()


FACES = {"proxy": proxy}
