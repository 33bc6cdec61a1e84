# SPDX-License-Identifier: Apache-2.0
"""One place where exceptions become errnos."""

import errno
import traceback

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
    log.error("bug: " + "".join(traceback.format_exception(error)).strip().replace("\n", " | "))
    return errno.EIO
