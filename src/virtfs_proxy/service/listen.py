# SPDX-License-Identifier: Apache-2.0
"""Sockets that a service is reached by: one it makes, or one it was given."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from virtfs_proxy.service import stdio
from virtfs_proxy.service.errors import Fatal

MAX_SOCKET_PATH: Final = 107  # sizeof(sun_path) in linux/un.h, less the NUL
_MODE: Final = 0o770


class Listener:
    """A listening unix socket, and the name that leads to it, which is taken away again.

    :param path: must not exist; at most MAX_SOCKET_PATH bytes.
    :param owner: (uid, gid) that may connect, besides root.
    :param as_owner: a context manager that gives new files to owner.
    :raises Fatal: when the socket cannot be made; what stands at path is left as it was.
    """

    def __init__(
        self, path: bytes, owner: tuple[int, int], as_owner: Callable[[tuple[int, int]], AbstractContextManager[None]]
    ) -> None:
        shown = os.fsdecode(path)
        if len(path) > MAX_SOCKET_PATH:
            long = f"{len(path)} bytes long, the kernel takes {MAX_SOCKET_PATH}; choose a shorter one"
            raise Fatal(f"socket path is {long}: {shown}")
        if not os.path.basename(path):
            raise Fatal(f"socket {shown!r} has no name: give the path of a file that does not exist yet")
        if os.path.lexists(path):
            raise Fatal(f"socket {shown} already exists: remove it if no helper is using it, or choose another name")
        directory, self._name = os.path.split(path)
        self._identity: tuple[int, int] | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._directory = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.socket.close()
            where = os.fsdecode(directory or b".")
            raise Fatal(
                f"cannot make socket {shown}: {where}: {error.strerror}; name a directory that exists"
            ) from None
        try:
            self._bind(owner, as_owner)
            self.socket.listen(1)
        except OSError as error:
            self.close()
            raise Fatal(f"cannot make socket {shown}: {error.strerror}") from None

    def _bind(
        self, owner: tuple[int, int], as_owner: Callable[[tuple[int, int]], AbstractContextManager[None]]
    ) -> None:
        # bind(2) makes the file with the mode of the socket's own inode, as whoever calls: the name belongs to its
        # owner alone from the first instant on (unix_bind_bsd in the kernel's net/unix/af_unix.c).
        os.fchmod(self.socket.fileno(), 0o600)
        # The directory is the one that was opened, and the file is held by a descriptor from here on: whoever owns a
        # directory on the way could put links in their places.
        with _standing_in(self._directory), as_owner(owner):
            self.socket.bind(self._name)
        held = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            made = os.fstat(held)
            if not stat.S_ISSOCK(made.st_mode) or made.st_uid != owner[0]:
                raise OSError(0, "something else was put in its place")
            self._identity = (made.st_dev, made.st_ino)
            itself = f"/proc/self/fd/{held}"
            os.chown(itself, *owner)  # a set-group-ID directory has given it another group
            try:
                os.removexattr(itself, "system.posix_acl_access")  # a default ACL may name others
            except OSError:
                pass  # there was none
            os.chmod(itself, _MODE)
        finally:
            os.close(held)

    def accept(self) -> socket.socket:
        """Take one connection, then close the socket and remove its name: there is never a second one."""
        connection, _ = self.socket.accept()
        self.close()
        return connection

    def close(self) -> None:
        """Stop listening and remove the name if it still is this socket's."""
        self.socket.close()
        if self._directory < 0:
            return
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            pass  # gone already: QEMU unlinks it once connected
        os.close(self._directory)
        self._directory = -1

    def descriptors(self) -> set[int]:
        """What must stay open for :meth:`accept` and :meth:`close` to work."""
        return {self.socket.fileno(), self._directory}


@contextmanager
def _standing_in(directory: int) -> Iterator[None]:
    back = os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(directory)
        try:
            yield
        finally:
            os.fchdir(back)
    finally:
        os.close(back)


def inherited(fd: int) -> socket.socket:
    """A connected unix stream socket that the parent left open, taken over.

    :raises Fatal: when fd is anything else; it is left open then.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        raise Fatal(f"descriptor {fd} is not open: pass the number of an inherited socket") from None
    if not stat.S_ISSOCK(mode):
        raise Fatal(f"descriptor {fd} is not a socket: pass one half of a socketpair(2)")
    sock = socket.socket(fileno=fd)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise Fatal(f"descriptor {fd} is not an AF_UNIX stream socket: pass one half of a socketpair(2)")
    try:
        sock.getpeername()
    except OSError:
        sock.detach()
        raise Fatal(f"descriptor {fd} is not connected: pass one half of a socketpair(2)") from None
    sock.setblocking(True)
    if fd <= 2:  # it came as stdio, whose numbers are /dev/null's from now on
        moved = sock.dup()
        stdio.silence(sock.detach())
        sock = moved
    os.set_inheritable(sock.fileno(), False)
    return sock
