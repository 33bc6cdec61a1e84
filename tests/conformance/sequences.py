# SPDX-License-Identifier: Apache-2.0
"""Requests for the differential run: strategies that collide on few names, and bodies that nobody should send.

Paths are templates: `Sent.at` puts them below the directory of one sequence, so that one pair of helpers serves many.
"""

import os
import stat
from typing import Any, NamedTuple

from hypothesis import strategies as st
from tests.conformance.peer import ROWS, body_of

PATHS = ("path", "oldpath")
PLACE = b"%P"
"""In a symlink's target: the sequence's directory."""


class Sent(NamedTuple):
    """A request. ``cut`` drops so many bytes of its body, ``trailing`` adds some."""

    name: str
    values: dict[str, Any]
    cut: int = 0
    trailing: bytes = b""

    def at(self, place: bytes) -> "Sent":
        """The request below *place*."""
        values = dict(self.values)
        for field in PATHS:
            if field in values:
                values[field] = _put(values[field], place)
        if "target" in values:
            values["target"] = values["target"].replace(PLACE, place)
        return self._replace(values=values)

    def body(self) -> bytes:
        """The body's bytes."""
        body = body_of(self.name, **self.values)
        return body[: max(0, len(body) - self.cut)] + self.trailing

    @property
    def well_formed(self) -> bool:
        """Whether the body is as long as its fields."""
        return not self.cut and not self.trailing

    def paths(self) -> list[bytes]:
        """The values that are paths."""
        return [self.values[field] for field, kind in ROWS[self.name].items() if kind == "path"]

    def texts(self) -> list[bytes]:
        """The values that are texts."""
        return [self.values[field] for field, kind in ROWS[self.name].items() if kind == "text"]


def _put(path: bytes, place: bytes) -> bytes:
    if not path:
        return path
    return b"/" + place + path if path.startswith(b"/") else place + b"/" + path


def _often(common: list[Any], rare: list[Any], weight: int = 12) -> st.SearchStrategy[Any]:
    """Mostly of the first list; simplest first, for shrinking."""
    return st.integers(0, weight).flatmap(lambda n: st.sampled_from(rare if n == weight else common))


path = _often(
    [b"f", b"d", b"l", b"a", b"b", b"d/a"],
    [
        b"p", b"c", b"d/b", b"a/b", b"b/d", b"l/a", b"f/", b"a//", b".", b"./a", b"a/", b"d//b", b"d/.", b"\xff\xc3(",
        b"n" * 255, b"n" * 256, b"a/" * 2040 + b"a", b"a" * 5000,
        b"", b"/a", b"/", b"//f\0", b"..a", b"a/..", b"d/../a", b"a/../b/..", b"a\0", b"a\0b", b"\0", b"d/\0\0",
    ],
)  # fmt: skip
target = _often(
    [b"a", b"f", b"d", b"d/b", b"/" + PLACE + b"/a", b"../" + PLACE + b"/d"],
    [b"missing", b".", b"/nowhere/else", b"\xff", b"t" * 4095, b"t" * 4096, b"", b"a\0b"],
)  # fmt: skip
mode = _often(
    [0o644, 0o755, 0o600, 0o777],
    [0, 0o7777, 0o2775, 0o4755, 0o2745, 0o1777, 0o100644, 0o107777, 0xFFFFFFFF, 0xFFFF0000],
    weight=4,
)
caller = _often(
    [(0, 0), (1000, 1000), (1234, 5), (5, 0)],
    [(0, 5), (0x7FFFFFFF, 0x80000000), (0xFFFFFFFE, 1), (0xFFFFFFFF, 5), (5, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)],
)
owner = st.sampled_from([0, 1000, 5, 0xFFFFFFFF, 0x80000000, 0xFFFFFFFE])
kind = st.sampled_from(
    [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, 0, stat.S_IFDIR, stat.S_IFLNK]
)
node_mode = st.tuples(kind, mode).map(lambda parts: parts[0] | parts[1] & 0o7777)
rdev = _often([os.makedev(1, 3), 0, os.makedev(1, 5)], [1 << 32, (1 << 64) - 1, os.makedev(240, 70_000)])
length = _often([0, 1, 5, 4096, 100_000], [1 << 40, -1, (1 << 63) - 1, -(1 << 63), 1 << 44, 1 << 43])
seconds = _often([0, 10**9, 1_234_567_890], [-1, 1 << 31, -(1 << 31), 1 << 33, 1 << 34, (1 << 63) - 1, -(1 << 63)])
nanoseconds = _often(
    [0, 1, 999_999_999, 123_456_789], [(1 << 30) - 1, (1 << 30) - 2, 10**9, -1, 1 << 40, -(1 << 63)], weight=4
)
ACL = bytes.fromhex("02000000 01000600ffffffff 02000600e8030000 04000400ffffffff 10000600ffffffff 20000000ffffffff")
attribute = _often(
    [b"user.a", b"user.b", b"system.posix_acl_access"],
    [
        b"user.\xff", b"trusted.a", b"security.a", b"system.posix_acl_default", b"nonsense", b"user.",
        b"user." + b"n" * 251, b"", b"user.\0",
    ],
)  # fmt: skip
value = _often([b"", b"v", b"\0\xff", ACL, b"x" * 100], [b"y" * 3000, b"z" * 5000, b"w" * 60_000])
size = _often([0, 4, 100, 65535], [1, 2, 65536, 70_000, 0x7FFFFFFF, -1, -(1 << 31)])

