# SPDX-License-Identifier: Apache-2.0
"""Where our answers differ from the original's on purpose: one entry a difference, each with its reason.

The differential run fails on any difference that no entry covers, and on an entry that nothing needs.
"""

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from tests.conformance.sequences import Sent

DIED = "DIED"
UNASKED = "UNASKED"
"""The original was not asked: it would have stalled (test_defects.py shows it doing so)."""

OPENERS = frozenset(("open", "create", "getversion"))
CREATORS = frozenset(("create", "mknod", "mkdir", "symlink"))
NO_ID = 0xFFFFFFFF
O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY


class Seen(NamedTuple):
    """A request and what came of it.

    Outcomes are OK, an errno's name or DIED. ``itself`` is the type of what the path names, ``opened`` of what
    open(2) would follow it to; 0 for nothing.
    """

    sent: Sent
    original: str
    ours: str
    itself: int
    opened: int


class Fix(NamedTuple):
    """``diverges``: the original went on to do something; the trees are no longer comparable."""

    reason: str
    applies: Callable[[Seen], bool]
    diverges: bool = False


def _refused_path(path: bytes) -> bool:
    path = path.removesuffix(b"\0")  # QEMU's driver counts the NUL at the end of most paths
    return b"\0" in path or b".." in path.split(b"/")


def _flags(seen: Seen) -> int:
    flags: int = seen.sent.values.get("flags", 0)
    return flags


def _nul_or_way_out(seen: Seen) -> bool:
    return seen.ours == "EINVAL" and any(map(_refused_path, seen.sent.paths()))


FIXES = (
    Fix(
        "trailing bytes: the original does not look behind the last field",
        lambda seen: seen.sent.trailing != b"" and seen.ours == "ENOBUFS",
        diverges=True,
    ),
    Fix(
        "'..' or a NUL byte within a path: the original lets chroot decide, or cuts the path at the NUL",
        _nul_or_way_out,
        diverges=True,
    ),
    Fix(
        "NUL byte in a symlink's target or an attribute's name: the original cuts there",
        lambda seen: seen.ours == "EINVAL" and any(b"\0" in text for text in seen.sent.texts()),
        diverges=True,
    ),
    Fix(
        "an empty path is ENOENT, whatever else is wrong: the kernel may look at other arguments first",
        lambda seen: b"" in seen.sent.paths() and seen.ours == "ENOENT" and seen.original != "OK",
    ),
    Fix(
        "creating as uid or gid -1: the original creates with its own identity",
        lambda seen: (
            seen.sent.name in CREATORS
            and NO_ID in (seen.sent.values["uid"], seen.sent.values["gid"])
            and seen.ours == "EINVAL"
        ),
        diverges=True,
    ),
    Fix(
        "negative size: the original allocates it, and dies",
        lambda seen: (
            seen.sent.name in {"readlink", "lgetxattr", "llistxattr"}
            and seen.sent.values["size"] < 0
            and seen.original == DIED
            and seen.ours not in {"OK", DIED}
        ),
    ),
    Fix(
        "LSETXATTR with a size that the value does not have: the original stores what lies behind the value",
        lambda seen: (
            seen.sent.name == "lsetxattr"
            and not 0 <= seen.sent.values["size"] <= len(seen.sent.values["value"])
            and seen.ours == "EINVAL"
        ),
        diverges=True,
    ),
    Fix(
        "O_PATH and O_TMPFILE give descriptors that are no file of the export",
        lambda seen: bool(_flags(seen) & (os.O_PATH | O_TMPFILE)) and seen.ours == "EINVAL",
    ),
    Fix(
        "a FIFO, device or socket is ENXIO before it is opened (CVE-2023-2861): the original opens it, so it stalls or"
        " says what the kernel, or an ioctl, says of it",
        lambda seen: (
            seen.sent.name in OPENERS
            and stat.S_IFMT(seen.itself) in {stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK}
            and seen.original in {UNASKED, "ENOTTY", "EPERM"}
            and seen.ours == "ENXIO"
        ),
    ),
    Fix(
        "a link in the last component is not followed to be opened: the guest has followed its links itself",
        lambda seen: (
            seen.sent.name in OPENERS
            and stat.S_ISLNK(seen.itself)
            and seen.ours == ("ENOTDIR" if _flags(seen) & os.O_DIRECTORY else "ELOOP")
        ),
        diverges=True,
    ),
)

STRIPPED = os.O_CREAT | os.O_EXCL


def asked_of_the_original(sent: Sent) -> Sent:
    """OPEN with O_CREAT: the original creates with whatever mode lies in a register, as its own user.

    Ours opens what exists. So the original is asked for just that, and must answer the same.
    """
    if sent.name == "open" and sent.values["flags"] & STRIPPED:
        return sent._replace(values={**sent.values, "flags": sent.values["flags"] & ~STRIPPED})
    return sent


def disables_the_original(sent: Sent) -> bool:
    """Whether the original loses its capabilities for good with this request: it needs a new one then.

    They come back with a change of its user from another to 0, which a caller of uid 0 (or -1, none) and gid not 0
    does not bring about. From then on every chown, and every creation as somebody else, is EPERM.
    """
    uid, gid = sent.values.get("uid", 1), sent.values.get("gid", 0)
    return sent.name in CREATORS and uid in {0, NO_ID} and (uid, gid) != (0, 0)
