# SPDX-License-Identifier: Apache-2.0
"""The command `virtfs client`: a person looks into an export, and works in it, without a guest.

A helper serves one connection and ends with it, so that a session may be one command or many.
"""

import argparse
import contextlib
import errno
import io
import os
import re
import shlex
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, TypeAlias

from virtfs_proxy.cli.client import commands, listing
from virtfs_proxy.cli.client.session import (
    PROG,
    Args,
    Failed,
    Interrupted,
    Session,
    Signals,
    base,
    complain,
    into,
    is_dir,
    join,
    naming,
    outside,
    told,
    umask,
    unconnected,
)
from virtfs_proxy.proxy.client import ProxyClient

CHUNK: Final = 1 << 20
BAR_FROM: Final = 32 << 20
"""Bytes from which a transfer is worth a progress bar."""


def pump(source: io.FileIO, sink: IO[bytes] | io.FileIO, name: bytes) -> None:
    """Copy to the end of source, with a progress bar where somebody can see it."""
    buffer = memoryview(bytearray(CHUNK))
    with _bar(name, os.fstat(source.fileno()).st_size) as update:
        while got := source.readinto(buffer):
            done = 0
            while done < got:
                done += sink.write(buffer[done:got]) or 0
            update(got)


@contextlib.contextmanager
def _bar(name: bytes, total: int) -> Iterator[Callable[[int], Any]]:
    if total >= BAR_FROM and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):  # it comes with virtfs-proxy[client]
            from tqdm import tqdm

            with tqdm(desc=listing.escape(name), total=total, unit="B", unit_scale=True, leave=False) as bar:
                yield bar.update
                return
    yield lambda _: None


def open_regular(client: ProxyClient, path: bytes) -> io.FileIO:
    """Open a file for reading, if it is one; whatever came, reading it blocks nobody."""
    try:
        file = client.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # our helper opens no FIFO and no device
            raise Failed(f"{listing.escape(path)}: not a regular file") from None
        if error.errno == errno.ELOOP and stat.S_ISLNK(client.lstat(path).st_mode):
            advice = "a symbolic link, which is not followed here; name its target (ls -l)"
            raise Failed(f"{told(error)}: {advice}") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Failed(f"{listing.escape(path)}: not a regular file")
    return file


def cat(s: Session, args: Args) -> None:
    """Write files to stdout."""
    for path in args.path:
        with s.each(), open_regular(s.client, path) as file:
            pump(file, sys.stdout.buffer, path)


def put_file(client: ProxyClient, source: io.FileIO, path: bytes, mode: int, owner: tuple[int, int]) -> None:
    """Store a file under a temporary name, and under its own once it is whole."""
    parent, name = os.path.split(path)
    part = join(parent, b".%b.%08x" % (name[:200], int.from_bytes(os.urandom(4), "little")))
    made = False
    try:
        with naming(path), Signals.hold():
            target = client.create(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777 & ~umask(), *owner)
            made = True
        with target:
            pump(source, target, path)
        with naming(path), Signals.hold():
            client.rename(part, path)
            made = False
    except BaseException:
        with Signals.hold(), contextlib.suppress(OSError):
            if made:
                client.remove(part)
        raise


def _put_one(client: ProxyClient, local: bytes, path: bytes, owner: tuple[int, int]) -> None:
    mode = os.lstat(local).st_mode
    if stat.S_ISDIR(mode):
        if not is_dir(client, path):
            client.mkdir(path, mode & 0o777 & ~umask(), *owner)
    elif stat.S_ISLNK(mode):
        with contextlib.suppress(FileNotFoundError):
            if not is_dir(client, path):
                client.remove(path)
        client.symlink(os.readlink(local), path, *owner)
    elif stat.S_ISREG(mode):
        with io.FileIO(local) as source:
            put_file(client, source, path, mode, owner)
    else:
        raise Failed(f"{listing.escape(local)}: neither file nor directory nor symlink")


