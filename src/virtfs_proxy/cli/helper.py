# SPDX-License-Identifier: Apache-2.0
"""The command virtfs-proxy-helper: reads as the order of its start."""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

from virtfs_proxy import __version__
from virtfs_proxy.confine import capabilities
from virtfs_proxy.confine.plan import Plan
from virtfs_proxy.confine.stages import NEEDS, Unconfined, confine
from virtfs_proxy.export.caller import CAPABILITIES, before_confinement
from virtfs_proxy.export.passthrough import Export
from virtfs_proxy.proxy.server import serve, summary
from virtfs_proxy.proxy.session import Session
from virtfs_proxy.service import stdio
from virtfs_proxy.service.daemon import Parent, detach
from virtfs_proxy.service.errors import Fatal, errno_of
from virtfs_proxy.service.listen import Listener, inherited
from virtfs_proxy.service.log import LEVELS, Log
from virtfs_proxy.service.poll import Poll
from virtfs_proxy.service.signals import Stop, Stopped
from virtfs_proxy.service.stream import Hangup

NAME: Final = "virtfs-proxy-helper"
POLL_US: Final = 50
MAX_POLL_US: Final = 1000
MAX_ID: Final = 0xFFFFFFFE

Source = Listener | socket.socket


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    :returns: 0 when it ended as it should, 1 after a failure that it has reported.
    :raises SystemExit: 2 for a usage error, 0 for --help and --version.
    """
    options = parse(argv)
    log = Log(NAME, LEVELS[options.log_level])
    try:
        return run(options, log)
    except Fatal as failure:
        log.error(str(failure))
    except OSError as error:
        log.error(f"cannot start: {error}")
    return 1


def run(options: argparse.Namespace, log: Log) -> int:
    """Check, listen, detach, confine, serve."""
    require_privileges()
    stdio.ensure()
    directory = open_directory(options.path)
    stop = Stop()
    stop.install()  # from here on: a signal must not leave a socket behind
    with closing(open_source(options)) as source:
        parent = None if options.nodaemon else go_into_background(log)
        try:
            become_helper(directory, source, parent, log)
        except Fatal as failure:
            if not parent:
                raise
            parent.failed(str(failure))
            return 1
        if parent:
            parent.ready()
        log.info(f"{__version__} started for {options.path}")
        return serve_one(source, options.poll_us, stop, log)


def open_source(options: argparse.Namespace) -> Source:
    """Where the connection comes from. :raises Fatal: when it cannot be had."""
    if options.fd is not None:
        return inherited(options.fd)
    return Listener(os.fsencode(options.socket), (options.uid, options.gid), before_confinement)


def go_into_background(log: Log) -> Parent:
    """Returns in the daemon alone, with stdio and log where a daemon's belong. :raises Fatal: when there is no way."""
    try:
        parent = detach(log)
    except OSError as error:
        raise Fatal(f"cannot go into the background: {error.strerror}; -n stays in the foreground") from None
    stdio.silence(0, 1, *([2] if log.to_syslog() else []))
    return parent


def require_privileges() -> None:
    """:raises Fatal: naming what is missing and what it is needed for."""
    if os.geteuid() != 0:
        raise Fatal("must be started as root, to serve files of every owner; it drops what it does not need")
    missing = capabilities.missing(NEEDS | CAPABILITIES)
    if missing:
        raise Fatal(f"root here lacks {', '.join(missing)}: start it with these capabilities")


