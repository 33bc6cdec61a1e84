# SPDX-License-Identifier: Apache-2.0
"""The commands of `virtfs client` that look into an export and change it; client.py has those that copy."""

import contextlib
import errno
import stat
import sys
from collections.abc import Iterator

from virtfs_proxy.cli.client import listing
from virtfs_proxy.cli.client.session import (
    Args,
    Failed,
    Session,
    base,
    emit,
    into,
    is_dir,
    join,
    outside,
    shown,
    told,
    umask,
    walk,
)
from virtfs_proxy.proxy.client import ProxyClient


def ls(s: Session, args: Args) -> None:
    """List directories, and whatever else is named."""
    for n, path in enumerate(args.path):
        with s.each():
            names, places = [path], [path]
            if stat.S_ISDIR(s.client.lstat(path).st_mode) and not args.directory:
                names = sorted(name for name in s.client.listdir(path) if args.all or name[:1] != b".")
                places = [join(path, name) for name in names]
                if len(args.path) > 1:
                    emit(b"\n" * bool(n) + shown(path) + b":")
            if args.long or args.numeric:
                _ls_long(s.client, names, places, args)
            else:
                for name in names:
                    emit(shown(name))


def _ls_long(client: ProxyClient, names: list[bytes], places: list[bytes], args: Args) -> None:
    rows, ends = [], []
    for name, place in zip(names, places, strict=True):
        try:
            st = client.lstat(place)
            arrow = b" -> " + shown(client.readlink(place)) if stat.S_ISLNK(st.st_mode) else b""
        except FileNotFoundError:
            if place in args.path:
                raise
            continue  # removed since it was listed
        rows.append(listing.row(st, numeric=args.numeric))
        ends.append(b" " + shown(name) + arrow)
    for line, end in zip(listing.align(rows, left="023"), ends, strict=True):
        emit(line.encode() + end)


def tree(s: Session, args: Args) -> None:
    """Draw what is in a directory, and in the directories in it."""
    try:
        "├│└─".encode(sys.stdout.encoding)
        tee, end, bar = "├── ", "└── ", "│   "
    except UnicodeEncodeError:
        tee, end, bar = "|-- ", "`-- ", "|   "
    emit(shown(args.path))
    # A stack: what a directory holds is read only when its turn has come.
    todo = [(args.path, b"", "", True)]
    while todo:
        path, name, lead, is_directory = todo.pop()
        if name:
            emit(lead.encode(sys.stdout.encoding) + shown(name))
            lead = lead[:-4] + (bar if lead.endswith(tee) else "    ")
        if not is_directory:
            continue
        with s.each():
            entries = sorted(s.client.scandir(path), reverse=True)
            below = [(join(path, e.name), e.name, lead + tee, e.is_dir) for e in entries]
            todo += [(*below[0][:2], lead + end, below[0][3]), *below[1:]] if below else []


def stat_(s: Session, args: Args) -> None:
    """Show all that lstat tells."""
    for path in args.path:
        with s.each():
            st = s.client.lstat(path)
            arrow = " -> " + listing.escape(s.client.readlink(path)) if stat.S_ISLNK(st.st_mode) else ""
            emit(listing.sheet(listing.escape(path) + arrow, st).encode(sys.stdout.encoding, "backslashreplace"))


def df(s: Session, args: Args) -> None:
    """Show how full the file system is."""
    rows = [["Size" if args.human else "1K-blocks", "Used", "Avail", "Use%", "Path"]]
    for path in args.path:
        with s.each():
            show = listing.human if args.human else (lambda size: str(size >> 10))
            rows.append([*listing.space(s.client.statfs(path), show), listing.escape(path)])
    for line in listing.align(rows, left="4") if len(rows) > 1 else []:
        emit(line.rstrip().encode(sys.stdout.encoding, "backslashreplace"))


def mkdir(s: Session, args: Args) -> None:
    """Make directories."""
    for path in args.path:
        with s.each():
            for way in _ways(path) if args.parents else []:
                if not is_dir(s.client, way):
                    s.client.mkdir(way, 0o777 & ~umask(), *args.owner)
            if not (args.parents and is_dir(s.client, path)):
                s.client.mkdir(path, args.mode, *args.owner)