def put(s: Session, args: Args) -> None:
    """Copy into the export; what is replaced is replaced at once."""
    if args.local == b"-":
        put_file(s.client, io.FileIO(0, closefd=False), args.remote, 0o666, args.owner)
        return
    top = into(s.client, args.remote, args.local)
    if not os.path.isdir(args.local):
        with io.FileIO(args.local) as source:
            put_file(s.client, source, top, os.fstat(source.fileno()).st_mode, args.owner)
        return
    if not args.recursive:
        raise Failed(f"{listing.escape(args.local)}: a directory (use -r)")
    todo = [(args.local, top)]
    while todo:
        local, path = todo.pop()
        with s.each():
            _put_one(s.client, local, path, args.owner)
            if not os.path.islink(local) and os.path.isdir(local):
                names = sorted(os.listdir(local), reverse=True)
                todo += [(os.path.join(local, name), join(path, name)) for name in names]


def get_file(client: ProxyClient, path: bytes, local: bytes) -> None:
    """Fetch a file to a temporary name, and to its own once it is whole."""
    with open_regular(client, path) as source:
        parent, name = os.path.split(local)
        part = b""
        try:
            with naming(local), Signals.hold():
                fd, part = tempfile.mkstemp(prefix=b".%b." % name[:200], dir=parent or b".")
            with io.FileIO(fd, "w") as sink:
                pump(source, sink, path)
                os.fchmod(fd, os.fstat(source.fileno()).st_mode & 0o777 & ~umask())
            with naming(local), Signals.hold():
                os.replace(part, local)
                part = b""
        except BaseException:
            # Suppressed, for what is raised here would hide what ended the copy; a second signal isn't held.
            with Signals.hold(), contextlib.suppress(OSError):
                if part:
                    os.unlink(part)
            raise


def _get_one(client: ProxyClient, path: bytes, mode: int, local: bytes) -> None:
    if stat.S_ISDIR(mode):
        # Not through a symlink that an earlier copy may have brought.
        if os.path.islink(local) or not os.path.isdir(local):
            os.mkdir(local)
    elif stat.S_ISLNK(mode):
        if os.path.islink(local):
            os.unlink(local)
        os.symlink(client.readlink(path), local)
    else:
        get_file(client, path, local)


def get(s: Session, args: Args) -> None:
    """Copy out of the export."""
    if args.local == b"-":
        cat(s, Args(path=[args.remote]))
        return
    name, top = base(args.remote), args.local
    if name and os.path.isdir(top):
        top = os.path.join(top, name)
    if not is_dir(s.client, args.remote):
        get_file(s.client, args.remote, top)
        return
    if not args.recursive:
        raise Failed(f"{listing.escape(args.remote)}: a directory (use -r)")
    todo = [(args.remote, top)]
    while todo:
        path, local = todo.pop()
        with s.each():
            mode = s.client.lstat(path).st_mode
            _get_one(s.client, path, mode, local)
            if stat.S_ISDIR(mode):
                below = sorted(s.client.listdir(path), reverse=True)
                todo += [(join(path, name), os.path.join(local, name)) for name in below]


def _owner(text: str) -> tuple[int, int]:
    try:
        return listing.owner(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _new_owner(text: str) -> tuple[int, int]:
    uid, gid = _owner(text)
    return (os.geteuid() if uid < 0 else uid, os.getegid() if gid < 0 else gid)


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"no octal mode {text!r}")
    return int(text, 8)


def _mode(text: str) -> str:
    try:
        listing.new_mode(text, 0, 0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


Argument: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]
Table: TypeAlias = "dict[str, tuple[Callable[[Session, Args], None], str, list[Argument]] | Table]"


def _flag(*names: str, say: str) -> Argument:
    return names, {"action": "store_true", "help": say}


def _given(text: str) -> bytes:
    if not text:  # of a shell variable that is not set: it must not mean the whole export
        raise argparse.ArgumentTypeError("an empty path")
    return os.fsencode(text)