def open_directory(path: str) -> int:
    """Descriptor of the export. :raises Fatal: when it is missing or no directory."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise Fatal(f"path {path} is not a directory: name the directory to export") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Fatal(f"path {path}: {reason}: name the directory to export") from None


def become_helper(directory: int, source: Source, parent: Parent | None, log: Log) -> None:
    """Confine the process. :raises Fatal: when a stage fails."""
    keep = {source.fileno()} if isinstance(source, socket.socket) else source.descriptors()
    keep |= log.descriptors() | (parent.descriptors() if parent else set())
    try:
        confine(Plan(directory, frozenset(keep), tuple(CAPABILITIES)), log.debug)
    except Unconfined as failure:
        raise Fatal(f"cannot confine itself: {failure}") from None


def serve_one(source: Source, poll_us: int, stop: Stop, log: Log) -> int:
    """Serve one connection to its end. :returns: the exit status."""
    session = Session(Export(), log)
    status = 0
    try:
        if isinstance(source, Listener):
            stop.wait()
            connection = source.accept()
            stop.waiting = False
        else:
            connection = source
        log.info("client connected")
        with connection:
            serve(session, connection, Poll(connection, poll_us), stop)
        end = "client closed the connection"
    except Stopped as signal:
        end = f"stopped by {signal}"
    except Hangup as violation:
        log.warning(f"connection closed: {violation}")
        end, status = "closed the connection", 1
    except (BrokenPipeError, ConnectionResetError) as error:
        end = f"client is gone ({error.strerror})"
    except Exception as bug:  # noqa: BLE001 - the last place that can tell of it without Python's own traceback
        errno_of(bug, log)
        end, status = "ended by a bug", 1
    finally:
        stop.waiting = False
    log.info(f"{end}; {summary(session)}")
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options, checked for what can be told from them alone."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.socket is not None and options.fd is not None:
        parser.error("-s and -f cannot be used together: name a socket or pass a descriptor")
    if options.socket is None and options.fd is None:
        parser.error("neither -s nor -f: name a socket to listen on or pass a connected descriptor")
    owner = (options.uid, options.gid)
    if options.socket is not None and None in owner:
        parser.error("-s needs -u and -g: the user and group that may connect to the socket")
    if options.fd is not None and owner != (None, None):
        parser.error("-u and -g go with -s: who may use an inherited descriptor is decided already")
    return options


def make_parser() -> argparse.ArgumentParser:
    """The command's options; the manual page lists the same."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Serve one directory to the 9p 'proxy' driver of QEMU 1.1 to 9.1, confined to that directory.",
    )
    add = parser.add_argument
    add("-p", "--path", required=True, help="directory to export")
    add(
        "-f",
        "--fd",
        type=number("descriptor", 0x7FFFFFFF),
        metavar="SOCKET_ID",
        help="connected socket to serve",
    )
    add("-s", "--socket", metavar="SOCKET_FILE", help="unix socket to make and to serve one client on")
    add("-u", "--uid", type=user, help="user, name or number, that may connect to SOCKET_FILE")
    add("-g", "--gid", type=group, help="group, name or number, that may connect to SOCKET_FILE")
    add("-n", "--nodaemon", action="store_true", help="stay in the foreground and log to stderr")
    add("--log-level", choices=LEVELS, default="info", help="least of what is logged (default: %(default)s)")
    add(
        "--poll-us",
        type=number("time", MAX_POLL_US),
        default=POLL_US,
        metavar="US",
        help="microseconds to look for the next request before sleeping, where another CPU is free"
        " (default: %(default)s, 0: never)",
    )
    add("-v", "--version", action="version", version=f"{NAME} (virtfs-proxy) {__version__}")
    return parser


def number(what: str, limit: int) -> Callable[[str], int]:
    """An argparse type: a decimal number from 0 to limit."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) <= limit):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: a number from 0 to {limit}")
        return int(text)

    return convert


def user(text: str) -> int:
    """An argparse type: a user by name or number, as a uid."""
    if text.isascii() and text.isdigit():
        return number("user", MAX_ID)(text)
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a user, by name or number")
    import pwd  # only where a name has to be looked up

    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no user of this host") from None


def group(text: str) -> int:
    """An argparse type: a group by name or number, as a gid."""
    if text.isascii() and text.isdigit():
        return number("group", MAX_ID)(text)
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a group, by name or number")
    import grp  # as above

    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no group of this host") from None


if __name__ == "__main__":
    sys.exit(main())