def _ways(path: bytes) -> list[bytes]:
    """The directories on the way to a path, the topmost first."""
    names = path.strip(b"/").split(b"/")
    return [b"/".join(names[:n]) for n in range(1, len(names))]


def rm(s: Session, args: Args) -> None:
    """Remove files; directories and all in them, where that is asked for."""
    for path in args.path:
        with s.each():
            if not base(path):
                raise Failed(f"{listing.escape(path)}: will not remove the export itself")
            if args.force and not _exists(s.client, path):
                continue
            if not is_dir(s.client, path):
                s.client.remove(path)
                continue
            if not args.recursive:
                raise Failed(f"{listing.escape(path)}: a directory (use -r)")
            for place, _ in reversed(list(walk(s.client, path))):
                s.client.remove(place)


def _exists(client: ProxyClient, path: bytes) -> bool:
    try:
        client.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def mv(s: Session, args: Args) -> None:
    """Rename, or move into a directory."""
    if len(args.source) > 1 and not is_dir(s.client, args.path):
        raise Failed(f"{listing.escape(args.path)}: not a directory")
    for source in args.source:
        with s.each():
            s.client.rename(source, into(s.client, args.path, source))


def ln(s: Session, args: Args) -> None:
    """Make a hard link, or a symlink with any text as its target."""
    if not args.symbolic and (wrong := outside(args.target)):
        raise Failed(f"{listing.escape(args.target)}: {wrong}")
    place = into(s.client, args.path, args.target)
    if args.symbolic:
        s.client.symlink(args.target, place, *args.owner)
    else:
        s.client.link(args.target, place)


def chmod(s: Session, args: Args) -> None:
    """Change modes; a symlink has none of its own, and is left alone on the way down."""
    for path in args.path:
        with s.each():
            places = walk(s.client, path) if args.recursive else [(path, s.client.lstat(path).st_mode)]
            for place, mode in places:
                if not (args.recursive and stat.S_ISLNK(mode)):
                    s.client.chmod(place, listing.new_mode(args.mode, mode, umask()))


def chown(s: Session, args: Args) -> None:
    """Change owners, of a symlink itself."""
    for path in args.path:
        with s.each():
            for place in [place for place, _ in walk(s.client, path)] if args.recursive else [path]:
                s.client.chown(place, *args.owner)


_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")


@contextlib.contextmanager
def _attribute(args: Args) -> Iterator[None]:
    """Say of a name what its errno does not."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Failed(f"{listing.escape(args.path)}: no attribute {listing.escape(args.name)}") from None
        if error.errno == errno.EOPNOTSUPP and not args.name.startswith(_NAMESPACES):
            example = listing.escape(b"user." + args.name)
            raise Failed(f"{told(error)}; names need a namespace, as in {example}") from None
        raise


def xattr_list(s: Session, args: Args) -> None:
    """List the names of extended attributes."""
    for name in sorted(s.client.llistxattr(args.path)):
        emit(shown(name))


def xattr_get(s: Session, args: Args) -> None:
    """Write an extended attribute's value to stdout."""
    with _attribute(args):
        value = s.client.lgetxattr(args.path, args.name)
    if sys.stdout.isatty():
        emit(shown(value))
    else:
        sys.stdout.buffer.write(value)


def xattr_set(s: Session, args: Args) -> None:
    """Set an extended attribute."""
    with _attribute(args):
        s.client.lsetxattr(args.path, args.name, args.value)


def xattr_rm(s: Session, args: Args) -> None:
    """Remove an extended attribute."""
    with _attribute(args):
        s.client.lremovexattr(args.path, args.name)


__all__ = [
    "chmod", "chown", "df", "ln", "ls", "mkdir", "mv", "rm", "stat_", "tree", "xattr_get", "xattr_list",
    "xattr_rm", "xattr_set",
]  # fmt: skip
