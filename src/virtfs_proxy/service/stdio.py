# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0, 1 and 2: never closed, since the next file opened would take their place."""

import os


def ensure() -> None:
    """Open /dev/null on stdio's numbers where the parent left them closed: a socket there would be taken for stdio."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.dup(fd)
    os.close(fd)


def silence(*numbers: int) -> None:
    """/dev/null on some of stdio's numbers."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)
