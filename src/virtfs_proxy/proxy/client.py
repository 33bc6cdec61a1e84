# SPDX-License-Identifier: Apache-2.0
"""The driver side of the proxy protocol: to a helper what QEMU's hw/9pfs/9p-proxy.c is.

It is also the client of the benchmark, where every microsecond spent here hides a difference between two
helpers: each row's encoder is generated once (frames.py), a request is one send and its reply one receive.
"""

import contextlib
import errno
import io
import os
import socket
import struct
import threading
from typing import Any, Final, Literal, NamedTuple, NoReturn, Self, TypeAlias

from virtfs_proxy.codec import FIXED, Fields, Malformed, fields_of
from virtfs_proxy.proxy.frames import FRAMES
from virtfs_proxy.proxy.messages import (
    ERROR,
    FD,
    FD_VALID,
    HEADER,
    HEADER_SIZE,
    MAX_BODY,
    REQUESTS,
    SIZED,
    STATUS,
    SUCCESS,
)

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path below the export. A leading '/' is the export's root, an empty path '.'."""

Time: TypeAlias = int | Literal["now", "omit"]
"""Nanoseconds since the epoch, or one of the two words that utimensat(2) has for it."""

UTIME_NOW: Final = "now"
UTIME_OMIT: Final = "omit"
# linux/stat.h; as plain numbers they could not be told from a moment one second after the epoch.
_SPECIAL: Final = {UTIME_NOW: (0, (1 << 30) - 1), UTIME_OMIT: (0, (1 << 30) - 2)}

MAX_VALUE: Final = MAX_BODY - 2
"""Bytes of the longest attribute, or list of names, that a reply can carry."""

_PATH_MAX: Final = 4096
_SOCKET_PATH_MAX: Final = 107  # sun_path of linux/un.h, and a NUL
_NS: Final = 1_000_000_000


class Stat(NamedTuple):
    """What lstat(2) tells; times in nanoseconds since the epoch."""

    st_dev: int
    st_ino: int
    st_nlink: int
    st_mode: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int


class StatFS(NamedTuple):
    """What statfs(2) tells; sizes in blocks of ``f_bsize`` bytes. fsid0 and fsid1 are f_fsid."""

    f_type: int
    f_bsize: int
    f_blocks: int
    f_bfree: int
    f_bavail: int
    f_files: int
    f_ffree: int
    f_fsid0: int
    f_fsid1: int
    f_namelen: int
    f_frsize: int


class Entry(NamedTuple):
    """An entry of a directory, as getdents(2) tells it."""

    name: bytes
    inode: int
    is_dir: bool
    is_symlink: bool


_ROWS: Final = {row.name: row for row in REQUESTS}
_UNPACK: Final = {
    row.name: struct.Struct(HEADER[0] + "".join(FIXED[kind] for _, kind in fields_of(row.reply)))
    for row in REQUESTS
    if row.reply not in {STATUS, FD, SIZED} and all(kind in FIXED for _, kind in fields_of(row.reply))
}
_HEADER: Final = struct.Struct(HEADER)
_I32: Final = struct.Struct(HEADER[0] + "i")
_U16: Final = struct.Struct(HEADER[0] + "H")
# CMSG_LEN, not CMSG_SPACE, whose padding has room for one more: what the kernel has no room for it closes.
_ONE_FD: Final = socket.CMSG_LEN(4)


def _wire(path: AnyPath) -> bytes:
    """A path in the form that QEMU's driver sends: ``.`` or ``./a/b``.

    :raises ValueError: for a NUL byte, as every function of os.
    """
    raw = path if type(path) is bytes else os.fsencode(path)  # a quarter of a microsecond
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if raw[:2] == b"./":
        return raw
    raw = raw.lstrip(b"/")
    return b"./" + raw if raw and raw != b"." else b"."


def _timespec(time: Time) -> tuple[int, int]:
    return divmod(time, _NS) if isinstance(time, int) else _SPECIAL[time]


_MODES: Final = ("r", "w", "r+", "r")  # by flags & O_ACCMODE


def _file(fd: int, path: AnyPath, flags: int) -> io.FileIO:
    return io.FileIO(os.fspath(path), _MODES[flags & os.O_ACCMODE], opener=lambda _name, _flags: fd)


