# SPDX-License-Identifier: Apache-2.0
"""One place where exceptions become errnos."""

import errno

from virtfs_proxy.codec import Malformed
from virtfs_proxy.service.log import Log


class Fatal(Exception):
    """What stops a command before or while it serves: one line that names the thing and what to do."""


def errno_of(error: Exception, log: Log) -> int:
    """The positive errno that tells a peer of an exception.

    OSError and Malformed carry theirs. ValueError and OverflowError are a number or string that Python's os refuses
    before the kernel can: EINVAL. Anything else is a bug: its traceback goes to the log, EIO to the peer.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, Malformed):
        return error.errno
    if isinstance(error, (ValueError, OverflowError)):
        return errno.EINVAL
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    log.bug(f"{type(error).__name__}: {error} at {whereabouts(error)}")
    return errno.EIO


def whereabouts(error: BaseException) -> str:
    """The frames of a traceback, innermost last, as names and lines alone.

    The module traceback would look for the lines' text: after chroot(2) that is a file of the guest's.
    """
    frames = []
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return " > ".join(frames)
