# SPDX-License-Identifier: Apache-2.0
"""What the commands of `virtfs client` share: the connection, signals, output, errors, paths."""

import argparse
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Final

from virtfs_proxy.cli.client import listing
from virtfs_proxy.proxy.client import ProxyClient

PROG: Final = "virtfs client"

Args = argparse.Namespace


class Failed(Exception):
    """A command cannot do what it was asked to; the text says why."""


class Interrupted(BaseException):
    """A signal asked the command to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """A signal becomes :class:`Interrupted`, but for a while it can be held.

    An exchange that is broken off ends the connection, and with it every chance to tidy up in the export.
    """

    held = False
    waiting = 0

    @classmethod
    def arrived(cls, signum: int, _frame: FrameType | None) -> None:
        """Raise it, or note it while held; the second one gets through, should the helper not answer."""
        if not cls.held or cls.waiting:
            raise Interrupted(signum)
        cls.waiting = signum

    @classmethod
    @contextlib.contextmanager
    def hold(cls) -> Iterator[None]:
        """Let no signal in before the block is through."""
        cls.held = True
        try:
            yield
        finally:
            cls.held = False
            signum, cls.waiting = cls.waiting, 0
        if signum:
            raise Interrupted(signum)


class Session:
    """A connection, and whether all went well on it."""

    def __init__(self, client: ProxyClient) -> None:
        self.client = client
        self.failed = False

    def complain(self, text: str) -> None:
        """Say in one line what went wrong."""
        self.failed = True
        complain(text)

    @contextlib.contextmanager
    def each(self) -> Iterator[None]:
        """One of several things to do: if it fails, the others are done all the same."""
        try:
            yield
        except (ConnectionError, Interrupted):
            raise
        except OSError as error:
            self.complain(told(error))
        except Failed as error:
            self.complain(str(error))


def complain(text: str) -> None:
    """Write one line to stderr, behind what was written to stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()
    if sys.stderr is not None:  # print() would take stdout instead
        print(f"{PROG}: {text}", file=sys.stderr, flush=True)


def told(error: OSError) -> str:
    """An error as a person expects it: names, then what is wrong."""
    names = [os.fsencode(name) for name in (error.filename, error.filename2) if name is not None]
    what = error.strerror or str(error)
    return f"{' -> '.join(map(listing.escape, names))}: {what}" if names else what


_CONNECTING: Final = {
    errno.ENOENT: "no helper waits there; start one with virtfs-proxy-helper -s (it ends with its first connection)",
    errno.ECONNREFUSED: "no helper listens there",
    errno.ENOTSOCK: "no helper listens there",
    errno.EPROTOTYPE: "no helper listens there",
}


def unconnected(error: OSError) -> str:
    """Why there is no connection, and what to do about it."""
    advice = _CONNECTING.get(error.errno or 0)
    return f"{told(error)}: {advice}" if advice else told(error)


@contextlib.contextmanager
def naming(path: bytes) -> Iterator[None]:
    """An error in the block names this path, not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            error.filename, error.filename2 = path, None
        raise


def shown(name: bytes) -> bytes:
    """A name as it is written to stdout: itself, but harmless where that is a terminal."""
    return listing.escape(name).encode(sys.stdout.encoding, "backslashreplace") if sys.stdout.isatty() else name


def emit(line: bytes) -> None:
    """Write a line to stdout."""
    sys.stdout.buffer.write(line + b"\n")


def join(top: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return top.rstrip(b"/") + b"/" + name if top not in {b"", b"."} else name


def base(path: bytes) -> bytes:
    """The last name of a path, trailing slashes aside; empty for a directory that has none, '.' or '..'."""
    name = os.path.basename(path.rstrip(b"/"))
    return name if name not in {b".", b".."} else b""


def outside(path: bytes) -> str:
    """What is wrong with a path that has '..' in it, empty for any other: the helper takes none."""
    return "'..' is not allowed: paths are inside the export" if b".." in path.split(b"/") else ""


def umask() -> int:
    """The caller's umask, which the helper does not know."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_dir(client: ProxyClient, path: bytes) -> bool:
    """Whether there is a directory of that path."""
    try:
        return stat.S_ISDIR(client.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def into(client: ProxyClient, path: bytes, source: bytes) -> bytes:
    """Where cp, mv and ln put a source: under its own name in path, where that is a directory."""
    name = base(source)
    return join(path, name) if name and is_dir(client, path) else path


def walk(client: ProxyClient, top: bytes) -> Iterator[tuple[bytes, int]]:
    """All from top down as (path, st_mode), each directory before what is in it."""
    todo = [top]
    while todo:
        path = todo.pop()
        mode = client.lstat(path).st_mode
        yield path, mode
        if stat.S_ISDIR(mode):
            todo.extend(sorted((join(path, name) for name in client.listdir(path)), reverse=True))


__all__ = [
    "PROG", "Args", "Failed", "Interrupted", "Session", "Signals", "base", "complain", "emit", "into",
    "is_dir", "join", "naming", "outside", "shown", "told", "umask", "unconnected", "walk",
]  # fmt: skip
