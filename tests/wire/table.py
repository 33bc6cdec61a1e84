# SPDX-License-Identifier: Apache-2.0
"""The proxy protocol in literal bytes: every request, and every shape of reply, as a little-endian host sends them.

Written from QEMU's hw/9pfs/9p-proxy.h and fsdev/virtfs-proxy-helper.c, not from the codec: both sides of ours are held
against it, and neither can be wrong with the other.
"""

import errno
import os
import sys
from typing import Any, NamedTuple

assert sys.byteorder == "little", "this table is written for little-endian hosts; the protocol is in host order"


class Exchange(NamedTuple):
    """A request and its reply.

    ``done`` is what the export's method returns; ``told`` what a client makes of the reply: a value, a dict of fields.
    """

    name: str
    values: dict[str, Any]
    request: str
    done: Any
    reply: str
    told: Any

    @property
    def frame(self) -> bytes:
        """The request's bytes."""
        return bytes.fromhex(self.request)

    @property
    def answer(self) -> bytes:
        """The reply's bytes."""
        return bytes.fromhex(self.reply)


def text(words: str) -> str:
    """ASCII as hex."""
    return words.encode().hex(" ")


OK = "00000000 04000000 00000000"
FD = "ffffff7f"
A_FD = 4242
"""Stands for a descriptor; none of this process has that number."""

# st_atime and its kin in whole seconds are entries 7 to 9, as floats 10 to 12, in nanoseconds attributes of their own.
STAT = os.stat_result(
    (0o100644, 0x1122334455667788, 0xFE00, 3, 1000, 0xFFFFFFFE, 5_000_000_000, 1, -2, 1_700_000_000, 0.0, 0.0, 0.0),
    {
        "st_rdev": 0x103, "st_blksize": 4096, "st_blocks": 9_765_632,
        "st_atime_ns": 1_000_000_001, "st_mtime_ns": -1_000_000_001, "st_ctime_ns": 1_700_000_000_999_999_999,
    },
)  # fmt: skip
STAT_TOLD = {
    "dev": 0xFE00, "ino": 0x1122334455667788, "nlink": 3, "mode": 0o100644, "uid": 1000, "gid": 0xFFFFFFFE,
    "rdev": 0x103, "size": 5_000_000_000, "blksize": 4096, "blocks": 9_765_632, "atime_s": 1, "atime_ns": 1,
    "mtime_s": -2, "mtime_ns": 999_999_999, "ctime_s": 1_700_000_000, "ctime_ns": 999_999_999,
}  # fmt: skip
STAT_BYTES = (
    "00000000 74000000"
    " 00fe000000000000 8877665544332211 0300000000000000 a4810000 e8030000 feffffff"
    " 0301000000000000 00f2052a01000000 0010000000000000 0003950000000000"
    " 0100000000000000 0100000000000000 feffffffffffffff ffc99a3b00000000"
    " 00f1536500000000 ffc99a3b00000000"
)
STATFS = (0xEF53, 4096, 100, 90, 80, 70, 60, 0x12345678, -2, 255, 1024)
STATFS_TOLD = dict(
    zip(
        ("type", "bsize", "blocks", "bfree", "bavail", "files", "ffree", "fsid0", "fsid1", "namelen", "frsize"),
        STATFS,
        strict=True,
    )
)
STATFS_BYTES = (
    "00000000 58000000"
    " 53ef000000000000 0010000000000000 6400000000000000 5a00000000000000 5000000000000000 4600000000000000"
    " 3c00000000000000 7856341200000000 feffffffffffffff ff00000000000000 0004000000000000"
)

