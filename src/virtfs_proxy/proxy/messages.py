# SPDX-License-Identifier: Apache-2.0
"""Rows of the proxy protocol: QEMU's hw/9pfs/9p-proxy.h (enum T_*) and fsdev/virtfs-proxy-helper.c, 1.1 to 9.1."""

import errno
from typing import Final

from virtfs_proxy.codec import Request

STATUS: Final = "status"
"""Reply: header (0 or 1, 4) and an i32, 0 or -errno."""

FD: Final = "fd"
"""Reply: no header; an i32, INT_MAX with a descriptor (SCM_RIGHTS) or -errno with none."""

SIZED: Final = "sized"
"""Reply: a header, then the length alone (i32) where the request's size was 0, else the value (bytes)."""

REQUESTS: Final = (
    Request(2, "open", "path:path flags:u32", FD),
    Request(3, "create", "path:path flags:u32 mode:u32 uid:id gid:id", FD),
    Request(4, "mknod", "uid:id gid:id path:path mode:u32 rdev:u64", STATUS),
    Request(5, "mkdir", "uid:id gid:id path:path mode:u32", STATUS),
    Request(6, "symlink", "uid:id gid:id target:text path:path", STATUS),
    Request(7, "link", "oldpath:path path:path", STATUS),
    Request(
        8,
        "lstat",
        "path:path",
        "dev:u64 ino:u64 nlink:u64 mode:u32 uid:u32 gid:u32 rdev:u64 size:u64 blksize:u64 blocks:u64"
        " atime_s:i64 atime_ns:u64 mtime_s:i64 mtime_ns:u64 ctime_s:i64 ctime_ns:u64",
    ),
    Request(9, "readlink", "path:path size:i32", "target:bytes"),
    Request(
        10,
        "statfs",
        "path:path",
        "type:i64 bsize:i64 blocks:u64 bfree:u64 bavail:u64 files:u64 ffree:u64"
        " fsid0:i64 fsid1:i64 namelen:i64 frsize:i64",
    ),
    Request(11, "chmod", "path:path mode:u32", STATUS),
    Request(12, "chown", "path:path uid:u32 gid:u32", STATUS),
    Request(13, "truncate", "path:path size:i64", STATUS),
    Request(14, "utime", "path:path atime_s:i64 atime_ns:i64 mtime_s:i64 mtime_ns:i64", STATUS),
    Request(15, "rename", "oldpath:path path:path", STATUS),
    Request(16, "remove", "path:path", STATUS),
    Request(17, "lgetxattr", "size:i32 path:path name:text", SIZED),
    Request(18, "llistxattr", "size:i32 path:path", SIZED),
    Request(19, "lsetxattr", "path:path name:text value:bytes size:i32 flags:i32", STATUS),
    Request(20, "lremovexattr", "path:path name:text", STATUS),
    Request(21, "getversion", "path:path", "generation:u64"),
)

SUCCESS: Final = 0
ERROR: Final = 1
HEADER: Final = "=II"
"""Type (of the request, or SUCCESS, ERROR) and size of the body in bytes, in host byte order."""

HEADER_SIZE: Final = 8
MAX_BODY: Final = 65_536
"""PROXY_MAX_IO_SZ: bytes of a body, in either direction."""

SHORT: Final = errno.ENOBUFS
"""What a body that does not unmarshal is answered with, and a reply that doesn't fit (fsdev/9p-iov-marshal.c)."""

FD_VALID: Final = 0x7FFFFFFF
"""V9FS_FD_VALID, INT_MAX: a descriptor comes with this message."""

__all__ = [
    "ERROR", "FD", "FD_VALID", "HEADER", "HEADER_SIZE", "MAX_BODY", "REQUESTS", "SHORT", "SIZED", "STATUS", "SUCCESS",
]  # fmt: skip