class ProxyClient:
    """A connection to a helper, usable from threads: one request at a time, as the protocol wants it.

    A method for each request does what the system call of its name does. It raises OSError with the helper's
    errno and the path as it was given, or ConnectionError once the helper hung up or sent what is no answer:
    that ends the connection for good, as in QEMU's driver.

    :param sock: a connected stream socket; the client owns it from here on.
    :raises TypeError: for a path, which :meth:`connect` takes.
    """

    def __init__(self, sock: socket.socket) -> None:
        if not hasattr(sock, "sendall"):
            raise TypeError("use ProxyClient.connect(path)")
        self._sock = sock
        self._lock = threading.Lock()
        self._buffer = bytearray(HEADER_SIZE + MAX_BODY)
        self._ended = ""

    @classmethod
    def connect(cls, path: AnyPath, timeout: float | None = None) -> "ProxyClient":
        """Connect to a helper's socket.

        :param timeout: seconds to wait for an answer, to connecting and to each request; None waits for ever.
        :raises OSError: as connect(2), with the path; ENAMETOOLONG for one of more than 107 bytes.
        """
        size = len(os.fsencode(path))
        if size > _SOCKET_PATH_MAX:
            text = (
                f"socket path is {size} bytes long, the kernel takes {_SOCKET_PATH_MAX}: use a shorter or relative one"
            )
            raise OSError(errno.ENAMETOOLONG, text, os.fspath(path))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                error.filename = os.fspath(path)
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hang up: the helper ends. A request under way in another thread gets ConnectionError."""
        self._hang_up("closed")

    def _hang_up(self, reason: str) -> None:
        self._ended = self._ended or reason
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # close(2) alone would leave a thread in recv(2)
        self._sock.close()

    def _fail(self, reason: str) -> NoReturn:
        self._hang_up(reason)
        raise ConnectionError(f"no connection to the helper: {self._ended}")

    def _lost(self, error: BaseException) -> NoReturn:
        """End the connection: after half an exchange, the next reply would be this request's."""
        if not isinstance(error, OSError):
            self._hang_up("a request was interrupted")
            raise error
        if not self._ended:
            self._hang_up(f"it hung up ({error.strerror})" if error.errno else f"no answer ({error})")
        raise ConnectionError(f"no connection to the helper: {self._ended}") from None

    def _receive(self, got: int, end: int) -> int:
        """Fill the buffer up to end, and take no more."""
        while got < end:
            more = self._sock.recv_into(memoryview(self._buffer)[got:end])
            if not more:
                self._fail("it hung up" + (" in the middle of a reply" if got else ""))
            got += more
        return got

    def exchange(self, frame: bytes) -> tuple[int, bytearray]:
        """Send a frame (see :mod:`virtfs_proxy.proxy.frames`) and return the type and body of its reply."""
        sock, buffer = self._sock, self._buffer
        with self._lock:
            try:
                sock.sendall(frame)
                got = sock.recv_into(buffer)
                if got < HEADER_SIZE:
                    got = self._receive(got, HEADER_SIZE)
                kind, size = _HEADER.unpack_from(buffer)
                if got != HEADER_SIZE + size:
                    if size > MAX_BODY:
                        self._fail(f"it announced a reply of {size} bytes")
                    if got > HEADER_SIZE + size:
                        self._fail(f"it sent {got - HEADER_SIZE - size} bytes too many")
                    self._receive(got, HEADER_SIZE + size)
                return kind, buffer[HEADER_SIZE : HEADER_SIZE + size]
            except BaseException as error:  # noqa: BLE001 - _lost always raises
                self._lost(error)

    def _ask(self, frame: bytes, name: AnyPath, other: AnyPath | None = None) -> bytearray:
        """Exchange a request for the body of a success.

        :raises OSError: the helper's refusal, with the names that the caller gave.
        """
        kind, body = self.exchange(frame)
        if kind == SUCCESS:
            return body
        if kind != ERROR or len(body) != 4:
            self._fail(f"it sent a reply of type {kind} and {len(body)} bytes")
        (status,) = _I32.unpack(body)
        if not -4096 < status < 0:
            self._fail(f"it refused a request with status {status}")
        raise _os_error(-status, name, other)

    def _status(self, frame: bytes, name: AnyPath, other: AnyPath | None = None) -> None:
        body = self._ask(frame, name, other)
        if body != b"\0\0\0\0":
            self._fail(f"it sent no status but {bytes(body[:16])!r}")

    def _fixed(self, row: str, path: AnyPath) -> tuple[int, ...]:
        body = self._ask(FRAMES[row](_wire(path)), path)
        fields = _UNPACK[row]
        if len(body) != fields.size:
            self._fail(f"it answered {row} with {len(body)} bytes")
        return fields.unpack(body)

    def _counted(self, frame: bytes, path: AnyPath) -> bytes:
        body = self._ask(frame, path)
        if len(body) < 2 or len(body) != 2 + _U16.unpack_from(body)[0]:
            self._fail(f"it answered with {len(body)} bytes that are no string")
        return bytes(body[2:])

    def _length(self, frame: bytes, path: AnyPath) -> int:
        body = self._ask(frame, path)
        if len(body) != 4:
            self._fail(f"it answered with {len(body)} bytes that are no length")
        return int(_I32.unpack(body)[0])

    def exchange_fd(self, frame: bytes, path: AnyPath) -> int:
        """Exchange a request for a descriptor, which the caller owns; close-on-exec is set.

        :raises OSError: ENFILE when it got lost on the way, as in QEMU's driver; usually too many are open.
        """
        sock, fd, data = self._sock, -1, b""
        with self._lock:
            try:
                sock.sendall(frame)
                while len(data) < 4:
                    part, extra, _, _ = sock.recvmsg(4 - len(data), _ONE_FD, socket.MSG_CMSG_CLOEXEC)
                    for _, _, payload in extra:
                        if fd < 0:
                            (fd,) = _I32.unpack(payload)
                        else:
                            os.close(*_I32.unpack(payload))
                    if not part:
                        self._fail("it hung up" + (" in the middle of a reply" if data else ""))
                    data += part
                (status,) = _I32.unpack(data)
                if status == FD_VALID and fd >= 0:
                    return fd
                if status != FD_VALID and (fd >= 0 or not -4096 < status < 0):
                    self._fail(f"it answered with status {status} and {'a' if fd >= 0 else 'no'} descriptor")
            except BaseException as error:  # noqa: BLE001 - _lost always raises
                if fd >= 0:
                    os.close(fd)
                self._lost(error)
        raise _os_error(errno.ENFILE if status == FD_VALID else -status, path)

    def open_fd(self, path: AnyPath, flags: int = os.O_RDONLY) -> int:
        """As open(2): a plain descriptor, for the caller to close."""
        return self.exchange_fd(FRAMES["open"](_wire(path), flags), path)

    def create_fd(self, path: AnyPath, flags: int, mode: int = 0o644, uid: int = 0, gid: int = 0) -> int:
        """As open(2) as uid:gid; flags hold O_CREAT. A plain descriptor, for the caller to close."""
        return self.exchange_fd(FRAMES["create"](_wire(path), flags, mode, uid, gid), path)

    def open(self, path: AnyPath, flags: int = os.O_RDONLY) -> io.FileIO:
        """Open: an unbuffered file object.

        :raises IsADirectoryError: for a directory; see :meth:`scandir` and :meth:`open_fd`.
        """
        return _file(self.open_fd(path, flags), path, flags)

    def create(
        self,
        path: AnyPath,
        flags: int = os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
    ) -> io.FileIO:
        """As open(2) as uid:gid, with a mode for what is new (umask 0): an unbuffered file object."""
        return _file(self.create_fd(path, flags, mode, uid, gid), path, flags)

    def scandir(self, path: AnyPath = ".") -> list[Entry]:
        """Entries of a directory, unsorted, without '.' and '..'."""
        fd = self.open_fd(path, os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return [
                    Entry(os.fsencode(e.name), e.inode(), e.is_dir(follow_symlinks=False), e.is_symlink())
                    for e in entries
                ]
        finally:
            os.close(fd)

    def listdir(self, path: AnyPath = ".") -> list[bytes]:
        """Names in a directory, unsorted, without '.' and '..'."""
        fd = self.open_fd(path, os.O_DIRECTORY)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def mknod(self, path: AnyPath, mode: int, rdev: int = 0, uid: int = 0, gid: int = 0) -> None:
        """Make a node as uid:gid; mode holds its type."""
        self._status(FRAMES["mknod"](uid, gid, _wire(path), mode, rdev), path)

    def mkdir(self, path: AnyPath, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make a directory as uid:gid, with umask 0."""
        self._status(FRAMES["mkdir"](uid, gid, _wire(path), mode), path)

    def symlink(self, target: AnyPath, path: AnyPath, uid: int = 0, gid: int = 0) -> None:
        """Make a symlink as uid:gid; the target is stored as it is."""
        self._status(FRAMES["symlink"](uid, gid, os.fsencode(target), _wire(path)), target, path)

    def link(self, oldpath: AnyPath, path: AnyPath) -> None:
        """Give a file one more name; a symlink itself gets it, not what it points to."""
        self._status(FRAMES["link"](_wire(oldpath), _wire(path)), oldpath, path)

    def lstat(self, path: AnyPath) -> Stat:
        """Status of a file, or of a symlink itself."""
        r = self._fixed("lstat", path)
        return Stat._make((*r[:10], r[10] * _NS + r[11], r[12] * _NS + r[13], r[14] * _NS + r[15]))

    def readlink(self, path: AnyPath) -> bytes:
        """A symlink's target."""
        return self._counted(FRAMES["readlink"](_wire(path), _PATH_MAX), path)

    def statfs(self, path: AnyPath = ".") -> StatFS:
        """Status of the file system that a path is on."""
        return StatFS._make(self._fixed("statfs", path))

    def chmod(self, path: AnyPath, mode: int) -> None:
        """Change the mode, of what a symlink points to where it is one."""
        self._status(FRAMES["chmod"](_wire(path), mode), path)

    def chown(self, path: AnyPath, uid: int, gid: int) -> None:
        """Change the owner, of a symlink itself; -1 leaves one alone."""
        self._status(FRAMES["chown"](_wire(path), uid & 0xFFFFFFFF, gid & 0xFFFFFFFF), path)

    def truncate(self, path: AnyPath, size: int) -> None:
        """Set the length in bytes, of what a symlink points to where it is one."""
        self._status(FRAMES["truncate"](_wire(path), size), path)

    def utime(self, path: AnyPath, atime_ns: Time, mtime_ns: Time) -> None:
        """Set the times, of a symlink itself."""
        self._status(FRAMES["utime"](_wire(path), *_timespec(atime_ns), *_timespec(mtime_ns)), path)

    def rename(self, oldpath: AnyPath, path: AnyPath) -> None:
        """Rename, over what is there."""
        self._status(FRAMES["rename"](_wire(oldpath), _wire(path)), oldpath, path)

    def remove(self, path: AnyPath) -> None:
        """Remove a file or an empty directory."""
        self._status(FRAMES["remove"](_wire(path)), path)

    def lgetxattr(self, path: AnyPath, name: str | bytes) -> bytes:
        """An extended attribute's value.

        :raises OSError: ERANGE for a value of more than :data:`MAX_VALUE` bytes, beside the kernel's own.
        """
        return self._counted(FRAMES["lgetxattr"](MAX_VALUE, _wire(path), os.fsencode(name)), path)

    def lgetxattr_size(self, path: AnyPath, name: str | bytes) -> int:
        """As Length of an extended attribute's value in bytes."""
        return self._length(FRAMES["lgetxattr"](0, _wire(path), os.fsencode(name)), path)

    def llistxattr(self, path: AnyPath) -> list[bytes]:
        """Names of extended attributes."""
        return self._counted(FRAMES["llistxattr"](MAX_VALUE, _wire(path)), path).split(b"\0")[:-1]

    def llistxattr_size(self, path: AnyPath) -> int:
        """As Length of the list of names in bytes, with a NUL behind each."""
        return self._length(FRAMES["llistxattr"](0, _wire(path)), path)

    def lsetxattr(self, path: AnyPath, name: str | bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; flags: os.XATTR_CREATE or os.XATTR_REPLACE."""
        frame = FRAMES["lsetxattr"](_wire(path), os.fsencode(name), bytes(value), len(value), flags)
        self._status(frame, path)

    def lremovexattr(self, path: AnyPath, name: str | bytes) -> None:
        """Remove an extended attribute."""
        self._status(FRAMES["lremovexattr"](_wire(path), os.fsencode(name)), path)

    def getversion(self, path: AnyPath) -> int:
        """Generation of an inode (FS_IOC_GETVERSION), 0 on a file system that has none."""
        return self._fixed("getversion", path)[0]

    def call(self, name: str, /, **fields: Any) -> dict[str, Any] | bytes | int:
        """Send a row's request with its fields as they are, unchecked: what a test of a helper wants.

        :returns: a descriptor; 0 for a status; a length, or bytes, of an attribute; else the reply's fields.
        :raises OSError: the helper's refusal; ENOBUFS for fields longer than a body.
        """
        row = _ROWS[name]
        frame = FRAMES[name](**fields)
        where = fields.get("path", b"")
        if row.reply == FD:
            return self.exchange_fd(frame, where)
        if row.reply == STATUS:
            self._status(frame, where)
            return 0
        if row.reply == SIZED:
            return self._counted(frame, where) if fields["size"] else self._length(frame, where)
        try:
            return Fields(HEADER[0], row.reply).unpack(bytes(self._ask(frame, where)))
        except Malformed as error:
            self._fail(f"it answered {name} with what is no answer: {error}")


def _os_error(code: int, name: AnyPath, other: AnyPath | None = None) -> OSError:
    if other is None:
        return OSError(code, os.strerror(code), os.fspath(name))
    return OSError(code, os.strerror(code), os.fspath(name), None, os.fspath(other))


__all__ = [
    "MAX_VALUE", "UTIME_NOW", "UTIME_OMIT", "AnyPath", "Entry", "ProxyClient", "Stat", "StatFS", "Time",
]  # fmt: skip
