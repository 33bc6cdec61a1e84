# SPDX-License-Identifier: Apache-2.0
"""System calls that os lacks, and constants with the names of their headers. 64-bit Linux, C library symbols by ctypes.

Every wrapper raises OSError as os does. Numbers are the kernel's generic ones, which x86-64, aarch64, riscv64 and
s390x share.
"""

import ctypes
import fcntl
import os
import struct
from typing import Final

AT_FDCWD: Final = -100  # linux/fcntl.h
AT_SYMLINK_NOFOLLOW: Final = 0x100
UTIME_NOW: Final = 0x3FFFFFFF  # linux/stat.h
UTIME_OMIT: Final = 0x3FFFFFFE

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

CAP_CHOWN: Final = 0  # linux/capability.h
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_SYS_CHROOT: Final = 18
CAP_MKNOD: Final = 27
_CAPABILITY_NAMES: Final = {number: name for name, number in list(globals().items()) if name.startswith("CAP_")}
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

EXT2_SUPER_MAGIC: Final = 0xEF53  # linux/magic.h; ext3 and ext4 have the same number
BTRFS_SUPER_MAGIC: Final = 0x9123683E
XFS_SUPER_MAGIC: Final = 0x58465342
REISERFS_SUPER_MAGIC: Final = 0x52654973

FS_IOC_GETVERSION: Final = 0x80087601  # linux/fs.h: _IOR('v', 1, long)

if ctypes.sizeof(ctypes.c_long) != 8:
    raise ImportError("virtfs-proxy needs a 64-bit Linux")

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *argtypes: type) -> "ctypes._NamedFuncPointer":
    function = getattr(_libc, name)
    function.argtypes = argtypes
    return function  # type: ignore[no-any-return]


_capget = _function("capget", ctypes.c_void_p, ctypes.c_void_p)
_capset = _libc.capset  # as statfs
_prctl = _function("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
# Called eight times for a request that makes something: PyDLL keeps the interpreter's lock, as neither ever waits, and
# plain ints need no argtypes (ctypes takes their low 32 bits).
_quick = ctypes.PyDLL(None)
_setfsuid, _setfsgid = _quick.setfsuid, _quick.setfsgid
_setfsuid.restype = _setfsgid.restype = ctypes.c_uint
_statfs = _libc.statfs  # bytes and a c_void_p need no argtypes, which cost a tenth of the call
_utimensat = _function("utimensat", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)


def _check(result: int, path: bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def prctl(option: int, argument: int = 0, second: int = 0) -> int:
    """prctl(2)."""
    return _check(_prctl(option, argument, second, 0, 0))


def capability_name(number: int) -> str:
    """CAP_NAME of a capability that this module knows, else its number."""
    return _CAPABILITY_NAMES.get(number, f"capability {number}")


class Capabilities:
    """Three capability sets of a thread as capset(2) takes them: build once, apply as often as needed.

    :param effective: bit N stands for capability N; permitted and inheritable likewise.
    """

    def __init__(self, effective: int, permitted: int, inheritable: int = 0) -> None:
        self.sets = (effective, permitted, inheritable)
        low = [bits & 0xFFFFFFFF for bits in self.sets]
        high = [bits >> 32 for bits in self.sets]
        self._header = ctypes.create_string_buffer(struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0), 8)
        self._data = ctypes.create_string_buffer(struct.pack("=6I", *low, *high), 24)
        self._arguments = tuple(ctypes.c_void_p(ctypes.addressof(part)) for part in (self._header, self._data))

    def apply(self) -> None:
        """capset(2), this thread alone. :raises OSError: EPERM for a bit that is not permitted."""
        _check(_capset(*self._arguments))

    @classmethod
    def current(cls) -> "Capabilities":
        """capget(2) of this thread."""
        made = cls(0, 0, 0)
        _check(_capget(*made._arguments))
        words = struct.unpack("=6I", made._data.raw)
        return cls(*(words[i] | words[i + 3] << 32 for i in range(3)))


def setfsuid(uid: int) -> int:
    """setfsuid(2), this thread alone: returns the old one and never fails; uid -1 changes nothing."""
    return _setfsuid(uid)  # type: ignore[no-any-return]


def setfsgid(gid: int) -> int:
    """setfsgid(2), this thread alone: returns the old one and never fails; gid -1 changes nothing."""
    return _setfsgid(gid)  # type: ignore[no-any-return]


# struct statfs, asm-generic/statfs.h with __statfs_word of 8 bytes. One buffer serves every call: only the thread
# that answers requests looks at paths.
_STATFS: Final = struct.Struct("=2q5Q2i2q40x")
_statfs_buffer = ctypes.create_string_buffer(_STATFS.size)
_statfs_address = ctypes.c_void_p(ctypes.addressof(_statfs_buffer))


def statfs(path: bytes) -> tuple[int, ...]:
    """statfs(2): (type, bsize, blocks, bfree, bavail, files, ffree, fsid0, fsid1, namelen, frsize)."""
    _check(_statfs(path, _statfs_address), path)
    return _STATFS.unpack_from(_statfs_buffer)


_TIMES: Final = struct.Struct("=4q")


def utimensat(dir_fd: int, path: bytes, times: tuple[int, int, int, int], flags: int) -> None:
    """utimensat(2) with (atime s, ns, mtime s, ns), UTIME_NOW and UTIME_OMIT included, which os.utime lacks."""
    buffer = ctypes.create_string_buffer(_TIMES.pack(*times), _TIMES.size)
    _check(_utimensat(dir_fd, path, ctypes.addressof(buffer), flags), path)


def getversion(fd: int) -> int:
    """FS_IOC_GETVERSION of an open file: its generation. The kernel writes an int, whatever the macro says."""
    return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8))[:4], "little" if _LITTLE else "big")


_LITTLE: Final = struct.pack("=H", 1)[0] == 1
