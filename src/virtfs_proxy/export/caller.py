# SPDX-License-Identifier: Apache-2.0
"""The only place that switches identity: what is created on a caller's behalf is created as the caller.

Should: run a block with the file system identity of a caller (setfsuid, setfsgid), with CAP_DAC_OVERRIDE alone in
the effective set, on this thread only.
Must not: leave the block with anything but the identity of before. Where that cannot be had the process aborts: the
next request would be served as somebody else.

Supplementary groups are dropped once, when the helper confines itself (confine/groups.py).
"""

import errno
import os
from types import TracebackType
from typing import Final

from virtfs_proxy.linux import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_MKNOD,
    CAP_SETGID,
    CAP_SETUID,
    Capabilities,
    setfsgid,
    setfsuid,
)

Caller = tuple[int, int]
"""(uid, gid) of somebody in the guest."""

CAPABILITIES: Final = {
    CAP_CHOWN: "to give files to the guest's users",
    CAP_DAC_OVERRIDE: "to reach files of every owner",
    CAP_FOWNER: "to change modes and times of files of every owner",
    CAP_FSETID: "to keep set-user-ID and set-group-ID bits that a guest sets",
    CAP_SETGID: "to create files as the guest's groups",
    CAP_SETUID: "to create files as the guest's users",
    CAP_MKNOD: "to make device nodes for the guest's root",
}
"""What file operations need and what for, and all that the helper keeps: the original's list."""

_ALL: Final = sum(1 << capability for capability in CAPABILITIES)
_OWN: Final = Capabilities(_ALL, _ALL)
_CALLERS: Final = Capabilities(1 << CAP_DAC_OVERRIDE, _ALL)
_HELPER: Final = (0, 0)
_NOBODY: Final = 0xFFFFFFFF


class as_caller:  # noqa: N801 - reads as the statement it is: with as_caller(who)
    """Run a block as a caller. (0, 0) is the helper's own identity and costs nothing.

    :param own: capabilities to come back to.
    :param callers: capabilities of the block.
    :raises OSError: EPERM when the kernel refuses the identity; the helper's own is back then.
    """

    __slots__ = ("callers", "own", "who")

    def __init__(self, who: Caller, own: Capabilities = _OWN, callers: Capabilities = _CALLERS) -> None:
        self.who = who
        self.own = own
        self.callers = callers

    def __enter__(self) -> None:
        if self.who == _HELPER:
            return
        uid, gid = self.who
        try:
            setfsgid(gid)
            setfsuid(uid)
            # Neither call reports failure: ask what came of them. Raising the uid has cleared the capabilities of
            # file operations; the set of callers brings one back and takes SETUID and SETGID away.
            if setfsuid(_NOBODY) != uid or setfsgid(_NOBODY) != gid:
                raise OSError(errno.EPERM, f"cannot become {uid}:{gid}")
            self.callers.apply()
        except BaseException:
            _restore(self.own)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.who != _HELPER:
            _restore(self.own)


def before_confinement(who: Caller) -> as_caller:
    """The same for a process that has more capabilities than it will keep, and needs them still."""
    own = Capabilities.current()
    _, permitted, inheritable = own.sets
    return as_caller(who, own, Capabilities(1 << CAP_DAC_OVERRIDE, permitted, inheritable))


def _restore(own: Capabilities) -> None:
    try:
        own.apply()
        setfsuid(0)
        setfsgid(0)
        if setfsuid(_NOBODY) == 0 and setfsgid(_NOBODY) == 0:
            return
    except BaseException:  # noqa: S110, BLE001 - whatever it was, there is no way on from here
        pass
    os.abort()