EXCHANGES = (
    Exchange(
        "open", {"path": b"./a", "flags": 0x10800},
        "02000000 09000000 0300 2e2f61 00080100",
        A_FD, FD, A_FD,
    ),
    Exchange(
        "create", {"path": b"./a/b", "flags": 0x42, "mode": 0o100644, "uid": 1000, "gid": 0xFFFFFFFE},
        "03000000 17000000 0500 2e2f612f62 42000000 a4810000 e8030000 feffffff",
        A_FD, FD, A_FD,
    ),
    Exchange(
        "mknod", {"uid": 1, "gid": 2, "path": b"n", "mode": 0o20600, "rdev": 0x501},
        "04000000 17000000 01000000 02000000 0100 6e 80210000 0105000000000000",
        None, OK, 0,
    ),
    Exchange(
        "mkdir", {"uid": 0, "gid": 0, "path": b"\xff\xfe", "mode": 0o1777},
        "05000000 10000000 00000000 00000000 0200 fffe ff030000",
        None, OK, 0,
    ),
    Exchange(
        "symlink", {"uid": 7, "gid": 8, "target": b"/etc", "path": b"l"},
        f"06000000 11000000 07000000 08000000 0400 {text('/etc')} 0100 6c",
        None, OK, 0,
    ),
    Exchange("link", {"oldpath": b"a", "path": b"bc"}, "07000000 07000000 0100 61 0200 6263", None, OK, 0),
    Exchange("lstat", {"path": b"."}, "08000000 03000000 0100 2e", STAT, STAT_BYTES, STAT_TOLD),
    Exchange(
        "readlink", {"path": b"l", "size": 4096},
        "09000000 07000000 0100 6c 00100000",
        b"/etc", f"00000000 06000000 0400 {text('/etc')}", {"target": b"/etc"},
    ),
    Exchange("statfs", {"path": b"."}, "0a000000 03000000 0100 2e", STATFS, STATFS_BYTES, STATFS_TOLD),
    Exchange("chmod", {"path": b"a", "mode": 0o4755}, "0b000000 07000000 0100 61 ed090000", None, OK, 0),
    Exchange(
        "chown", {"path": b"a", "uid": 0xFFFFFFFF, "gid": 5},
        "0c000000 0b000000 0100 61 ffffffff 05000000",
        None, OK, 0,
    ),
    Exchange(
        "truncate", {"path": b"a", "size": 1 << 40},
        "0d000000 0b000000 0100 61 0000000000010000",
        None, OK, 0,
    ),
    Exchange(
        "utime", {"path": b"a", "atime_s": -1, "atime_ns": 0x3FFFFFFF, "mtime_s": 2, "mtime_ns": 999_999_999},
        "0e000000 23000000 0100 61 ffffffffffffffff ffffff3f00000000 0200000000000000 ffc99a3b00000000",
        None, OK, 0,
    ),
    Exchange("rename", {"oldpath": b"a", "path": b"b"}, "0f000000 06000000 0100 61 0100 62", None, OK, 0),
    Exchange("remove", {"path": b"a"}, "10000000 03000000 0100 61", None, OK, 0),
    Exchange(
        "lgetxattr", {"size": 100, "path": b"a", "name": b"user.x"},
        f"11000000 0f000000 64000000 0100 61 0600 {text('user.x')}",
        b"\0v", "00000000 04000000 0200 0076", b"\0v",
    ),
    Exchange(
        "lgetxattr", {"size": 0, "path": b"a", "name": b"user.x"},
        f"11000000 0f000000 00000000 0100 61 0600 {text('user.x')}",
        bytes(65_536), "00000000 04000000 00000100", 65_536,
    ),
    Exchange(
        "lgetxattr", {"size": 1, "path": b"a", "name": b"user.x"},
        f"11000000 0f000000 01000000 0100 61 0600 {text('user.x')}",
        b"", "00000000 02000000 0000", b"",
    ),
    Exchange(
        "llistxattr", {"size": 7, "path": b"a"},
        "12000000 07000000 07000000 0100 61",
        b"user.x\0", f"00000000 09000000 0700 {text('user.x')} 00", b"user.x\0",
    ),
    Exchange(
        "llistxattr", {"size": 0, "path": b"a"},
        "12000000 07000000 00000000 0100 61",
        b"user.x\0", "00000000 04000000 07000000", 7,
    ),
    Exchange(
        "lsetxattr", {"path": b"a", "name": b"user.x", "value": b"\0v", "size": 2, "flags": 1},
        f"13000000 17000000 0100 61 0600 {text('user.x')} 0200 0076 02000000 01000000",
        None, OK, 0,
    ),
    Exchange(
        "lremovexattr", {"path": b"a", "name": b"user.x"},
        f"14000000 0b000000 0100 61 0600 {text('user.x')}",
        None, OK, 0,
    ),
    Exchange(
        "getversion", {"path": b"a"},
        "15000000 03000000 0100 61",
        0xFEDCBA98, "00000000 08000000 98badcfe00000000", {"generation": 0xFEDCBA98},
    ),
)  # fmt: skip

IDS = [f"{number}-{exchange.name}" for number, exchange in enumerate(EXCHANGES)]

# -errno, in the shape of the request: with a header, or the number alone where a descriptor was asked for.
REFUSALS = {
    errno.ENOENT: ("01000000 04000000 feffffff", "feffffff"),
    errno.ENOBUFS: ("01000000 04000000 97ffffff", "97ffffff"),
    errno.EIO: ("01000000 04000000 fbffffff", "fbffffff"),
}


def refusal(code: int, name: str) -> bytes:
    """The bytes that refuse a request of a row."""
    return bytes.fromhex(REFUSALS[code][name in {"open", "create"}])
