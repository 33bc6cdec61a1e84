# SPDX-License-Identifier: Apache-2.0
"""Opening what a peer names: regular files and directories, at once or not at all.

Should: give open(2)'s answer for a regular file or a directory.
Must not: open a device, a FIFO or a socket (CVE-2023-2861: a guest opened the host's devices, and a FIFO stalled the
helper for ever), follow a link in the last component, block, or let a flag through that does more than open a file.
"""

import errno
import os
import stat
from typing import Final

from virtfs_proxy.names import Path

ALLOWED: Final = (
    os.O_ACCMODE  # what the file is opened for
    | os.O_CREAT | os.O_EXCL | os.O_TRUNC  # what it takes to create one (for CREATE alone, see STRIPPED)
    | os.O_APPEND | os.O_DIRECT | os.O_DSYNC | os.O_SYNC  # how the holder's own reads and writes behave
    | os.O_DIRECTORY  # narrows what may be opened
    | os.O_NOATIME  # backups in a guest; the kernel asks for owner or CAP_FOWNER
    | os.O_NONBLOCK  # set here in any case; kept on the descriptor when asked for
)  # fmt: skip
"""Flags from the wire that reach the kernel. Dropped without a word, as the kernel drops what it doesn't know:
O_NOCTTY (no terminal is ever opened), O_ASYNC (signals), O_LARGEFILE (always on), bits without a name."""

STRIPPED: Final = os.O_CREAT | os.O_EXCL
"""Dropped from OPEN, which opens what exists: nothing is made without a caller to own it."""

_NOT_SERVED: Final = os.O_PATH | (os.O_TMPFILE & ~os.O_DIRECTORY)
_S_IFMT: Final = 0o170000  # stat.S_IFMT as a number: no call
_ALWAYS: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_HARMLESS: Final = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK))


def open_file(dir_fd: int, path: Path, flags: int, mode: int = 0) -> int:
    """openat(2) of a regular file or a directory; the caller owns the descriptor.

    :param flags: O_*; those not in ALLOWED are dropped.
    :param mode: permission bits of what O_CREAT makes; other bits are dropped, as the kernel does.
    :raises OSError: as openat(2) says. ENXIO: a device, FIFO or socket. ELOOP: a symbolic link. EINVAL: O_PATH or
        O_TMPFILE, which give descriptors that are no open file. EAGAIN: a lease on the file is being broken
        (fcntl(2) F_SETLEASE); try again.
    """
    if flags & _NOT_SERVED:
        raise OSError(errno.EINVAL, "O_PATH and O_TMPFILE are not served", path)
    # Two flags make the kernel refuse what is not harmless before it opens anything: nothing is left to look at.
    sure = flags & os.O_DIRECTORY or flags & STRIPPED == STRIPPED
    if not sure:
        _refuse_special(dir_fd, path, flags)
    fd = os.open(path, flags & ALLOWED | _ALWAYS, mode & 0o7777, dir_fd=dir_fd)
    try:
        # Another process may have put something else there since: then it was opened, unblockingly, and goes now.
        if not sure and os.fstat(fd)[0] & _S_IFMT not in _HARMLESS:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
        if not flags & os.O_NONBLOCK:
            os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_special(dir_fd: int, path: Path, flags: int) -> None:
    try:
        kind = os.lstat(path, dir_fd=dir_fd)[0] & _S_IFMT
    except OSError:
        if flags & os.O_CREAT:
            return  # to the kernel, which says what it thinks of making something there
        raise
    if kind not in _HARMLESS:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
