# SPDX-License-Identifier: Apache-2.0
"""What `virtfs client` reads from people and shows them: names, modes, owners, sizes, times."""

import grp
import os
import pwd
import re
import stat
import time
from collections.abc import Callable
from functools import lru_cache

from virtfs_proxy.proxy.client import Stat, StatFS


def escape(name: bytes) -> str:
    r"""A name that a terminal can be shown: what is no text, and what would steer the terminal, as \x1b."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else ascii(char)[1:-1]
        for char in text  # what ascii() makes of it, unquoted
    )


@lru_cache
def user(uid: int) -> str:
    """The name of a user on this host, the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@lru_cache
def group(gid: int) -> str:
    """The name of a group on this host, the number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _number(text: str, look_up: Callable[[str], int], kind: str) -> int:
    if not text:
        return -1
    try:
        number = int(text) if text.isdecimal() else look_up(text)
    except KeyError:
        raise ValueError(f"no {kind} {text!r}") from None
    if number >= 0xFFFFFFFF:
        raise ValueError(f"no {kind} {text!r}")
    return number


def owner(text: str) -> tuple[int, int]:
    """``USER``, ``USER:GROUP`` or ``:GROUP``, names or numbers, as (uid, gid); -1 for what is left out.

    :raises ValueError: for a name that this host does not know.
    """
    who, _, band = text.partition(":")
    uid = _number(who, lambda name: pwd.getpwnam(name).pw_uid, "user")
    return uid, _number(band, lambda name: grp.getgrnam(name).gr_gid, "group")


def human(size: int) -> str:
    """A number of bytes in at most four characters and a unit: 512, 1.5K, 20G; longer only where no unit is left."""
    if size < 0:
        return f"-{human(-size)}"
    if size < 1024:
        return str(size)
    value, units = size / 1024, "KMGTPEZYRQ"
    while value >= 1023.5 and units[1:]:
        value, units = value / 1024, units[1:]
    return f"{value:.1f}{units[0]}" if value < 9.95 else f"{value:.0f}{units[0]}"


def moment(ns: int, *, full: bool = False) -> str:
    """Local time of nanoseconds since the epoch; full: with the nanoseconds and the time zone."""
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        local = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return f"{seconds}.{rest:09}"  # a year that the C library has no room for
    if full:
        return time.strftime("%Y-%m-%d %H:%M:%S", local) + f".{rest:09} " + time.strftime("%z", local)
    return time.strftime("%Y-%m-%d %H:%M", local)


def is_device(mode: int) -> bool:
    """Whether st_rdev means something."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def row(st: Stat, *, numeric: bool = False) -> list[str]:
    """The columns of `ls -l` but the name."""
    size = f"{os.major(st.st_rdev)}, {os.minor(st.st_rdev)}" if is_device(st.st_mode) else str(st.st_size)
    names = (str(st.st_uid), str(st.st_gid)) if numeric else (user(st.st_uid), group(st.st_gid))
    return [stat.filemode(st.st_mode), str(st.st_nlink), *names, size, moment(st.st_mtime_ns)]


def align(rows: list[list[str]], left: str) -> list[str]:
    """Rows of equal length as lines; left holds the numbers of the columns that are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(
            cell.ljust(width) if str(n) in left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in rows
    ]


def sheet(name: str, st: Stat) -> str:
    """All that lstat tells, in lines; the last one has no end."""
    device = f"  Rdev: {os.major(st.st_rdev)},{os.minor(st.st_rdev)}" if is_device(st.st_mode) else ""
    return (
        f"  File: {name}\n"
        f"  Size: {st.st_size}  Blocks: {st.st_blocks}  IO Block: {st.st_blksize}{device}\n"
        f"Device: {os.major(st.st_dev)},{os.minor(st.st_dev)}  Inode: {st.st_ino}  Links: {st.st_nlink}\n"
        f"Access: ({stat.S_IMODE(st.st_mode):04o}/{stat.filemode(st.st_mode)})"
        f"  Uid: ({st.st_uid}/{user(st.st_uid)})  Gid: ({st.st_gid}/{group(st.st_gid)})\n"
        f"Access: {moment(st.st_atime_ns, full=True)}\n"
        f"Modify: {moment(st.st_mtime_ns, full=True)}\n"
        f"Change: {moment(st.st_ctime_ns, full=True)}"
    )


def space(fs: StatFS, show: Callable[[int], str]) -> list[str]:
    """The columns of df(1): size, used, available, use% (of what others than root may use).

    The helper may say anything: as in df(1), used is negative where more is free than there is, and has no share.
    """
    unit = max(fs.f_frsize, 0) or max(fs.f_bsize, 0)
    used = fs.f_blocks - fs.f_bfree
    whole = used + fs.f_bavail
    share = f"{-(-100 * used // whole)}%" if whole > 0 and used >= 0 else "-"
    return [show(fs.f_blocks * unit), show(used * unit), show(fs.f_bavail * unit), share]


_CLAUSE = re.compile(r"(?P<who>[ugoa]*)(?P<actions>([-+=]([ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def _permissions(letters: str, mode: int) -> int:
    if letters in {"u", "g", "o"}:
        return (mode >> {"u": 6, "g": 3, "o": 0}[letters] & 7) * 0o111
    bits = sum(_BITS[letter] for letter in set(letters) - {"X"})
    return bits | 0o111 if "X" in letters and (stat.S_ISDIR(mode) or mode & 0o111) else bits


def _clause(mode: int, who: str, actions: str, umask: int) -> int:
    everyone = not who or "a" in who
    mask = 0o7777 if everyone else sum(_WHO[letter] for letter in set(who))
    for operation, letters in _ACTION.findall(actions):
        bits = _permissions(letters, mode) & mask & ~(0 if who else umask)
        if operation == "=":
            # As GNU chmod: a directory keeps its setuid and setgid bits unless they are named.
            kept = 0o6000 if stat.S_ISDIR(mode) and "s" not in letters else 0
            mode = mode & ~(mask & ~kept) | bits
        else:
            mode = mode | bits if operation == "+" else mode & ~bits
    return mode


def new_mode(text: str, mode: int, umask: int) -> int:
    """What chmod(1) makes of a mode, file type included: text is octal (0644) or symbolic (u+rwX,g=u).

    :returns: permission bits.
    :raises ValueError: for a text that is neither.
    """
    if re.fullmatch(r"0*[0-7]{1,4}", text):
        # As GNU chmod: fewer than five digits leave a directory its setuid and setgid bits.
        return int(text, 8) | (mode & 0o6000 if stat.S_ISDIR(mode) and len(text) < 5 else 0)
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if not match:
            raise ValueError(f"invalid mode {text!r}")
        mode = _clause(mode, match["who"], match["actions"], umask)
    return stat.S_IMODE(mode)


__all__ = [
    "align", "escape", "group", "human", "is_device", "moment", "new_mode", "owner", "row", "sheet",
    "space", "user",
]  # fmt: skip