FLAGS = {name: getattr(os, name) for name in (
    "O_APPEND", "O_TRUNC", "O_DIRECTORY", "O_NONBLOCK", "O_NOFOLLOW", "O_NOATIME", "O_SYNC", "O_DSYNC", "O_DIRECT",
    "O_CLOEXEC", "O_NOCTTY", "O_ASYNC", "O_EXCL", "O_CREAT", "O_PATH", "O_TMPFILE",
)} | {"O_LARGEFILE": 0o100000, "bit 30": 1 << 30, "bit 31": 1 << 31}  # fmt: skip
_access = st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_ACCMODE])
_extra = st.lists(st.sampled_from(list(FLAGS.values())), max_size=2)
flags = st.builds(lambda access, extra: access | sum(set(extra)), _access, _extra)
create_flags = st.builds(
    lambda access, base, extra: access | base | sum({*extra} - {os.O_CREAT, os.O_EXCL}),
    _access,
    _often([os.O_CREAT, os.O_CREAT | os.O_EXCL], [0], weight=8),
    _extra,
)


@st.composite
def _row(draw: st.DrawFn, name: str, /, **fields: st.SearchStrategy[Any]) -> Sent:
    return Sent(name, {field: draw(values) for field, values in fields.items()})


@st.composite
def _called(draw: st.DrawFn, name: str, /, **fields: st.SearchStrategy[Any]) -> Sent:
    """A request that carries a caller."""
    uid, gid = draw(caller)
    return Sent(name, {field: draw(values) for field, values in fields.items()} | {"uid": uid, "gid": gid})


@st.composite
def _with_value(draw: st.DrawFn) -> Sent:
    """LSETXATTR with the value's size, or one that is off."""
    content = draw(value)
    off = draw(_often([0], [-1, 1, 100, -(1 << 31), 70_000], weight=6))
    return Sent(
        "lsetxattr",
        {
            "path": draw(path), "name": draw(attribute), "value": content,
            "size": len(content) + off if abs(off) < 60_000 else off,
            "flags": draw(_often([0], [1, 2, 3, 4], weight=3)),
        },
    )  # fmt: skip


create = _called("create", path=path, flags=create_flags, mode=mode)
mkdir = _called("mkdir", path=path, mode=mode)
mknod = _called("mknod", path=path, mode=node_mode, rdev=rdev)
symlink = _called("symlink", target=target, path=path)
link = _row("link", oldpath=path, path=path)
open_ = _row("open", path=path, flags=flags)
lstat = _row("lstat", path=path)
readlink = _row("readlink", path=path, size=size)
statfs = _row("statfs", path=path)
chmod = _row("chmod", path=path, mode=mode)
chown = _row("chown", path=path, uid=owner, gid=owner)
truncate = _row("truncate", path=path, size=length)
utime = _row("utime", path=path, atime_s=seconds, atime_ns=nanoseconds, mtime_s=seconds, mtime_ns=nanoseconds)
rename = _row("rename", oldpath=path, path=path)
remove = _row("remove", path=path)
lgetxattr = _row("lgetxattr", size=size, path=path, name=attribute)
llistxattr = _row("llistxattr", size=size, path=path)
lsetxattr = _with_value()
lremovexattr = _row("lremovexattr", path=path, name=attribute)
getversion = _row("getversion", path=path)

GROUPS: tuple[tuple[st.SearchStrategy[Any], ...], ...] = (
    (create, mkdir, mknod, symlink, link),
    (open_, create),
    (lstat, readlink, statfs, getversion, lgetxattr, llistxattr),
    (chmod, chown, truncate, utime),
    (rename, remove, link),
    (lsetxattr, lgetxattr, llistxattr, lremovexattr),
)
any_request = st.one_of(*(row for group in GROUPS for row in group))


@st.composite
def _malformed(draw: st.DrawFn) -> Sent:
    sent: Sent = draw(any_request)
    if draw(st.booleans()):
        return sent._replace(cut=draw(st.integers(1, 40)))
    return sent._replace(trailing=draw(st.binary(min_size=1, max_size=4)))


malformed = _malformed()
use = st.tuples(st.integers(0, 7), st.sampled_from(["write", "read", "list", "stat", "truncate", "close"]))


class Steps(list[Sent | tuple[int, str] | None]):
    """Requests, uses of a descriptor, and None, which is no step: what a step shrinks to."""

    def __repr__(self) -> str:
        return "".join(f"\n  {step}" for step in self if step is not None)


@st.composite
def sequences(draw: st.DrawFn, length: int) -> Steps:
    """Sequences that leave some groups out: what takes many of others is found so."""
    groups = draw(st.lists(st.sampled_from(range(len(GROUPS))), min_size=2, max_size=len(GROUPS), unique=True))
    rows = [row for index in groups for row in GROUPS[index]]
    odd = [malformed] if draw(st.booleans()) else []
    step = st.one_of(st.none(), *rows, *odd, use)
    return Steps(draw(st.lists(step, min_size=length, max_size=length)))