def _inside(text: str) -> bytes:
    path = _given(text)
    if wrong := outside(path):
        raise argparse.ArgumentTypeError(wrong)
    return path


def _path(name: str, **options: Any) -> Argument:
    return (name,), {"type": _inside, "metavar": name.upper(), **options}


_LOCAL: Final = _path("local", type=_given)
_NAME: Final = _path("name", type=_given)
_PATHS: Final = _path("path", nargs="+")
_RECURSIVE: Final = _flag("-r", "-R", "--recursive", say="directories and all in them")
_OWNER: Final[Argument] = (
    ("--owner",),
    {"type": _new_owner, "default": ":", "metavar": "UID:GID", "help": "whose it will be (you)"},
)
COMMANDS: Final[Table] = {
    "ls": (
        commands.ls,
        "list a directory",
        [
            _flag("-l", "--long", say="mode, links, owner, group, size, time; a symlink's target"),
            _flag("-a", "--all", say="also names that begin with a dot"),
            _flag("-n", "--numeric", say="as -l, with owner and group as numbers"),
            _flag("-d", "--directory", say="a directory itself, not what is in it"),
            _path("path", nargs="*", default=[b"."]),
        ],
    ),
    "tree": (commands.tree, "draw a directory and all in it", [_path("path", nargs="?", default=b".")]),
    "stat": (commands.stat_, "show all that lstat tells", [_PATHS]),
    "cat": (cat, "write files to stdout", [_PATHS]),
    "put": (put, "copy into the export", [_RECURSIVE, _OWNER, _LOCAL, _path("remote")]),
    "get": (get, "copy out of the export", [_RECURSIVE, _path("remote"), _LOCAL]),
    "mkdir": (
        commands.mkdir,
        "make directories",
        [
            _flag("-p", "--parents", say="also those on the way; none is there is no error"),
            (("-m", "--mode"), {"type": _octal, "default": "755", "help": "octal (755)"}),
            _OWNER,
            _PATHS,
        ],
    ),
    "rm": (
        commands.rm,
        "remove",
        [_RECURSIVE, _flag("-f", "--force", say="what is missing is no error"), _PATHS],
    ),
    "mv": (commands.mv, "rename, or move into a directory", [_path("source", nargs="+"), _path("path")]),
    "ln": (
        commands.ln,
        "make a link",
        [_flag("-s", "--symbolic", say="a symlink"), _OWNER, _path("target", type=_given), _path("path")],
    ),
    "chmod": (
        commands.chmod,
        "change modes",
        [_RECURSIVE, (("mode",), {"type": _mode, "metavar": "MODE"}), _PATHS],
    ),
    "chown": (
        commands.chown,
        "change owners",
        [_RECURSIVE, (("owner",), {"type": _owner, "metavar": "[USER][:GROUP]"}), _PATHS],
    ),
    "xattr": {
        "list": (commands.xattr_list, "names of extended attributes", [_path("path")]),
        "get": (commands.xattr_get, "write a value to stdout", [_path("path"), _NAME]),
        "set": (
            commands.xattr_set,
            "set a value",
            [_path("path"), _NAME, _path("value", type=os.fsencode)],
        ),
        "rm": (commands.xattr_rm, "remove an extended attribute", [_path("path"), _NAME]),
    },
    "df": (
        commands.df,
        "show how full the file system is",
        [_flag("-h", "--human", say="sizes as 1.5G"), _path("path", nargs="*", default=[b"."])],
    ),
}


def _add(parser: argparse.ArgumentParser, table: Table) -> argparse.ArgumentParser:
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", title="commands", prog=parser.prog)
    for name, entry in table.items():
        if isinstance(entry, dict):
            _add(verbs.add_parser(name, help="list, get, set, rm: extended attributes"), entry)
            continue
        run, say, arguments = entry
        with_help = all("-h" not in names for names, _ in arguments)
        verb = verbs.add_parser(name, help=say, description=run.__doc__, allow_abbrev=False, add_help=with_help)
        if not with_help:
            verb.add_argument("--help", action="help", help="show this help message and exit")
        verb.set_defaults(run=run)
        for names, options in arguments:
            verb.add_argument(*names, **options)
    return parser


def _perform(s: Session, args: Args) -> None:
    try:
        args.run(s, args)
    except Failed as error:
        s.complain(str(error))
    except ConnectionError:
        raise
    except OSError as error:
        s.complain(told(error))
    sys.stdout.flush()


def _lines(prompt: str) -> Iterator[str]:
    """Lines from stdin, to the end of it or `exit`; with a prompt and line editing for a person."""
    if prompt:
        import readline  # noqa: F401 - input() uses it
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names are bytes, here as among the arguments
    while True:
        try:
            line = input(prompt) if prompt else sys.stdin.readline()
        except EOFError:
            return
        except Interrupted as error:
            if not prompt or error.signum != signal.SIGINT:
                raise
            line = "\n"
            print()
        if (not line and not prompt) or line.strip() in {"exit", "quit"}:
            return
        yield line


def _converse(s: Session, parser: argparse.ArgumentParser) -> int:
    """Run commands from stdin; where no person sits there, the first failure ends it."""
    person = sys.stdin.isatty()
    for line in _lines("virtfs> " if person else ""):
        status = 0
        try:
            words = shlex.split(line, comments=True)
            if words:
                _perform(s, parser.parse_args(words if words != ["help"] else ["--help"]))
        except ValueError as error:  # of shlex
            complain(str(error))
            status = 2
        except SystemExit as error:  # of argparse, which has said why
            status = int(error.code or 0)
        if not person and (status or s.failed):
            return status or 1
        s.failed = False
    return 0


def _closed(args: Args | None) -> str:
    """Which stream the shell closed that is needed: the connection would get its descriptor."""
    if sys.stdin is None and (args is None or (args.run is put and args.local == b"-")):
        return "input"
    return "output" if sys.stdout is None else ""


def _serve(socket: str, parser: argparse.ArgumentParser, args: Args | None) -> int:
    try:
        connection = ProxyClient.connect(socket)
    except OSError as error:
        complain(unconnected(error))
        return 1
    with connection as client:
        s = Session(client)
        if args is None:
            return _converse(s, parser)
        _perform(s, args)
        return int(s.failed)


def _no_socket(word: str) -> bool:
    """Whether the first word shows that the socket was forgotten."""
    if word.startswith("-"):
        return word not in {"-h", "--help"}
    return word in COMMANDS and not os.path.lexists(word)


_ABOUT: Final = """\
Look into the export behind a helper's socket, and work in it.
Without COMMAND, commands are read from stdin, one a line, quoted as for a shell."""


def main(argv: list[str] | None = None) -> int:
    """Run one command, or those on stdin.

    :param argv: arguments without the names of the program and the subcommand; None takes sys.argv.
    :returns: the exit status: 1 for a failure, 2 for a usage error, 128 and its number for a signal.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = f"{PROG} SOCKET [COMMAND ...]"
    parser = _add(argparse.ArgumentParser(prog=f"{PROG} SOCKET", usage=usage, description=_ABOUT), COMMANDS)
    if not argv or _no_socket(argv[0]):
        parser.error("SOCKET, the path of a helper's socket, comes first")
    socket, *words = argv
    if socket.startswith("-"):  # --help
        words = [socket]
    args = parser.parse_args(words) if words else None
    if closed := _closed(args):
        complain(f"standard {closed} is closed")
        return 1
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup(1)
            signal.signal(signum, Signals.arrived)
    try:
        return _serve(socket, parser, args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        return 128 + signal.SIGPIPE
    except Interrupted as error:
        return 128 + error.signum
    except OSError as error:
        complain(told(error))
        return 1
